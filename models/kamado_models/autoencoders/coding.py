"""Pictures and videos to latents and back, whatever the autoencoder calls them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from kamado.errors import GenerationFailed

from ..library.kinds import Bench
from ..pixels import edges_repeated
from .kind import PART
from .layouts import Facts


def padded(pixels: Tensor, facts: Facts) -> Tensor:
    """The last row, column and frame repeated until all fits. pixels: (frames, channels, height, width)."""
    frames, _, height, width = pixels.shape
    down, right = (-height) % facts.spatial, (-width) % facts.spatial
    more = (1 - frames) % facts.temporal
    if down or right:
        pixels = edges_repeated(pixels, height + down, width + right)
    return torch.cat((pixels, pixels[-1:].expand(more, -1, -1, -1))) if more else pixels


def encoded(bench: Bench, model: Any, facts: Facts, pixels: Tensor, *, draw: bool = False) -> Tensor:
    """Latents, with a batch dimension, as the autoencoder has them, of pixels (frames, channels, height, width) in
    [-1, 1] that fit. `draw`: from the distribution, by the answer's seed; else its middle. One forward."""
    given = pixels.to(bench.device, bench.dtype)
    if facts.has_frames:
        given = given.transpose(0, 1)[None]
    found = model.encode(given)
    for name in ("latent_dist", "latents", "latent"):
        value = getattr(found, name, None)
        if value is not None:
            break
    else:
        raise GenerationFailed(f"{facts.name} gives no latents that are known here")
    if name != "latent_dist":
        return value  # type: ignore[no-any-return]
    return value.sample(generator=bench.generator) if draw else value.mode()  # type: ignore[no-any-return]


def decoded(bench: Bench, model: Any, module: Any, facts: Facts, latents: Tensor) -> Tensor:
    """Pixels (frames, channels, height, width), about in [-1, 1], on the CPU. `model`: the stand-in for `module`. One
    forward."""
    given = latents.to(bench.device, bench.dtype)
    more: dict[str, Any] = {}
    if facts.layout.frames_are_rows:
        more["num_frames"] = len(given)
    if getattr(model.config, "timestep_conditioning", False):
        more["temb"] = torch.zeros(len(given), device=bench.device, dtype=bench.dtype)
    if draws(model.config):
        # Its noise is the answer's own, and it shares no forward.
        whole = bench.run(PART, lambda: module.decode(given, **more))
    else:
        whole = model.decode(given, **more)
    made: Tensor = whole.sample.float().cpu()
    return made[0].transpose(0, 1) if facts.has_frames else made


def draws(config: Any) -> bool:
    """Whether its decoder adds noise of its own."""
    told = config.get("decoder_inject_noise") or ()
    return any(told) if isinstance(told, (list, tuple)) else bool(told)


def model_of(bench: Bench, *, tiling: bool) -> Any:
    """The stand-in for the autoencoder."""
    model = bench.model(PART)
    if tiling:
        model.enable_tiling()
    return model


def prior(bench: Bench, model: Any, facts: Facts, height: int, width: int, frames: int) -> Tensor:
    """Latents drawn from a normal distribution, scaled as pipelines of the model scale those that they make.
    `height`, `width`: in pixels."""
    size = (height // facts.spatial, width // facts.spatial)
    if facts.layout.frames_are_rows:
        shape: tuple[int, ...] = (frames, facts.channels, *size)
    elif facts.has_frames:
        shape = (1, facts.channels, 1 + math.ceil((frames - 1) / facts.temporal), *size)
    else:
        shape = (1, facts.channels, *size)
    drawn = torch.randn(shape, generator=bench.generator)
    config = model.config
    mean, deviation = (_statistic(config, name, drawn) for name in ("latents_mean", "latents_std"))
    scale = getattr(config, "scaling_factor", None) or 1.0
    if mean is None or deviation is None:
        return drawn / scale + (getattr(config, "shift_factor", None) or 0.0)
    return drawn * deviation / scale + mean


def _statistic(config: Any, name: str, like: Tensor) -> Tensor | None:
    values = getattr(config, name, None)
    if values is None:
        return None
    return torch.tensor(list(values)[: like.shape[1]]).view(1, -1, *[1] * (like.ndim - 2))
