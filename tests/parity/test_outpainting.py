"""Pictures that grow, and pictures that are varied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

import kamado
import tiny_pipelines as tiny
from kamado.errors import InvalidRequest

LARGEST_DIFFERENCE = 1e-4
CLEAR = 0.01
GROWN = {"left": 16, "bottom": 32, "feather": 8}
OLD = (slice(0, 48), slice(16, 64))
"""Where the old picture of 48 x 48 is, (rows, columns)."""
UNTOUCHED = (slice(0, 40), slice(24, 64))


def _request(name: str) -> dict[str, Any]:
    request = {**tiny.arguments(name), "seed": 3}
    return {key: value for key, value in request.items() if key not in ("width", "height", "image", "mask_image")}


def _painted(folder: Path, name: str, request: dict[str, Any], picture: Image.Image) -> Any:
    """What diffusers' inpainting makes of the picture with its edges drawn out."""
    canvas = numpy.pad(numpy.asarray(picture), ((0, 32), (16, 0), (0, 0)), mode="edge")
    mask = numpy.full(canvas.shape[:2], 255, dtype=numpy.uint8)
    mask[UNTOUCHED] = 0
    spec = tiny.PIPELINES[name]
    pipeline = tiny.load(folder, pipeline_class=spec.siblings.get("inpaint", spec.class_name))
    size = {"width": 64, "height": 80}
    given = {**request, **size, "strength": 1.0, "image": Image.fromarray(canvas), "mask_image": Image.fromarray(mask)}
    return tiny.call(pipeline, **given)[0]


@pytest.mark.parametrize("name", ["sd15", "sd15-inpaint", "sdxl", "flux"])
def test_the_new_part_is_painted_and_the_old_one_stays(
    name: str, folders: dict[str, Path], runtime: kamado.Runtime
) -> None:
    model = runtime.load(folders[name])
    picture = tiny.picture(2, (48, 48))
    result = model.generate(**_request(name), image=picture, outpaint=GROWN)
    pixels, painted = result.pixels[0], _painted(folders[name], name, _request(name), picture)
    assert result.images[0].size == (64, 80)
    assert numpy.abs(pixels[48:] - painted[48:]).max() < LARGEST_DIFFERENCE
    assert numpy.abs(pixels[:, :16] - painted[:, :16]).max() < LARGEST_DIFFERENCE
    kept = numpy.asarray(result.images[0])[UNTOUCHED]
    assert numpy.array_equal(kept, numpy.asarray(picture)[:40, 8:])
    old = numpy.asarray(picture, dtype=numpy.float32) / 255
    towards = numpy.abs(pixels[OLD] - painted[OLD]).mean(-1), numpy.abs(pixels[OLD] - old).mean(-1)
    assert towards[0][-1, 10:].mean() < towards[1][-1, 10:].mean(), "at the old edge the new picture shows"
    assert towards[0][-8, 10:].mean() > towards[1][-8, 10:].mean(), "and further inside the old one"
    assert result.recipe["options"]["outpaint"] == GROWN
    assert (
        result.recipe["inputs"]["image"]
        == model.generate(**_request(name), image=picture, outpaint={"top": 16}).recipe["inputs"]["image"]
    ), "the picture that was given"


def test_without_a_feather_the_whole_old_picture_stays(folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    picture = tiny.picture(2, (48, 48)).convert("RGBA")
    grown = {"left": 16, "bottom": 32, "feather": 0}
    result = runtime.load(folders["sd15"]).generate(**_request("sd15"), image=picture, outpaint=grown)
    assert numpy.array_equal(numpy.asarray(result.images[0])[OLD], numpy.asarray(picture.convert("RGB")))


def test_a_picture_without_a_prompt_is_varied(folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    request = {key: value for key, value in _request("sd15").items() if key != "prompt"}
    picture = tiny.picture(1)
    pipeline = tiny.load(folders["sd15"], pipeline_class=tiny.PIPELINES["sd15"].siblings["img2img"])
    model = runtime.load(folders["sd15"])
    result = model.generate(**request, image=picture, n=2)
    for index, seed in enumerate((3, 4)):
        wanted = tiny.call(pipeline, **request | {"seed": seed}, prompt="", strength=0.4, image=picture)[0]
        assert numpy.abs(result.pixels[index] - wanted).max() < LARGEST_DIFFERENCE
    assert numpy.abs(result.pixels[0] - result.pixels[1]).mean() > CLEAR
    stronger = model.generate(**request, image=picture, strength=0.8)
    wanted = tiny.call(pipeline, **request, prompt="", strength=0.8, image=picture)[0]
    assert numpy.abs(stronger.pixels[0] - wanted).max() < LARGEST_DIFFERENCE


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("sd15", {"outpaint": {"left": 8}}, "give it as image"),
        ("sd15", {"outpaint": {}, "image": 0}, "above 0 on one side at least"),
        ("sd15", {"outpaint": {"left": 0, "feather": 9}, "image": 0}, "above 0 on one side at least"),
        ("sd15", {"outpaint": {"up": 8}, "image": 0}, "left, right, top, bottom and feather"),
        ("sd15", {"outpaint": 8, "image": 0}, "left, right, top, bottom and feather"),
        ("sd15", {"outpaint": {"left": -8}, "image": 0}, "outpaint: left must be a whole number"),
        ("sd15", {"outpaint": {"left": 5}, "image": 0}, "width 69: .* nearest are 64 and 72"),
        ("sd15", {"outpaint": {"left": 8}, "image": 0, "width": 64}, "leave width out"),
        ("sd15", {"outpaint": {"left": 8}, "image": 0, "mask": 0}, "leave mask out"),
        ("sd15", {"outpaint": {"left": 65536, "top": 65536}, "image": 0}, "a picture of 65600 x 65600"),
        ("sd15", {"outpaint": {"left": 8128, "top": 8128}, "image": 0}, "a picture of 8192 x 8192 needs"),
        ("dit", {"outpaint": {"left": 8}, "image": 0}, "takes no mask"),
        ("flux-kontext", {"image": 0, "prompt": None}, "give a prompt"),
    ],
)
def test_what_cannot_be(
    name: str, options: dict[str, Any], error: str, folders: dict[str, Path], runtime: kamado.Runtime
) -> None:
    pictures = {key: tiny.picture(1) for key in ("image", "mask") if key in options}
    with pytest.raises(InvalidRequest, match=error):
        runtime.load(folders[name]).submit(**_request(name) | options | pictures)
