"""Models that speak in latents or codes: with part of their weights elsewhere, and in halves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

import kamado

from .tiny_higgs import write_higgs
from .tiny_pocket import write_pocket
from .tiny_vibevoice import write_vibevoice

WRITERS = (write_higgs, write_pocket, write_vibevoice)
VOICE = (0.3 * numpy.sin(numpy.arange(3000) / 9)).astype(numpy.float32)
Writer = Callable[[Path], tuple[Path, Any, Any]]


def asked(write: Writer) -> dict[str, Any]:
    words = {"voice_text": "so it goes"} if write is write_higgs else {}
    return {"prompt": "hello there", "seed": 1, "voice": (VOICE, 24_000), **words}


@pytest.mark.parametrize("write", WRITERS)
def test_with_weights_outside_of_the_budget(runtime: kamado.Runtime, tmp_path: Path, write: Writer) -> None:
    folder = write(tmp_path / "model")[0]
    expected = runtime.load(folder).generate(**asked(write)).audio
    plan = runtime.plan(folder)
    with kamado.Runtime(device="cpu", memory=plan.minimum_bytes - plan.weight_bytes // 8) as small:
        assert 0 < small.plan(folder).outside_bytes < plan.weight_bytes
        found = small.load(folder).generate(**asked(write)).audio
    assert found.shape == expected.shape and numpy.abs(found - expected).max() < 1e-4


@pytest.mark.parametrize("write", WRITERS)
def test_recordings_are_in_the_plan(runtime: kamado.Runtime, tmp_path: Path, write: Writer) -> None:
    """A minute of sound, in as many channels as the encoder begins with."""
    channels = {write_higgs: 4, write_pocket: 4, write_vibevoice: 2}[write]
    lane = "backbone" if write is write_vibevoice else "codec"
    planned = {each.lane: each.activation_bytes for each in runtime.plan(write(tmp_path / "model")[0]).lanes}
    assert planned[lane] >= 60 * 24_000 * channels * 4


@pytest.mark.parametrize("write", WRITERS)
def test_in_halves(runtime: kamado.Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Writer) -> None:
    """As on devices that are fast at them."""
    monkeypatch.setattr("kamado_models.library.family._dtype", lambda checkpoint, options: "bfloat16")
    model = runtime.load(write(tmp_path / "model")[0])
    assert "bfloat16" in {lane.dtype for lane in model.plan.lanes}
    result = model.generate(**asked(write))
    assert numpy.isfinite(result.audio).all() and result.audio.std() > 0
