"""Latents in the forms that pipelines give them, as one plane of channels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kamado_models.diffusion.previews import clean_latents, colour_map, latent_plane, unscaled

PLAIN = SimpleNamespace()
sides = st.integers(1, 12)


def packed(plane: torch.Tensor) -> torch.Tensor:
    """As diffusers' FluxPipeline packs it."""
    from diffusers import FluxPipeline

    channels, height, width = plane.shape
    return FluxPipeline._pack_latents(plane[None], 1, channels, height, width)


@given(sides, sides)
def test_packed_latents_are_unpacked(half_height: int, half_width: int) -> None:
    plane = torch.arange(3 * 4 * half_height * half_width, dtype=torch.float32)
    plane = plane.reshape(3, 2 * half_height, 2 * half_width)
    found = latent_plane(packed(plane), PLAIN, 3, [(2 * half_width, 2 * half_height)])
    assert found is not None
    assert torch.equal(found, plane)


def test_the_first_size_with_the_right_number_of_tokens_is_taken() -> None:
    plane = torch.randn(3, 8, 4)
    found = latent_plane(packed(plane), PLAIN, 3, [(16, 16), (4, 8)])
    assert found is not None
    assert torch.equal(found, plane)


@given(st.integers(1, 200), st.floats(0.1, 10), st.floats(0.1, 10))
def test_without_a_size_that_fits_some_rectangle_is_found(count: int, width: float, height: float) -> None:
    found = latent_plane(torch.zeros(1, count, 3), PLAIN, 3, [(width, height)])
    assert found is not None
    assert found.shape[1] * found.shape[2] == count


def test_other_forms() -> None:
    plane = torch.randn(4, 5, 6)
    assert torch.equal(latent_plane(plane[None], PLAIN, 4, []), plane)  # type: ignore[arg-type]
    video = torch.randn(2, 4, 3, 5, 6)
    assert torch.equal(latent_plane(video, PLAIN, 4, []), video[0, :, 1])  # type: ignore[arg-type]
    assert latent_plane(torch.zeros(1, 768), PLAIN, 4, []) is None, "an embedding is no picture"
    assert latent_plane(torch.zeros(1, 7, 5, 6), PLAIN, 4, []) is None


@pytest.mark.parametrize(
    "config",
    [
        {"scaling_factor": 0.3, "shift_factor": 0.1},
        {"scaling_factor": 0.3, "shift_factor": None},
        {"latents_mean": [0.1, 0.2, 0.3], "latents_std": [1.0, 2.0, 3.0]},
        {},
    ],
)
def test_scaling_is_undone(config: dict[str, Any]) -> None:
    raw = torch.randn(3, 4, 4)
    mean = torch.tensor(config.get("latents_mean", [0.0] * 3)).reshape(3, 1, 1) + (config.get("shift_factor") or 0.0)
    std = torch.tensor(config.get("latents_std", [1.0] * 3)).reshape(3, 1, 1)
    scaled = (raw - mean) / std * config.get("scaling_factor", 1.0)
    assert torch.allclose(unscaled(scaled, config), raw, atol=1e-6)


class Averages(torch.nn.Module):
    """An autoencoder whose latents are colours: averages of 4 x 4 pixels, mixed."""

    mix = torch.tensor([[1.0, 0.5, 0.0, 0.2], [0.0, 1.0, 0.3, -0.4], [0.2, 0.0, 1.0, 0.7]])

    def __init__(self) -> None:
        super().__init__()
        self.config = {"latent_channels": 4, "block_out_channels": (1, 1, 1)}
        self.dtype_is_told_by = torch.nn.Conv2d(1, 1, 1)

    def encode(self, pixels: torch.Tensor) -> Any:
        small = torch.nn.functional.avg_pool2d(pixels, 4)
        return SimpleNamespace(latents=torch.einsum("bchw,cd->bdhw", small, self.mix) + 0.3)


def test_a_linear_autoencoder_is_fitted_exactly() -> None:
    autoencoder = Averages()
    fitted = colour_map(autoencoder)
    assert fitted is not None
    assert fitted.scale == 4
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    colours = fitted.colours(autoencoder.encode(pixels).latents[0])
    assert torch.allclose(colours, torch.nn.functional.avg_pool2d(pixels, 4)[0].movedim(0, -1), atol=0.01)
    assert colour_map(torch.nn.Linear(2, 2)) is None


def test_an_autoencoder_whose_samples_would_be_huge_is_not_fitted() -> None:
    autoencoder = Averages()
    autoencoder.config["block_out_channels"] = (1,) * 16
    assert colour_map(autoencoder) is None


def test_the_end_of_a_straight_line_is_the_clean_picture() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(5)
    clean, noise = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
    sigma = scheduler.sigmas[0]
    result = scheduler.step(noise - clean, scheduler.timesteps[0], (1 - sigma) * clean + sigma * noise)
    assert torch.allclose(clean_latents(scheduler, result, noise - clean), clean, atol=1e-5)
    assert not torch.allclose(result[0], clean, atol=0.1)
