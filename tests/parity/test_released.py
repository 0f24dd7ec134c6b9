"""What is over is gone at once: the library's pipelines, and who made them, are not left to the garbage collector."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kamado
import tiny_pipelines as tiny
from kamado_models.diffusion import pipelines
from kamado_models.diffusion.task import PictureTask


@pytest.fixture
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Any]]:
    """Every picture's task, and every pipeline that was made for one."""
    found: list[weakref.ref[Any]] = []
    begin, make = PictureTask.__init__, pipelines.PipelineFactory.make

    def noted(self: PictureTask, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        found.append(weakref.ref(self))

    def making(self: pipelines.PipelineFactory, *args: Any, **kwargs: Any) -> Any:
        pipeline = make(self, *args, **kwargs)
        found.append(weakref.ref(pipeline))
        return pipeline

    monkeypatch.setattr(PictureTask, "__init__", noted)
    monkeypatch.setattr(pipelines.PipelineFactory, "make", making)
    return found


@pytest.mark.parametrize(("name", "further"), [("sd15", {"tiling": True, "preview_every": 1}), ("kandinsky22", {})])
def test_finished_requests_leave_nothing(
    name: str,
    further: dict[str, Any],
    folders: dict[str, Path],
    runtime: kamado.Runtime,
    seen: list[weakref.ref[Any]],
    uncollected: None,
) -> None:
    model = runtime.load(folders[name])
    seen.clear()
    for seed in range(10):
        request = {**tiny.arguments(name), "num_inference_steps": 1, "seed": seed, **further}
        result = model.generate(**request)
        assert result.pixels[0].ndim == 3
        assert result.recipe["options"]["seed"] == seed
    del result
    assert len(seen) == 20
    assert sum(each() is not None for each in seen) <= 2, "more than the last one"


def test_one_that_failed_or_was_cancelled_leaves_nothing(
    folders: dict[str, Path], runtime: kamado.Runtime, seen: list[weakref.ref[Any]], uncollected: None
) -> None:
    model = runtime.load(folders["sd15"])
    seen.clear()
    job = model.submit(**tiny.arguments("sd15") | {"num_inference_steps": 500})
    for event in job.events():
        if type(event).__name__ == "Progress":
            job.cancel()
            break
    with pytest.raises(kamado.KamadoError):
        job.result()
    del job, event
    model.generate(**tiny.arguments("sd15"), seed=1)
    assert sum(each() is not None for each in seen) <= 2
