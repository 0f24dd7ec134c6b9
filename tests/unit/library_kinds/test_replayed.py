"""A sound of a library kind, made again from the recipe in its file; and a grid of such sounds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
import soundfile

import kamado
import kamado.api
import kamado.families
import kamado.media.recipes
import kamado.media.sounds
import kamado.replaying
from kamado.errors import InvalidRequest
from typed import typed

from .toy_kind import FAMILY, write_checkpoint


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[kamado.Runtime]:
    monkeypatch.setenv("KAMADO_HOME", str(tmp_path / "home"))
    for module in (kamado.api, kamado.families, kamado.replaying):
        monkeypatch.setattr(module, "find", lambda checkpoint: FAMILY)
    with kamado.Runtime(device="cpu", memory="1GiB") as found:
        yield found


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_a_sound_is_made_again(runtime: kamado.Runtime, tmp_path: Path, suffix: str) -> None:
    folder = write_checkpoint(tmp_path / "hum")
    (path,) = runtime.load(folder).generate("la la", seed=5, steps=2).save(tmp_path / f"x{suffix}")
    done = kamado.replay(path, runtime=runtime, model=folder)
    assert (done.equal, done.differences, done.path.name) == (True, (), f"x-replay{suffix}")
    samples, rate = soundfile.read(path, dtype="int16")
    changed = samples.copy()
    changed[3] += 5
    recipe = kamado.media.recipes.read_recipe(path)
    edited = kamado.Audio(samples=changed[None].astype(numpy.float32) / 32768, sample_rate=rate)
    kamado.media.sounds.save_sound(edited, path, recipe)
    other = kamado.replay(path, runtime=runtime, model=folder)
    assert (other.equal, other.as_expected, other.comparison.different, other.comparison.largest) == (
        False,
        False,
        1,
        5,
    )


def test_a_grid_of_sounds(runtime: kamado.Runtime, tmp_path: Path) -> None:
    model = runtime.load(write_checkpoint(tmp_path / "hum"))
    grid = kamado.grid(model, {"prompt": ["la", "la la la"], "seed": [1, 2], "steps": [1, 2]})
    index = json.loads((grid.save(tmp_path / "out") / "index.json").read_text())
    assert [cell["files"] for cell in index["cells"]] == [[f"media/{number:04d}.wav"] for number in range(1, 9)]
    found = grid.at(prompt="la la la", seed=2, steps=1).result
    alone = model.generate("la la la", seed=2, steps=1)
    assert found is not None and numpy.allclose(found.audio, alone.audio, atol=1e-6)
    with pytest.raises(InvalidRequest, match="takes no voice"):
        kamado.grid(model, {"seed": [1]}, prompt="la", voice="bob")


def test_as_commands(
    runtime: kamado.Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command, folder, out = typed(monkeypatch, capsys), str(write_checkpoint(tmp_path / "hum")), tmp_path / "out"
    args = ("grid", folder, "-o", str(out), "--axis", 'prompt=["la", "la la"]', "--axis", "seed=1,2", "--steps", "2")
    done = command(*args, "--deterministic", "--format", "flac")
    assert (done.status, done.out) == (0, f"{out / 'sheet-001.png'}\n"), done.err
    index = json.loads((out / "index.json").read_text())
    assert [cell["files"] for cell in index["cells"]] == [[f"media/{number:04d}.flac"] for number in range(1, 5)]
    foreign = command(*args[:-2], "--axis", "voice=bob,eve")
    assert foreign.status == 2 and "--axis voice: --voice cannot be used with" in foreign.err
    again = command("replay", str(out / "media" / "0003.flac"), "--model", folder)
    assert again.status == 0 and "equal: every sample is that of" in again.err
    assert (out / "media" / "0003-replay.flac").exists()
