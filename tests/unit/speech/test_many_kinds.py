"""Speech and music in one process, from the command line, and in files that other programs open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import soundfile

import kamado
from kamado.cli.main import main
from unit.music.test_symbolic import write_composer
from unit.music.tiny_music import write_musicgen

from .tiny_codec_models import write_csm, write_dia, write_fastspeech2
from .tiny_higgs import write_higgs
from .tiny_pocket import write_pocket
from .tiny_speech import write_bark, write_speecht5, write_vits, write_vocoder
from .tiny_vibevoice import write_vibevoice

VOICE = [0.1, -0.2, 0.3, 0.0, 0.5, -0.6]


def test_beside_each_other_as_alone(runtime: kamado.Runtime, tmp_path: Path) -> None:
    speecht5 = write_speecht5(tmp_path / "t5")[0]
    write_vocoder(speecht5 / "vocoder")
    asked: list[tuple[Path, dict[str, Any]]] = [
        (write_vits(tmp_path / "vits")[0], {"prompt": "Hello there. You", "seed": 1}),
        (speecht5, {"prompt": "Hello. You", "seed": 2, "voice": VOICE, "max_length": 5}),
        (write_bark(tmp_path / "bark")[0], {"prompt": "hello", "seed": 3}),
        (write_dia(tmp_path / "dia")[0], {"prompt": "hello there", "seed": 6, "max_tokens": 12}),
        (write_csm(tmp_path / "csm")[0], {"prompt": "hello", "seed": 7}),
        (write_higgs(tmp_path / "higgs")[0], {"prompt": "hello", "seed": 9, "temperature": 1.0}),
        (write_pocket(tmp_path / "pocket")[0], {"prompt": "Hello there. You", "seed": 10, "preset": "bob"}),
        (write_vibevoice(tmp_path / "vibe")[0], {"prompt": "hello there", "seed": 11}),
        (write_fastspeech2(tmp_path / "fast")[0], {"phonemes": "HH AH0 L OW1", "speed": 0.8, "seed": 8}),
        (write_musicgen(tmp_path / "musicgen")[0], {"prompt": "a slow tune", "seed": 4, "seconds": 0.1}),
        (write_composer(tmp_path / "composer")[0], {"seed": 5, "max_tokens": 20}),
    ]
    models = [runtime.load(folder) for folder, _ in asked]
    alone = [model.generate(**options) for model, (_, options) in zip(models, asked, strict=True)]
    jobs = [model.submit(**options) for model, (_, options) in zip(models, asked, strict=True) for _ in range(2)]
    for number, job in enumerate(jobs):
        found, expected = job.result(), alone[number // 2]
        assert not found.failures
        if expected.audio is None:
            assert found.outputs == expected.outputs
        else:
            assert found.audio.shape == expected.audio.shape
            assert numpy.abs(found.audio - expected.audio).max() < 1e-4


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_the_command_line_writes_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setenv("KAMADO_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    folder = write_speecht5(tmp_path / "t5")[0]
    vocoder = write_vocoder(tmp_path / "hifigan")[0]
    (tmp_path / "voice.json").write_text(json.dumps(VOICE))
    common = ("--device", "cpu", "--seed", "3", "--voice", "voice.json", "--component", f"vocoder={vocoder}")
    assert main(["run", str(folder), "Hello. You", "-o", f"said{suffix}", *common]) == 0
    samples, rate = soundfile.read(tmp_path / f"said{suffix}")
    assert rate == 8000 and len(samples) > 1600 and numpy.isfinite(samples).all()


def test_the_command_line_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KAMADO_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    folder = write_vits(tmp_path / "vits", speakers=2)[0]
    for arguments, says in (
        (("hello", "--voice", "eve"), "has no voice 'eve'; it has 0, 1"),
        (("hello", "--temperature", "1"), "cannot be used with"),
        (("hello", "-o", "x.png"), "this makes audio files, which end in .wav"),
        (("",), "PROMPT"),
    ):
        status = main(["run", str(folder), *arguments, "--device", "cpu"])
        told = capsys.readouterr().err
        assert status == 2 and says in " ".join(told.split()), told
        assert not list(tmp_path.glob("*.wav")) and not (tmp_path / "x.png").exists()
