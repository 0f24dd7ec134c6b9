"""Pictures are those that diffusers' own pipelines make: alone, and while other requests share their forwards."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

import kamado
import tiny_pipelines as tiny

LARGEST_DIFFERENCE = 1e-4
NO_PICTURES = {"wan", "sd15-checked"}
"""One makes a video; one has a safety checker, which takes some of its pictures away."""
NAMES = sorted(set(tiny.PIPELINES) - NO_PICTURES)
GENTLE = {"qwen-image"}
"""Its random weights blow rounding errors up, most so where guidance is strong."""


def _requests(name: str, sibling: str | None = None) -> list[dict[str, Any]]:
    """Three requests with different prompts, steps and seeds, one of them with other guidance."""
    spec = tiny.PIPELINES[name]
    known = tiny.parameters(spec.siblings[sibling] if sibling else spec.class_name)
    found = []
    for index in range(3):
        request = tiny.arguments(name, sibling, prompt=index)
        if "num_inference_steps" in known:
            request["num_inference_steps"] = request.get("num_inference_steps", 3) + index
        for guidance in ("guidance_scale", "true_cfg_scale"):
            if name in GENTLE and request.get(guidance):
                request[guidance] = 1.5
        if index == 2 and "guidance_scale" in request:
            request["guidance_scale"] = request["guidance_scale"] + (0.2 if name in GENTLE else 1.5)
        if index == 1 and "negative" in spec.takes and "negative_prompt" in known:
            request["negative_prompt"] = tiny.NEGATIVE
        found.append({**request, "seed": 10 + index})
    return found


def _largest_difference(result: kamado.Result, wanted: Any) -> float:
    assert len(result.pixels) == 1
    assert result.pixels[0].shape == wanted[0].shape
    return float(numpy.abs(result.pixels[0] - wanted[0]).max())


def _cases() -> Iterator[Any]:
    for name in NAMES:
        yield pytest.param(name, None, id=name)
        for sibling in tiny.PIPELINES[name].siblings:
            if not sibling.startswith("control"):
                yield pytest.param(name, sibling, id=f"{name}-{sibling}")


@pytest.mark.parametrize(("name", "sibling"), _cases())
def test_alone_and_in_a_mixed_batch(
    name: str, sibling: str | None, folders: dict[str, Path], runtime: kamado.Runtime
) -> None:
    spec = tiny.PIPELINES[name]
    pipeline = tiny.load(folders[name], pipeline_class=spec.siblings[sibling] if sibling else None)
    scheduler = getattr(pipeline, "scheduler", None)
    requests = _requests(name, sibling)
    wanted = []
    for request in requests:
        if scheduler is not None:
            pipeline.scheduler = type(scheduler).from_config(scheduler.config)
        wanted.append(tiny.call(pipeline, **request))
    model = runtime.load(folders[name])
    jobs = [model.submit(**request) for request in requests]
    for job, picture in zip(jobs, wanted, strict=True):
        assert _largest_difference(job.result(), picture) < LARGEST_DIFFERENCE
    for request, picture in zip(requests, wanted, strict=True):
        result = model.generate(**request)
        assert _largest_difference(result, picture) < LARGEST_DIFFERENCE
    assert result.recipe["pipeline"] == type(pipeline).__name__
    compared = runtime.stats()["models"][model.owner]["compared"]
    assert all(compared.values()), f"not joined: {compared}"


@pytest.mark.parametrize("name", NAMES)
def test_equal_requests_of_other_seeds_share_every_step(
    name: str, folders: dict[str, Path], runtime: kamado.Runtime
) -> None:
    model = runtime.load(folders[name])
    model.generate(**tiny.arguments(name), seed=0, n=4)
    lanes = {lane.rpartition("/")[2]: stats for lane, stats in runtime.stats()["lanes"].items()}
    (denoiser,) = lanes.keys() & {"unet", "transformer"}
    assert lanes[denoiser]["mean_batch"] == 4


def test_a_recipe_holds_what_was_asked(folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    model = runtime.load(folders["dit"])
    first = model.generate(class_labels=[2], steps=2, seed=4)
    again = model.generate(**first.recipe["options"])
    assert numpy.array_equal(first.pixels[0], again.pixels[0])


def test_a_pipeline_that_changes_its_models_runs_by_itself(
    folders: dict[str, Path], runtime: kamado.Runtime, tmp_path: Path
) -> None:
    """Perturbed-attention guidance puts other attention into the UNet for the time of a call."""
    folder = shutil.copytree(folders["sd15"], tmp_path / "pag")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusionPAGPipeline"}))
    requests = [{**request, "pag_scale": 2.0} for request in _requests("sd15")]
    wanted = [tiny.oracle(folder, **request) for request in requests]
    model = runtime.load(folder)
    assert "one at a time" in model.info["batching"]
    for job, picture in zip([model.submit(**request) for request in requests], wanted, strict=True):
        assert _largest_difference(job.result(), picture) < LARGEST_DIFFERENCE


def test_every_pipeline_takes_what_its_call_names() -> None:
    """The names of options here are those of the pipelines' own calls."""
    import diffusers

    for name in NAMES:
        kind = getattr(diffusers, tiny.PIPELINES[name].class_name)
        assert inspect.signature(kind.__call__).parameters.keys() >= tiny.arguments(name).keys() - {"prompt"}
