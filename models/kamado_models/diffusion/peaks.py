"""How much memory the temporary tensors of a picture take, estimated from configurations. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kamado.checkpoint.types import Checkpoint
from kamado.memory.plan import Plan

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_DENOISERS = ("unet", "transformer", "prior", "decoder")
_AUTOENCODERS = ("vae", "vqvae", "movq", "vqgan")
_DEFAULT_SIDE = 512
_TILE_COPIES = 4
"""Of the picture: tiles with what overlaps, blended rows, and the whole."""
_ROWS = 2
"""With and without the prompt: classifier-free guidance."""


def vae_scale(checkpoint: Checkpoint) -> int:
    """Pixels of a picture's side for each latent."""
    config = _component(checkpoint, "vae") or _component(checkpoint, "vqvae") or _component(checkpoint, "movq")
    if not config:
        return 1
    levels = config.get("block_out_channels") or config.get("encoder_block_out_channels")
    if isinstance(levels, (list, tuple)) and levels:
        return int(2 ** (len(levels) - 1))
    downsamples = config.get("temperal_downsample")
    return int(2 ** len(downsamples)) if isinstance(downsamples, (list, tuple)) else 8


def picture_size(checkpoint: Checkpoint) -> tuple[int, int]:
    """(width, height) in pixels that the model makes unless told otherwise."""
    for name in ("unet", "transformer", "prior"):
        side = _component(checkpoint, name).get("sample_size")
        if isinstance(side, (list, tuple)) and len(side) >= 2:
            return int(side[-1]) * vae_scale(checkpoint), int(side[-2]) * vae_scale(checkpoint)
        if isinstance(side, int) and side > 0:
            return side * vae_scale(checkpoint), side * vae_scale(checkpoint)
    return _DEFAULT_SIDE, _DEFAULT_SIDE


def activation_bytes(checkpoint: Checkpoint, plan: Plan, width: int, height: int, tile: int | None = None) -> int:
    """The largest peak of any component, for one picture of this size. `tile`: see component_peak."""
    return max(
        (component_peak(checkpoint, lane.lane, width, height, DTYPE_BYTES[lane.dtype], tile) for lane in plan.lanes),
        default=0,
    )


def component_peak(
    checkpoint: Checkpoint, name: str, width: int, height: int, dtype_bytes: int, tile: int | None = None
) -> int:
    """Bytes of temporary tensors in one call of a component, for one picture of this size. Autoencoders work in tiles
    with sides of `tile` pixels if that is given."""
    config = _component(checkpoint, name)
    if name in _DENOISERS or name.startswith("controlnet"):
        return _denoiser_peak(config, width, height, dtype_bytes)
    if name not in _AUTOENCODERS:
        return 0
    if tile is None:
        return _vae_peak(config, width, height, dtype_bytes)
    kept = width * height * 3 * _TILE_COPIES * dtype_bytes
    return kept + _vae_peak(config, min(width, tile), min(height, tile), dtype_bytes)


def _denoiser_peak(config: Mapping[str, Any], width: int, height: int, dtype_bytes: int) -> int:
    """Bytes of one forward of the denoiser, both rows of guidance in it."""
    levels = config.get("block_out_channels")
    pixels = width * height
    if isinstance(levels, (list, tuple)) and levels:
        # The widest level at full latent size: input, skip, two convolutions, normalized copies; latents are an eighth.
        latents = pixels if int(config.get("in_channels") or 4) == 3 else pixels // 64
        return _ROWS * latents * max(map(int, levels)) * 8 * dtype_bytes
    heads = int(config.get("num_attention_heads") or 16)
    inner = heads * int(config.get("attention_head_dim") or 64)
    tokens = pixels // 256 + 512
    return _ROWS * tokens * inner * 20 * dtype_bytes


def _vae_peak(config: Mapping[str, Any], width: int, height: int, dtype_bytes: int) -> int:
    """Bytes of one decode: the last level at full size, in and out, with the normalized copies between."""
    levels = config.get("block_out_channels")
    channels = int(levels[0]) if isinstance(levels, (list, tuple)) and levels else 128
    wider = int(levels[1]) if isinstance(levels, (list, tuple)) and len(levels) > 1 else channels
    return width * height * (channels * 3 + wider * 2) * dtype_bytes


def _component(checkpoint: Checkpoint, name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = checkpoint.metadata["components"].get(name, {})
    return found
