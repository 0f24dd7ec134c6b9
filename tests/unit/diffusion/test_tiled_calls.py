"""Calls of autoencoders in tiles, and in smaller ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLLTXVideo, AutoencoderKLQwenImage, UNet2DModel

from kamado.tasks.library.standin import ModelCall
from kamado_models.diffusion.tiling import tiled_call

SIDES = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}


def _call(module: Any, method: str = "decode") -> ModelCall:
    return ModelCall(module=module, method=method, arguments={}, autocast=(), settings=())


def test_tiles_are_halved_as_long_as_they_are_large_enough() -> None:
    model = AutoencoderKL(**SIDES, block_out_channels=(8, 8), norm_num_groups=4, sample_size=512)
    call, sizes = _call(model), []
    while (lighter := tiled_call(call)) is not None:
        module: Any = lighter.module
        assert module.use_tiling
        assert next(module.parameters()) is next(model.parameters())
        sizes.append((module.tile_sample_min_size, module.tile_latent_min_size))
        call = lighter
    assert sizes == [(512, 256), (256, 128), (128, 64)]
    assert (model.use_tiling, model.tile_sample_min_size) == (False, 512)


def test_smaller_tiles_give_about_the_same_picture() -> None:
    torch.manual_seed(0)
    model = AutoencoderKL(**SIDES, block_out_channels=(8, 8), norm_num_groups=4, sample_size=256).eval()
    latents = torch.randn(1, 4, 96, 128)
    call = dataclasses.replace(_call(model), arguments={"z": latents})
    with torch.inference_mode():
        whole = call.run().sample
        tiled = tiled_call(call)
        assert tiled is not None
        halved = tiled_call(tiled)
        assert halved is not None
        for each in (tiled, halved):
            assert each.run().sample.shape == whole.shape
        assert 0 < (halved.run().sample - whole).abs().mean() < 0.2 * whole.abs().mean()


def test_heights_widths_and_strides_are_halved_together() -> None:
    model = AutoencoderKLQwenImage(base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False])
    first = tiled_call(_call(model, "encode"))
    assert first is not None
    second = tiled_call(first)
    assert second is not None
    before: Any = first.module
    after: Any = second.module
    names = [f"tile_sample_{kind}_{side}" for kind in ("min", "stride") for side in ("height", "width")]
    assert [getattr(after, name) * 2 for name in names] == [getattr(before, name) for name in names]


@pytest.mark.parametrize("method", ["forward", "decode"])
def test_what_has_no_tiles(method: str) -> None:
    unet = UNet2DModel(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    assert tiled_call(_call(unet, method)) is None
    autoencoder = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    assert tiled_call(_call(autoencoder, "forward")) is None


def test_videos_are_cut_in_time_before_tiles_get_smaller() -> None:
    model = AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
    ).eval()
    latents = torch.randn(1, 4, 4, 2, 2)
    call: ModelCall | None = dataclasses.replace(_call(model), arguments={"z": latents})
    seen, shapes = [], set()
    with torch.inference_mode():
        while call is not None:
            module: Any = call.module
            seen.append((module.use_tiling, module.use_framewise_decoding))
            shapes.add(tuple(call.run().sample.shape))
            call = tiled_call(call)
    assert seen[:3] == [(False, False), (True, False), (True, True)] and set(seen[3:]) <= {(True, True)}
    assert shapes == {(1, 3, 25, 64, 64)}
    assert not model.use_framewise_decoding
