"""Models that libraries' own code runs, on a CUDA device: what they make on the CPU, and every byte given back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

import kamado
import tiny_autoencoders
import tiny_hearing
import tiny_vectors
import tiny_vision
from kamado.results import Result

DEVICE = "cuda"
OTHER_SUMS = 5e-3
"""Largest difference of a value of about 1 from the CPU's: other orders of summation, through small networks."""


def _picture() -> Image.Image:
    ramp = numpy.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3)
    return Image.fromarray(numpy.uint8(ramp % 200))


def _vectors(folder: Path) -> Path:
    tiny_vectors.build("bert", "Model", folder)
    return folder


def _masked(folder: Path) -> Path:
    tiny_vectors.build("bert", "ForMaskedLM", folder)
    return folder


def _numbers(result: Result) -> Any:
    """What is compared, as numbers of about 1."""
    if result.embedding is not None:
        return result.embedding / numpy.abs(result.embedding).max()
    if result.scores:
        return [item.score for item in result.scores]
    if result.audio is not None:
        return result.audio
    return numpy.asarray(result.images[0].convert("RGB"), numpy.float32) / 255


SOUND = (tiny_hearing.recording(2.0), tiny_hearing.RATE)
KINDS: Mapping[str, tuple[Callable[[Path], Path], Mapping[str, Any]]] = {
    "embedding": (_vectors, {"prompt": " ".join(tiny_vectors.WORDS[:5])}),
    "fill-mask": (_masked, {"prompt": f"{tiny_vectors.WORDS[0]} [MASK] {tiny_vectors.WORDS[1]}"}),
    "depth": (lambda folder: tiny_vision.build("dpt", folder), {"image": _picture()}),
    "autoencoder": (
        lambda folder: tiny_autoencoders.saved("AutoencoderKL", folder)[0],
        {"image": _picture(), "task": "reconstruct"},
    ),
}


@pytest.mark.gpu
@pytest.mark.parametrize("name", KINDS)
def test_outputs_are_those_of_the_cpu(name: str, tmp_path: Path) -> None:
    build, request = KINDS[name]
    folder = build(tmp_path / name)
    with kamado.Runtime(device="cpu", memory="2GiB") as runtime:
        wanted = _numbers(runtime.load(folder).generate(**request, seed=1))
    with kamado.Runtime(device=DEVICE, memory="2GiB") as runtime:
        model = runtime.load(folder, dtype="float32")
        found = [_numbers(result) for result in model.generate_many([{**request, "seed": 1}] * 3)]
        model.unload()
        assert runtime.stats()["held_bytes"] == 0
    for each in found:
        assert numpy.allclose(each, wanted, atol=OTHER_SUMS)


@pytest.mark.gpu
@pytest.mark.parametrize("build", [tiny_hearing.whisper, lambda folder: tiny_hearing.ctc("wav2vec2", folder)])
def test_what_is_heard_is_what_the_cpu_hears(build: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = build(tmp_path / "model")
    with kamado.Runtime(device="cpu", memory="2GiB") as runtime:
        wanted = runtime.load(folder).generate(audio=SOUND).text
    with kamado.Runtime(device=DEVICE, memory="2GiB") as runtime:
        assert runtime.load(folder, dtype="float32").generate(audio=SOUND).text == wanted
