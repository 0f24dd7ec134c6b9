"""Requests for several answers of which some fail: the others are there, with their numbers and seeds."""

from __future__ import annotations

from typing import Any

import numpy
import pytest

import kamado
import tiny
import tiny_pipelines
from kamado.tasks.text import TextTask
from kamado_models.diffusion.task import PictureTask
from tiny_pipelines import Folders

REQUEST: dict[str, Any] = {"prompt": tiny_pipelines.PROMPTS[0], "steps": 3, "guidance": 2.0, "seed": 7}


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> dict[int, Any]:
    """By the number of the picture: what to raise when it is nearly done, or None for NaN."""
    faults: dict[int, Any] = {}
    whole = PictureTask._output

    def output(self: PictureTask, *args: Any) -> Any:
        made = whole(self, *args)
        if (fault := faults.get(self.index, made)) is None:
            made.images[...] = numpy.nan
        elif isinstance(fault, Exception):
            raise fault
        return made

    monkeypatch.setattr(PictureTask, "_output", output)
    return faults


@pytest.fixture
def model(runtime: kamado.Runtime, folders: Folders) -> kamado.Model:
    return runtime.load(folders["sd15"])


def test_pictures_beside_one_that_is_nan_and_one_that_breaks(
    runtime: kamado.Runtime, model: kamado.Model, faults: dict[int, Any]
) -> None:
    whole = model.generate(**REQUEST, n=4)
    before = runtime.stats()["ledger"]
    faults |= {0: None, 2: RuntimeError("a kernel failed")}
    job = model.submit(**REQUEST, n=4)
    result = job.result()
    assert result is job.result() and result.seeds == (8, 10) and result.indices == (1, 3)
    assert [(failure.index, failure.seed) for failure in result.failures] == [(0, 7), (2, 9)]
    nan, broken = (failure.error for failure in result.failures)
    assert isinstance(nan, kamado.GenerationFailed) and "NaN" in str(nan)
    assert isinstance(broken, kamado.GenerationFailed) and "a kernel failed" in str(broken)
    assert result.notes == result.failure_notes and result.notes[0].startswith("picture 1 of 4 (seed 7) was not made: ")
    for pixels, image, index in zip(result.pixels, result.images, result.indices, strict=True):
        assert numpy.abs(pixels - whole.pixels[index]).max() < 1e-4
        assert numpy.abs(numpy.asarray(image) / 255 - whole.pixels[index]).max() < 1e-2
    assert result.recipe_of(1)["options"]["seed"] == 10
    assert runtime.stats()["queued"] == 0 and runtime.stats()["ledger"] == before


def test_nothing_made_is_the_first_error(model: kamado.Model, faults: dict[int, Any]) -> None:
    faults |= {0: RuntimeError("zero"), 1: RuntimeError("one")}
    with pytest.raises(kamado.GenerationFailed, match="zero"):
        model.generate(**REQUEST, n=2)
    outcomes = dict(model.map([{**REQUEST, "n": 3}, REQUEST]))
    assert isinstance(outcomes[0], kamado.Result) and outcomes[0].indices == (2,)
    assert isinstance(outcomes[1], kamado.GenerationFailed)


def test_a_deadline_is_raised_whatever_was_made(model: kamado.Model, faults: dict[int, Any]) -> None:
    faults[1] = kamado.DeadlineExceeded("late")
    with pytest.raises(kamado.DeadlineExceeded):
        model.generate(**REQUEST, n=3)


def test_texts_beside_one_that_fails(runtime: kamado.Runtime, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = runtime.load(tiny.build("llama", tmp_path / "llama"), kv_tokens=256)
    request = {"prompt_tokens": [5, 9, 40], "max_tokens": 6, "temperature": 1.0, "seed": 3, "ignore_eos": True}
    whole = model.generate(**request, n=3)
    advance = TextTask._advance

    def broken(self: TextTask, drawn: Any) -> Any:
        if self.sequence.index == 1 and self.sequence.num_made == 2:
            raise RuntimeError("no such character")
        return advance(self, drawn)

    monkeypatch.setattr(TextTask, "_advance", broken)
    result = model.generate(**request, n=3)
    assert result.choices == (whole.choices[0], whole.choices[2])
    (failure,) = result.failures
    assert (failure.index, failure.seed) == (1, None) and "no such character" in str(failure.error)
    assert result.notes == result.failure_notes and result.notes[0].startswith("answer 2 of 3 was not made: ")
    assert result.usage.completion_tokens == 6 + 2 + 6
    assert runtime.stats()["queued"] == 0
