"""Calls of the denoiser that are left out: how many, for whom, and what that costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest

import kamado
import tiny_pipelines as tiny
from kamado.errors import InvalidRequest
from kamado.events import Progress

SAMPLE = Path(__file__).parents[2] / "models/kamado_models/samples/emoji-diffusion-64"
CALLS = {"sd15": 1, "flux": 1, "qwen-image": 2, "z-image": 1}
"""Of the denoiser in a step: guidance makes one call of two rows, or two calls."""


def _counted(result: kamado.Result) -> tuple[int, int]:
    """(left out, all) calls, by the note."""
    (note,) = result.notes
    words = note.split()
    assert note == f"step_cache left out {words[3]} of {words[5]} calls of the denoiser"
    return int(words[3]), int(words[5])


def _closeness(result: kamado.Result, other: kamado.Result) -> float:
    """PSNR in dB."""
    return float(-10 * numpy.log10(((result.pixels[0] - other.pixels[0]) ** 2).mean()))


@pytest.mark.parametrize("name", sorted(CALLS))
def test_a_tiny_threshold_changes_nothing_and_a_large_one_leaves_only_the_ends(
    name: str, folders: dict[str, Path], runtime: kamado.Runtime
) -> None:
    model = runtime.load(folders[name])
    request = {**tiny.arguments(name), "num_inference_steps": 5, "seed": 3}
    if name == "sd15":
        request["scheduler"] = "ddim"
    plain = model.generate(**request)
    exact, coarse = (model.generate(**request, step_cache=threshold) for threshold in (1e-9, 10.0))
    assert numpy.array_equal(exact.pixels[0], plain.pixels[0])
    assert _counted(exact) == (0, 5 * CALLS[name])
    assert _counted(coarse) == (3 * CALLS[name], 5 * CALLS[name])
    assert not numpy.array_equal(coarse.pixels[0], plain.pixels[0])
    assert coarse.recipe["options"]["step_cache"] == 10.0


def test_what_is_left_out_is_no_forward(folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    model = runtime.load(folders["sd15"])
    forwards: list[int] = []
    unet = model.loaded._workshop.factory.models["unet"]  # type: ignore[attr-defined]
    hook = unet.register_forward_hook(lambda module, args, output: forwards.append(1))
    request = {**tiny.arguments("sd15"), "num_inference_steps": 6, "scheduler": "ddim", "seed": 3}
    events = list(model.stream(**request, step_cache=10.0))
    hook.remove()
    assert len(forwards) == 2
    assert [(e.step, e.total) for e in events if isinstance(e, Progress)] == [(step, 6) for step in range(1, 7)]


def test_requests_keep_their_own(folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    model = runtime.load(folders["sd15"])
    base = {**tiny.arguments("sd15"), "scheduler": "ddim", "num_inference_steps": 5}
    requests: list[dict[str, Any]] = [
        {**base, "seed": 1, "step_cache": 10.0},
        {**base, "seed": 2},
        {**base, "seed": 3, "step_cache": 10.0, "prompt": "a dog"},
    ]
    alone = [model.generate(**request) for request in requests]
    for job, other in zip([model.submit(**request) for request in requests], alone, strict=True):
        assert numpy.abs(job.result().pixels[0] - other.pixels[0]).max() < 1e-4
        assert job.result().notes == other.notes


def test_both_passes_are_counted_together(folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    request = {**tiny.arguments("sd15"), "num_inference_steps": 6, "scheduler": "ddim", "seed": 3}
    result = runtime.load(folders["sd15"]).generate(**request, hires=2.0, step_cache=10.0)
    assert _counted(result) == (4 + 1, 6 + 3)


def test_a_trained_model_loses_as_much_as_the_guide_says(runtime: kamado.Runtime) -> None:
    model = runtime.load(str(SAMPLE))
    request = {"prompt": "a panda", "steps": 25, "guidance": 1.5, "seed": 0}
    whole = model.generate(**request)
    for threshold, left_out, decibels in ((0.05, 1, 52), (0.1, 11, 40), (0.2, 16, 34)):
        result = model.generate(**request, step_cache=threshold)
        assert _counted(result)[0] >= left_out
        assert _closeness(result, whole) > decibels


@pytest.mark.parametrize(
    ("name", "threshold", "error"),
    [
        ("sd15", 0, "step_cache must be above 0"),
        ("sd15", 11, "at most 10"),
        ("kandinsky22", 0.1, None),
    ],
)
def test_what_cannot_be(
    name: str, threshold: float, error: str | None, folders: dict[str, Path], runtime: kamado.Runtime
) -> None:
    model = runtime.load(folders[name])
    if error is None:
        assert _counted(model.generate(**tiny.arguments(name), seed=3, step_cache=threshold))[1] > 0
        return
    with pytest.raises(InvalidRequest, match=error):
        model.submit(**tiny.arguments(name), step_cache=threshold)
