"""SpeechT5 with its vocoder, equal to the library's own `generate_speech`."""

from __future__ import annotations

import io
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.numpy import save_file
from transformers import SpeechT5Tokenizer

import kamado
from kamado.batch.media import MediaAnswers
from kamado.cli.kinds import options_for
from kamado.cli.loading import Abilities
from kamado.cli.media_options import Given
from kamado.media.recipes import read_recipe
from kamado.media.sounds import open_sound, save_sound
from kamado.options import Options, anything
from kamado_models.speech.arrays import parse_npy, read_npz
from kamado_models.speech.speecht5 import SpeechT5Kind
from typed import typed

from .tiny_speech import write_speecht5, write_vocoder

VOICE = [0.1, -0.2, 0.3, 0.0, 0.5, -0.6]


def said(model: Any, vocoder: Any, folder: Path, texts: list[str], seed: int, **kwargs: Any) -> list[numpy.ndarray]:
    """What the library says, one text after the other."""
    tokenizer = SpeechT5Tokenizer.from_pretrained(folder)
    torch.manual_seed(seed)
    with torch.no_grad():
        tokens = [tokenizer(text, return_tensors="pt").input_ids for text in texts]
        return [
            model.generate_speech(each, torch.tensor([VOICE]), vocoder=vocoder, **kwargs).numpy() for each in tokens
        ]


def test_it_says_what_the_library_says(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder, own = write_speecht5(tmp_path / "t5")
    vocoder_folder, vocoder = write_vocoder(tmp_path / "hifigan")
    plan = runtime.plan(folder, components={"vocoder": vocoder_folder})
    assert {lane.lane for lane in plan.lanes} == {"encoder", "decoder", "vocoder"}
    model = runtime.load(folder, components={"vocoder": vocoder_folder})
    result = model.generate("Hello there. Again", seed=3, voice=VOICE, pause=0.01)
    first, second = said(own, vocoder, folder, ["Hello there.", "Again"], 3)
    expected = numpy.concatenate([first, numpy.zeros(80, numpy.float32), second])
    assert result.audio.shape == (1, len(expected)) and numpy.abs(result.audio[0] - expected).max() < 1e-4
    (short,) = said(own, vocoder, folder, ["Hello"], 4, maxlenratio=2.0)
    assert numpy.abs(model.generate("Hello", seed=4, voice=VOICE, max_length=2).audio[0] - short).max() < 1e-4
    parts = result.recipe["components"]["vocoder"]["files"]
    assert set(parts) == {"config.json", "model.safetensors"}
    assert result.recipe["options"]["voice"] == tuple(VOICE)


def test_voices_are_numbers_files_or_names(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder, _ = write_speecht5(tmp_path / "t5")
    write_vocoder(folder / "vocoder")
    with pytest.raises(kamado.InvalidRequest, match=r"needs a voice: a list of 6 numbers .*--voice FILE"):
        runtime.load(folder).generate("hello", seed=1)
    (folder / "voices").mkdir()
    numpy.save(folder / "voices" / "ann.npy", numpy.asarray([VOICE], numpy.float32))
    (folder / "voices" / "bob.json").write_text(json.dumps([0.5] * 6))
    save_file({"voice": numpy.asarray(VOICE, numpy.float32)}, tmp_path / "other.safetensors")
    model = runtime.load(folder)
    expected = model.generate("hello", seed=1, voice=VOICE).audio
    for voice in (
        "ann",
        None,
        str(tmp_path / "other.safetensors"),
        folder / "voices" / "ann.npy",
        numpy.asarray(VOICE),
    ):
        assert numpy.abs(model.generate("hello", seed=1, voice=voice).audio - expected).max() < 1e-5, voice
    assert not numpy.array_equal(model.generate("hello", seed=1, voice="bob").audio, expected)
    with pytest.raises(kamado.InvalidRequest, match=r"has no voice 'eve'; it has ann, bob"):
        model.generate("hello", voice="eve")
    with pytest.raises(kamado.InvalidRequest, match="has 6 numbers, not 3"):
        model.generate("hello", voice=[1.0, 2.0, 3.0])


def test_files_that_are_no_voices(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder, _ = write_speecht5(tmp_path / "t5")
    write_vocoder(folder / "vocoder")
    model = runtime.load(folder)
    numpy.save(tmp_path / "pickle.npy", numpy.asarray([{"a": 1}], object), allow_pickle=True)
    (tmp_path / "words.json").write_text('{"a": ["b"]}')
    (tmp_path / "text.npy").write_text("hello")
    for file, says in (
        ("pickle.npy", "holds no vector"), ("words.json", "finite numbers"), ("text.npy", "holds no vector"),
        ("gone.npy", "there is no file"), ("nan.json", "finite"),
    ):  # fmt: skip
        (tmp_path / "nan.json").write_text("[NaN, 1, 2, 3, 4, 5]")
        with pytest.raises(kamado.InvalidRequest, match=says):
            model.generate("hello", voice=tmp_path / file)


def test_a_recipe_opens_no_file(runtime: kamado.Runtime, tmp_path: Path) -> None:
    """A voice may be a file; in a stranger's recipe it may be numbers or a name alone."""
    folder, _ = write_speecht5(tmp_path / "t5")
    write_vocoder(folder / "vocoder")
    (path,) = runtime.load(folder).generate("hello", seed=1, voice=VOICE, max_length=2).save(tmp_path / "x.wav")
    assert kamado.replay(path, runtime=runtime, model=folder).equal
    recipe = read_recipe(path)
    for name, value in (("voice", str(tmp_path / "v.JSON")), ("speaker", "~/v.npy")):
        options = {key: each for key, each in recipe["options"].items() if key != "voice"} | {name: value}
        save_sound(open_sound(path), tmp_path / "y.wav", {**recipe, "options": options})
        with pytest.raises(kamado.InvalidRequest, match=f"an option '{name}', which no recipe may have"):
            kamado.replay(tmp_path / "y.wav", runtime=runtime, model=folder)


def test_batches_find_voices_beside_their_lines(runtime: kamado.Runtime, tmp_path: Path) -> None:
    takes = SpeechT5Kind().options(runtime.inspect(write_speecht5(tmp_path / "t5")[0]))
    answers = MediaAnswers(tmp_path / "out", tmp_path, "audio", takes)
    (tmp_path / "ann.json").write_text(json.dumps(VOICE))
    assert answers.options({"id": 1, "prompt": "hi", "speaker": "ann.json"}) == {"prompt": "hi", "voice": tuple(VOICE)}
    assert answers.options({"id": 1, "prompt": "hi", "voice": "ann"})["voice"] == "ann"


def test_files_that_commands_name_are_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = write_speecht5(tmp_path / "t5")
    write_vocoder(folder / "vocoder")
    (tmp_path / "ann.json").write_text(json.dumps(VOICE))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "lines.jsonl").write_text('{"id": 1, "prompt": "hello"}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KAMADO_HOME", str(tmp_path / "home"))
    command, few = typed(monkeypatch, capsys), ("--option", "max_length=2", "--device", "cpu")
    done = command("grid", str(folder), "hello", "-o", "out", "--axis", "voice=ann.json", *few)
    assert done.status == 0, done.err
    done = command("batch", str(folder), "in/lines.jsonl", "-o", "made", "--voice", "ann.json", *few)
    assert done.status == 0, done.err
    takes = Options(what="", checks={"voice": anything}, inputs={"voice": "audio"})
    given = Given(media={"voice": "ann.wav"})
    assert options_for(Abilities(makes=["audio"], takes=takes), "x", given) == ("media", {"voice": Path("ann.wav")})


def test_damaged_arrays_are_refused(tmp_path: Path) -> None:
    for header in (b"{[]: 1}", b"-" * 9000 + b"1", b"(" * 9000, b"{'descr': '<f4', 'shape': (9,)"):
        data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n"
        with pytest.raises(ValueError):
            parse_npy(data)
    packed = io.BytesIO()
    numpy.savez_compressed(packed, voice=numpy.arange(9000) % 97)
    data = packed.getvalue()
    (tmp_path / "x.npz").write_bytes(data[:120] + b"\xff" * 40 + data[160:])
    with pytest.raises(ValueError, match="no archive of arrays"):
        read_npz(tmp_path / "x.npz", ["voice"])


def test_a_vocoder_that_wants_its_own_code_run(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder, _ = write_speecht5(tmp_path / "t5")
    write_vocoder(folder / "vocoder")
    path = folder / "vocoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_attn_implementation": "someone/kernels"}))
    with pytest.raises(kamado.UnsafeCheckpoint, match="vocoder wants its own code run"):
        runtime.plan(folder)


def test_without_a_vocoder_or_with_another(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder, _ = write_speecht5(tmp_path / "t5")
    with pytest.raises(
        kamado.InvalidRequest, match=r"needs a component vocoder.*--component vocoder=MODEL, like vocoder=micro"
    ):
        runtime.load(folder)
    with pytest.raises(kamado.InvalidRequest, match="takes 9 mel bins"):
        runtime.load(folder, components={"vocoder": write_vocoder(tmp_path / "wide", 9)[0]})
    with pytest.raises(kamado.InvalidRequest, match="is no vocoder"):
        runtime.load(folder, components={"vocoder": folder})
    with pytest.raises(kamado.InvalidRequest, match="takes vocoder from elsewhere, and no vae"):
        runtime.load(folder, components={"vae": folder})
    assert runtime.stats()["held_bytes"] == 0


def test_in_a_crowd_and_after_leaving_memory(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder, _ = write_speecht5(tmp_path / "t5")
    shutil.copytree(write_vocoder(tmp_path / "hifigan")[0], folder / "vocoder")
    model = runtime.load(folder)
    requests = [{"prompt": "Hello. You", "seed": seed, "voice": VOICE, "max_length": 4} for seed in range(3)]
    alone = [model.generate(**request).audio for request in requests]
    crowd = model.generate_many(requests)
    for one, many in zip(alone, crowd, strict=True):
        assert one.shape == many.audio.shape and numpy.abs(one - many.audio).max() < 1e-4
