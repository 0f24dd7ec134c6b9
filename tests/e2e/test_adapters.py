"""ControlNets, adapters and requests that cannot be, as typed, with tiny models."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy
import pytest
import safetensors.torch
import torch

import tiny_pipelines as tiny
from adapter_files import Files, clear, with_loras
from kamado.media.pictures import open_picture
from typed import Kamado as Typed
from typed import typed

from .conftest import Kamado

PROMPT = "a red cat"
USUAL = ("--steps", "3", "--seed", "5", "--offline")
LORAS = ("--adapter", "lora.safetensors:0.7", "--adapter", "kohya.safetensors:0.5")
TOGETHER: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "plain": ((), {}),
    "edges": (("--component", "controlnet=edges", "--control", "edge.png"), {"control": "edge.png"}),
    "lora": (("--adapter", "lora.safetensors:0.7"), {"adapters": ["lora.safetensors:0.7"]}),
    "loras": (LORAS, {"adapters": ["lora.safetensors:0.7", {"reference": "kohya.safetensors", "weight": 0.5}]}),
    "inversion": (("--adapter", "kiln.safetensors"), {"prompt": f"{tiny.TOKEN} cat", "adapters": ["kiln.safetensors"]}),
    "image": (
        ("--adapter", "ip-adapter_sd15.safetensors:0.6", "--adapter-image", "shown.png"),
        {"adapters": ["ip-adapter_sd15.safetensors:0.6"], "ip_adapter_image": "shown.png"},
    ),
}
"""Requests, by flags and as lines of a batch."""


@pytest.fixture(scope="module")
def models(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, and with what is loaded beside it and shown to it."""
    root = tmp_path_factory.mktemp("models")
    shutil.copytree(files["sd15"], root / "sd15")
    shutil.copytree(files["controlnet-sd15"], root / "edges")
    shutil.copytree(files["ip-adapter-sd15"].parent, root, dirs_exist_ok=True)
    for name, file in (("lora", "lora-sd15"), ("kohya", "lora-sd15-kohya"), ("kiln", "embedding-sd15")):
        shutil.copy(files[file], root / f"{name}.safetensors")
    (root / "corrupt.safetensors").write_bytes(files["lora-sd15"].read_bytes()[:-100])
    homeless = {f"unet.somewhere.to_q.lora_{part}.weight": torch.ones(8, 8) for part in "AB"}
    shutil.copy(files.save("homeless.safetensors", homeless), root)
    torch.save({"a": torch.ones(1)}, root / "pickled.pt")
    tiny.picture(7).save(root / "edge.png")
    tiny.picture(1).save(root / "shown.png")
    tiny.mask((32, 32)).save(root / "small.png")
    return root


@pytest.fixture
def folder(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with links to all of `models`."""
    here = tmp_path / "here"
    here.mkdir()
    for path in models.iterdir():
        (here / path.name).symlink_to(path)
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Typed:
    """`kamado ...` in this process."""
    monkeypatch.setenv("KAMADO_HOME", str(tmp_path / "home"))
    return typed(monkeypatch, capsys)


def pixels(path: str | Path) -> Any:
    return numpy.asarray(open_picture(path).convert("RGB"), dtype=numpy.float32) / 255


@pytest.mark.slow
def test_two_loras_are_those_of_diffusers_and_replay(kamado: Kamado, quick: Typed, files: Files, folder: Path) -> None:
    done = kamado("run", "sd15", PROMPT, *USUAL, *LORAS, "-o", "x.png")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"x.png\n", b"")
    request: dict[str, Any] = {"prompt": PROMPT, "num_inference_steps": 3, "seed": 5}
    loras = [(files["lora-sd15"], 0.7), (files["lora-sd15-kohya"], 0.5)]
    wanted = tiny.oracle(files["sd15"], prepare=lambda pipeline: with_loras(pipeline, loras), **request)[0]
    assert numpy.abs(pixels("x.png") - wanted).max() < 1.01 / 255
    assert clear(pixels("x.png"), tiny.oracle(files["sd15"], **request)[0])

    again = quick("replay", "x.png", "--offline", "--json")
    document = json.loads(again.out)
    assert again.status == 0 and document["equal"] is True and document["differences"] == []
    assert [each["weight"] for each in document["recipe"]["adapters"]] == [0.7, 0.5]

    Path("lora.safetensors").unlink()
    missing = quick("replay", "x.png", "--offline")
    assert missing.status == 4 and "lora.safetensors'" in missing.err
    tensors = safetensors.torch.load_file(files["lora-sd15"])
    unet_alone = {name: tensor for name, tensor in tensors.items() if name.startswith("unet.")}
    shutil.copy(files.save("less.safetensors", unet_alone), "lora.safetensors")
    other = quick("replay", "x.png", "--offline", "-o", "other.png")
    assert other.status == 0 and "not equal" in other.err
    assert "lora.safetensors: missing, or other content now" in other.err


@pytest.mark.slow
def test_a_batch_gives_each_line_its_own(quick: Typed, folder: Path) -> None:
    bad = {"corrupt": {"adapters": ["corrupt.safetensors"]}, "size": {"image": "shown.png", "mask": "small.png"}}
    lines = {**{name: line for name, (_, line) in TOGETHER.items()}, **bad}
    text = "".join(json.dumps({"id": name, "prompt": PROMPT, "seed": 5, **line}) + "\n" for name, line in lines.items())
    (folder / "in.jsonl").write_text(text)
    net = ("--component", "controlnet=edges")
    done = quick("batch", "sd15", "in.jsonl", "-o", "out", *net, *USUAL, "--deterministic")
    assert done.status == 1 and "2 of 8 lines failed" in done.err
    results = [json.loads(line) for line in (folder / "out" / "results.jsonl").read_text().splitlines()]
    errors = {result["id"]: result["error"] for result in results if result["status"] == "failed"}
    assert set(errors) == set(bad)
    assert "not a sound safetensors file" in errors["corrupt"] and "32 x 32" in errors["size"]

    together = {name: pixels(f"out/media/{name}.png") for name in TOGETHER}
    for (name, one), (other, another) in itertools.combinations(together.items(), 2):
        assert clear(one, another), (name, other)
    for name, (flags, line) in TOGETHER.items():
        alone = quick("run", "sd15", line.get("prompt", PROMPT), *USUAL, *flags, "-o", f"{name}.png")
        assert (alone.status, alone.out, alone.err) == (0, f"{name}.png\n", ""), name
        assert numpy.array_equal(pixels(f"{name}.png"), together[name]), name

    blind = quick("replay", "out/media/image.png", "--offline")
    assert blind.status == 2 and "give it (--adapter-image)" in blind.err
    seeing = quick("replay", "out/media/image.png", "--offline", "--adapter-image", "shown.png")
    assert seeing.status == 0 and "equal: every pixel" in seeing.err


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (("--adapter", "corrupt.safetensors"), 4, "is not a sound safetensors file"),
        (("--adapter", "homeless.safetensors"), 2, "none of its 2 tensors have a place in sd15"),
        (("--adapter", "absent.safetensors"), 4, "'absent.safetensors' does not exist"),
        (("--adapter", "pickled.pt"), 5, "pickle"),
        (("--adapter", "sd15"), 4, "whole model"),
        (("--adapter", "lora.safetensors", "--adapter", "lora.safetensors:0.7"), 2, "is given twice"),
        (("--adapter", "lora.safetensors:much"), 2, "the weight 'much' is not a number"),
        (("--adapter", "kiln.safetensors:0.5"), 2, "no weight"),
        (("--adapter", "ip-adapter_sd15.safetensors"), 2, "give --adapter-image too"),
        (("--adapter-image", "shown.png"), 2, "name one under --adapter"),
        (("--component", "controlnet=absent", "--control", "edge.png"), 4, "no model is called 'absent'"),
        (("--component", "controlnet=sd15", "--control", "edge.png"), 4, "sd15"),
        (("--control", "edge.png"), 2, "(--component controlnet=REF)"),
        (("--component", "controlnet=edges", "--control", "absent.png"), 2, "absent.png does not exist"),
        (("--image", "shown.png", "--mask", "small.png"), 2, "the mask has 32 x 32 pixels and the picture 64 x 64"),
        (("--mask", "small.png"), 2, "give --image too"),
        (("--width", "100000"), 2, "width must be a whole number from 1 to 65536, not 100000"),
        (("--width", "65536", "--height", "65536"), 2, "ask for a smaller one"),
        (("--steps", "0"), 2, "steps must be a whole number from 1 to 10000, not 0"),
    ],
)
def test_what_cannot_be(args: tuple[str, ...], status: int, words: str, quick: Typed, folder: Path) -> None:
    before = set(folder.iterdir())
    done = quick("run", "sd15", PROMPT, *USUAL[2:], *args, "-o", "x.png")
    assert done.status == status and words in done.err, done.err
    assert done.out == "" and done.err.startswith("kamado: ") and done.err.count("\n") <= 2
    assert set(folder.iterdir()) == before
