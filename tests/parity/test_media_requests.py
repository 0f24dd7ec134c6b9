"""Requests that show pictures: every form in which they come, what is refused, and the command line."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import kamado
import tiny
from kamado.errors import InvalidRequest
from tiny_media import KINDS, MediaOracle, chat, omni, picture, sound, video
from typed import Kamado, typed

HOW = {"max_tokens": 6, "temperature": 0.0, "ignore_eos": True}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {name: KINDS[name].make(tmp_path_factory.mktemp(name)) for name in ("llava", "qwen2_vl", "qwen2_audio")}
    return {**made, "text": tiny.build("llama", tmp_path_factory.mktemp("text"))}


@pytest.fixture(scope="module")
def runtime() -> Iterator[kamado.Runtime]:
    with kamado.Runtime(device="cpu", memory="2GiB") as made:
        yield made


@pytest.fixture(scope="module")
def llava(runtime: kamado.Runtime, folders: dict[str, Path]) -> kamado.Model:
    return runtime.load(folders["llava"], kv_tokens=1024)


@pytest.fixture
def kamado_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Kamado:
    return typed(monkeypatch, capsys)


def encoded(image: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def data_url(image: Any) -> str:
    return "data:image/png;base64," + base64.b64encode(encoded(image)).decode()


def test_every_form_of_a_picture_is_the_same(llava: kamado.Model, tmp_path: Path) -> None:
    image = picture(3)
    path = tmp_path / "a.png"
    path.write_bytes(encoded(image))
    forms = [image, path, str(path), encoded(image), np.asarray(image), data_url(image)]
    results = [llava.generate("what?", image=form, **HOW) for form in forms]
    shown = [{"type": "image", "image": image}, {"type": "text", "text": "what?"}]
    by_url = [{"type": "image_url", "image_url": {"url": data_url(image)}}, {"type": "text", "text": "what?"}]
    results += [llava.generate(messages=[{"role": "user", "content": part}], **HOW) for part in (shown, by_url)]
    assert len({result.tokens for result in results}) == 1
    assert len({json.dumps(result.recipe["inputs"]) for result in results}) == 1
    assert results[0].recipe["inputs"]["image"][0].keys() == {"sha256"}
    assert llava.generate("what?", image=picture(4), **HOW).tokens != results[0].tokens
    assert results[-1].recipe["options"]["messages"][0]["content"][0] == {"type": "image"}
    json.dumps(results[-1].recipe)


def test_without_pictures_it_is_a_text_model(llava: kamado.Model) -> None:
    one = llava.generate(messages=[{"role": "user", "content": "hello"}], **HOW)
    other = llava.generate(messages=[{"role": "user", "content": [{"type": "text", "text": "hello"}]}], **HOW)
    assert one.tokens == other.tokens and "inputs" not in one.recipe


def test_cancelled_while_it_is_seen(runtime: kamado.Runtime, llava: kamado.Model) -> None:
    before = runtime.stats()["ledger"]
    jobs = [llava.submit("what?", image=picture(number), max_tokens=200, ignore_eos=True) for number in range(4)]
    for job in jobs:
        job.cancel()
    for job in jobs:
        with pytest.raises(kamado.Cancelled):
            job.result()
    llava.generate("x", **HOW)
    assert runtime.stats()["ledger"] == before


def test_quantized_models_see_in_full_precision(runtime: kamado.Runtime, folders: dict[str, Path]) -> None:
    model = runtime.load(folders["qwen2_vl"], quant="int8", kv_tokens=512)
    named = dict(model.loaded.module.named_parameters())  # type: ignore[attr-defined]
    plain = {type(value).__name__ for name, value in named.items() if "visual" in name}
    assert plain == {"Parameter"}
    lanes = {lane.lane: lane for lane in model.plan.lanes}
    stored = model.checkpoint.tensors
    assert lanes["encoder"].weight_bytes == sum(entry.nbytes for name, entry in stored.items() if "visual" in name)
    held = runtime.stats()["ledger"]["cpu"][model.owner]["weights"]
    assert model.plan.weight_bytes <= held <= model.plan.weight_bytes + 4096
    assert len(model.generate("what?", image=picture(1), **HOW).tokens) == 6
    model.unload()


BAD_PICTURES: dict[str, Any] = {
    "a text file named .png": b"this is no picture",
    "an empty file": b"",
    "20,000 x 20,000": lambda: Image.new("1", (20_000, 20_000)),
    "an address": "https://example.com/cat.png",
    "a number": 7,
    "a file that is not there": "/nowhere/at/all.png",
}


@pytest.mark.parametrize("name", list(BAD_PICTURES))
def test_bad_pictures(llava: kamado.Model, name: str, tmp_path: Path) -> None:
    source = BAD_PICTURES[name]
    source = source() if callable(source) else source
    if isinstance(source, bytes):
        path = tmp_path / "a.png"
        path.write_bytes(source)
        source = path
    with pytest.raises(InvalidRequest) as found:
        llava.generate("what?", image=source, **HOW)
    assert "\n" not in str(found.value)
    with pytest.raises(InvalidRequest):
        llava.generate(messages=[{"role": "user", "content": [{"type": "image", "image": source}]}], **HOW)


def test_the_smallest_picture(llava: kamado.Model) -> None:
    assert len(llava.generate("what?", image=picture(0, 1, 1), **HOW).tokens) == 6


BAD_PARTS: dict[str, Any] = {
    "no type": {"image": "a.png"},
    "an unknown type": {"type": "smell", "smell": "a"},
    "no source": {"type": "image"},
    "two sources": {"type": "image", "image": "a.png", "url": "b.png"},
    "a url over the network": {"type": "image_url", "image_url": {"url": "http://example.com/a.png"}},
    "a url that is none": {"type": "image_url", "image_url": 3},
    "no base64": {"type": "input_audio", "input_audio": {"data": "!!!", "format": "wav"}},
    "a text without text": {"type": "text"},
    "a text": "look",
}


@pytest.mark.parametrize("name", list(BAD_PARTS))
def test_bad_parts(llava: kamado.Model, name: str) -> None:
    with pytest.raises(InvalidRequest):
        llava.generate(messages=[{"role": "user", "content": [BAD_PARTS[name]]}], **HOW)


def test_what_a_model_does_not_take_is_refused(runtime: kamado.Runtime, folders: dict[str, Path]) -> None:
    text = runtime.load(folders["text"], kv_tokens=256)
    with pytest.raises(InvalidRequest, match="takes text alone, and no image"):
        text.generate("what?", image=picture(0))
    text.unload()
    hears = runtime.load(folders["qwen2_audio"], kv_tokens=256)
    with pytest.raises(InvalidRequest, match="takes audio beside text, and no image"):
        hears.generate("what?", image=picture(0))
    bad = [(np.zeros(0, np.float32), 16000), (np.zeros(100, np.float32), 0), b"no sound", np.zeros(100, np.float32)]
    for source in bad:
        with pytest.raises(InvalidRequest):
            hears.generate("what?", audio=source)
    assert len(hears.generate("what?", audio=sound(1), **HOW).tokens) == 6
    hears.unload()


def test_bad_videos(runtime: kamado.Runtime, folders: dict[str, Path]) -> None:
    sees = runtime.load(folders["qwen2_vl"], kv_tokens=512)
    for source in (np.zeros((0, 8, 8, 3), np.uint8), b"no video", ([], 24.0)):
        with pytest.raises(InvalidRequest):
            sees.generate("what?", video=source)
    assert len(sees.generate("what?", video=video(1), **HOW).tokens) == 6
    sees.unload()


@pytest.mark.parametrize("name", ["qwen2_5_omni", "qwen3_omni_moe"])
def test_of_a_model_that_also_speaks_what_thinks_is_run(runtime: kamado.Runtime, tmp_path: Path, name: str) -> None:
    kind = KINDS[f"{name}_thinker"]
    (tmp_path / "whole").mkdir()
    thinker = kind.make(tmp_path / "thinker")
    options = chat(kind)
    wanted = MediaOracle(thinker).greedy(options, 6)
    model = runtime.load(omni.wrapped(thinker, tmp_path / "whole", name), kv_tokens=512)
    assert list(model.generate(**options, **HOW).tokens) == wanted
    assert model.tasks[-1] == "any-to-any"
    model.unload()


def test_other_options_and_pictures(llava: kamado.Model) -> None:
    with pytest.raises(InvalidRequest, match="goes with a prompt"):
        llava.generate(messages=[{"role": "user", "content": "hi"}], image=picture(0))
    with pytest.raises(InvalidRequest, match="one source or a list"):
        llava.generate("what?", image=[])
    with pytest.raises(kamado.ContextOverflow):
        llava.generate("what?", image=[picture(number) for number in range(80)])


def test_the_command_line(
    kamado_command: Kamado, folders: dict[str, Path], llava: kamado.Model, tmp_path: Path
) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for number, path in enumerate(paths):
        path.write_bytes(encoded(picture(number)))
    wanted = llava.generate("what is this?", image=[str(path) for path in paths], **HOW)
    flags = [flag for path in paths for flag in ("--image", str(path))]
    how = ("--max-tokens", "6", "--temperature", "0", "--ignore-eos", "--json", "--kv-tokens", "512")
    done = kamado_command("run", str(folders["llava"]), "what is this?", *flags, *how)
    assert done.status == 0, done.err
    document = json.loads(done.out)
    assert document["text"] == wanted.text and document["request"]["image"] == [str(path) for path in paths]
    assert document["recipe"]["inputs"] == wanted.recipe["inputs"]
    paths[0].write_text("text")
    done = kamado_command("run", str(folders["llava"]), "what is this?", *flags)
    assert done.status == 2 and "no picture" in done.err and done.err.count("\n") <= 2
    done = kamado_command("run", str(folders["text"]), "what is this?", "--image", str(paths[1]))
    assert done.status == 2 and "takes text alone" in done.err


def test_batches(kamado_command: Kamado, folders: dict[str, Path], llava: kamado.Model, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(encoded(picture(5)))
    part = {"type": "image", "image": "a.png"}
    url = {"type": "image_url", "image_url": {"url": data_url(picture(5))}}
    text = {"type": "text", "text": "what?"}
    lines: list[dict[str, Any]] = [
        {"id": "short", "prompt": "what?", "image": "a.png", **HOW},
        {"id": "parts", "messages": [{"role": "user", "content": [part, text]}], **HOW},
        {"id": "bad", "prompt": "what?", "image": "b.png", **HOW},
        {
            "custom_id": "openai",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"messages": [{"role": "user", "content": [url, text]}], **HOW},
        },
    ]
    source = tmp_path / "in" / "lines.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "out"
    done = kamado_command("batch", str(folders["llava"]), str(source), "-o", str(out), "--kv-tokens", "512")
    assert done.status == 1, done.err
    results = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    wanted = llava.generate("what?", image=picture(5), **HOW).text
    assert [result["status"] for result in results] == ["ok", "ok", "failed", "ok"]
    assert [result["text"] for result in results] == [wanted, wanted, None, wanted]
    assert "does not exist" in results[2]["error"]
