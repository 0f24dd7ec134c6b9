"""Autoencoders that work in tiles: for the requests that want it, as diffusers does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest

import kamado
import tiny_pipelines as tiny
from kamado.errors import InvalidRequest

LARGEST_DIFFERENCE = 1e-4
SMALL, LARGE = {"height": 64, "width": 64}, {"height": 96, "width": 160}


def _wanted(folder: Path, request: dict[str, Any], sibling: str | None = None) -> Any:
    pipeline = tiny.load(folder, pipeline_class=sibling)
    pipeline.vae.enable_tiling()
    return tiny.call(pipeline, **request)[0]


@pytest.mark.parametrize("name", ["sd15", "flux", "qwen-image"])
def test_small_pictures_are_the_same_and_large_ones_are_diffusers_own(
    name: str, folders: dict[str, Path], runtime: kamado.Runtime
) -> None:
    model = runtime.load(folders[name])
    side = model.loaded._intake._sizes.tile  # type: ignore[attr-defined]
    small, large = ({**tiny.arguments(name), **size, "seed": 3} for size in (SMALL, LARGE))
    requests = [(large, True), (large, False), (small, True), (small, False)]
    jobs = [model.submit(**request, tiling=tiling) for request, tiling in requests]
    tiled, plain, small_tiled, small_plain = [job.result().pixels[0] for job in jobs]
    assert numpy.abs(tiled - _wanted(folders[name], large)).max() < LARGEST_DIFFERENCE
    assert numpy.abs(small_tiled - small_plain).max() < LARGEST_DIFFERENCE
    alone = [model.generate(**small, tiling=tiling).pixels[0] for tiling in (True, False)]
    assert numpy.array_equal(*alone)
    if side is not None and side < LARGE["width"]:
        assert 0 < numpy.abs(tiled - plain).mean() < 0.1, "a little else"


def test_pictures_are_encoded_in_tiles_too(folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    model = runtime.load(folders["sd15"])
    request = {**tiny.arguments("sd15", "img2img"), "image": tiny.picture(1, (160, 96)), "seed": 3}
    wanted = _wanted(folders["sd15"], request, tiny.PIPELINES["sd15"].siblings["img2img"])
    result = model.generate(**request, tiling=True)
    assert numpy.abs(result.pixels[0] - wanted).max() < LARGEST_DIFFERENCE
    assert result.recipe["options"]["tiling"] is True


def test_no_tensor_of_the_decoder_is_larger_than_a_tile(folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    model = runtime.load(folders["sd15"])
    seen: list[tuple[int, int]] = []
    decoder = model.loaded._workshop.factory.models["vae"].decoder  # type: ignore[attr-defined]
    hook = decoder.conv_out.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape[-2:])))
    request = {**tiny.arguments("sd15"), "height": 256, "width": 192, "seed": 3}
    model.generate(**request)
    assert max(seen) == (256, 192)
    seen.clear()
    model.generate(**request, tiling=True)
    hook.remove()
    assert len(seen) > 1
    assert max(max(size) for size in seen) <= 64


def test_the_check_of_memory_knows_of_tiles(folders: dict[str, Path]) -> None:
    with kamado.Runtime(device="cpu", memory="60MB") as runtime:
        model = runtime.load(folders["sd15"])
        request = {**tiny.arguments("sd15"), "height": 512, "width": 1024, "num_inference_steps": 1}
        with pytest.raises(InvalidRequest, match=r"needs about .* with tiling=True, and .* may be used"):
            model.submit(**request)
        assert model.generate(**request, tiling=True).images[0].size == (1024, 512)


def test_what_cannot_be(folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    with pytest.raises(InvalidRequest, match="has no autoencoder that works in tiles"):
        runtime.load(folders["ddpm"]).submit(**tiny.arguments("ddpm"), tiling=True)
    with pytest.raises(InvalidRequest, match="tiling must be true or false, not 1"):
        runtime.load(folders["sd15"]).submit(**tiny.arguments("sd15"), tiling=1)
