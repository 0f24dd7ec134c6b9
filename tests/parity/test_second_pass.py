"""The second pass is what diffusers' own image-to-image pipeline makes of the enlarged picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

import kamado
import tiny_pipelines as tiny
from kamado.errors import InvalidRequest
from kamado.events import Media, Preview, Progress

LARGEST_DIFFERENCE = 1e-4


def _wanted(folder: Path, name: str, request: dict[str, Any], size: tuple[int, int], **second: Any) -> Any:
    """The picture of two calls of diffusers' pipelines."""
    (first,) = tiny.call(tiny.load(folder), **request)
    picture = Image.fromarray((first * 255).round().astype(numpy.uint8)).resize(size, Image.Resampling.LANCZOS)
    kind = tiny.PIPELINES[name].siblings["img2img"]
    known = tiny.parameters(kind)
    again = {**request, **second, "image": picture} | dict(zip(("width", "height"), size, strict=True))
    pipeline = tiny.load(folder, pipeline_class=kind)
    return tiny.call(pipeline, **{key: value for key, value in again.items() if key in known or key == "seed"})[0]


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3", "flux"])
def test_two_passes(name: str, folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    request = {**tiny.arguments(name), "height": 64, "width": 32, "seed": 5}
    second = {"strength": 0.6, "num_inference_steps": 5}
    wanted = _wanted(folders[name], name, request, (48, 96), **second)
    model = runtime.load(folders[name])
    hires = {"hires": 1.5, "hires_strength": 0.6, "hires_steps": 5}
    jobs = [model.submit(**request, **hires), model.submit(**request)]
    result, plain = [job.result() for job in jobs]
    assert result.images[0].size == (48, 96)
    assert plain.images[0].size == (32, 64)
    assert numpy.abs(result.pixels[0] - wanted).max() < LARGEST_DIFFERENCE
    assert {name: result.recipe["options"][name] for name in hires} == hires
    again = model.generate(**result.recipe["options"], **_unnamed(request, result))
    assert numpy.array_equal(again.pixels[0], result.pixels[0])


def _unnamed(request: dict[str, Any], result: kamado.Result) -> dict[str, Any]:
    """What recipes do not hold."""
    names = {"num_inference_steps": "steps", "negative_prompt": "negative"}
    return {key: value for key, value in request.items() if names.get(key, key) not in result.recipe["options"]}


def test_defaults_weights_previews_and_progress(folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    model = runtime.load(folders["sd15"])
    request = {**tiny.arguments("sd15"), "scheduler": "euler", "seed": 5, "n": 2, "prompt": "a (cat:1.2)"}
    events = list(model.stream(**request, weighting="a1111", hires=2.0, preview_every=1))
    for index in (0, 1):
        steps = [(each.step, each.total) for each in events if isinstance(each, Progress) and each.index == index]
        assert steps == [(step, 6) for step in range(1, 7)], "4 steps, and the half of 4"
        shown = [each.image.size for each in events if isinstance(each, Preview) and each.index == index]
        assert shown == [(64, 64)] * 4 + [(128, 128)] * 2
    pictures = [event.data for event in events if isinstance(event, Media)]
    assert [picture.size for picture in pictures] == [(128, 128)] * 2
    assert numpy.asarray(pictures[0]).tobytes() != numpy.asarray(pictures[1]).tobytes()


def test_sizes_are_whole_multiples(folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    model = runtime.load(folders["sd15"])
    assert model.generate(**tiny.arguments("sd15"), seed=1, hires=1.3).images[0].size == (80, 80)


def test_what_the_second_pass_does_not_take_is_told(folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    model = runtime.load(folders["sd15"])
    result = model.generate(**tiny.arguments("sd15"), seed=1, hires=2.0, guidance_rescale=0.2)
    assert result.notes == ("the second pass takes no guidance_rescale",)


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("sd15", {"hires_strength": 0.3}, "give hires too"),
        ("sd15", {"hires": 1.0}, "hires must be above 1"),
        ("sd15", {"hires": 2.0, "hires_steps": 1}, "hires_steps=3"),
        ("sd15", {"hires": 8.0, "width": 2048, "height": 2048}, "a picture of 16384 x 16384 needs"),
        ("ddpm", {"hires": 2.0}, "takes no picture"),
        ("flux-kontext", {"hires": 2.0}, "takes no strength"),
        ("sd15-inpaint", {"hires": 2.0}, "takes a mask"),
    ],
)
def test_what_cannot_be(
    name: str, options: dict[str, Any], error: str, folders: dict[str, Path], runtime: kamado.Runtime
) -> None:
    with pytest.raises(InvalidRequest, match=error):
        runtime.load(folders[name]).submit(**tiny.arguments(name) | options, seed=1)
