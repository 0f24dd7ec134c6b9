"""How much memory the temporary tensors of a picture take, estimated from configurations. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kamado.checkpoint.types import Checkpoint
from kamado.errors import UnsupportedCheckpoint
from kamado.memory.plan import Plan

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_DENOISERS = ("unet", "transformer", "prior", "decoder")
AUTOENCODERS = ("vae", "vqvae", "movq", "vqgan")
_DEFAULT_SIDE = 512
_TILE_COPIES = 4
"""Of the picture: tiles with what overlaps, blended rows, and the whole."""
_TEXT_TOKENS = 512
_MAX_LEVELS = 16
"""Of halving sizes: 65 536 pixels are left of one."""
_MAX_WIDTH = 1 << 20
"""Channels, heads, latents of a side: beyond what any model has."""
_MAX_LAYERS = 1000
"""Of one level."""
_ROWS = 2
"""With and without the prompt: classifier-free guidance."""


def vae_scale(checkpoint: Checkpoint) -> int:
    """Pixels of a picture's side for each latent. 1 for models of pixels.

    Raises UnsupportedCheckpoint, as all here, for configurations that cannot be read."""
    config = next((found for name in AUTOENCODERS if (found := _component(checkpoint, name))), None)
    if config is None:
        return 1
    levels = _wholes(config, "block_out_channels") or _wholes(config, "encoder_block_out_channels")
    if levels:
        return int(2 ** (len(levels) - 1))
    if "up_down_scale_factor" in config:  # Wuerstchen's
        return int(_whole(config, "up_down_scale_factor", 2, _MAX_LEVELS) ** _whole(config, "levels", 2, 8))
    downsamples = config.get("temperal_downsample")
    return 2 ** min(len(downsamples), _MAX_LEVELS) if isinstance(downsamples, (list, tuple)) else 8


def picture_size(checkpoint: Checkpoint) -> tuple[int, int]:
    """(width, height) in pixels that the model makes unless told otherwise."""
    for name in ("unet", "transformer", "prior"):
        config, scale = _component(checkpoint, name), vae_scale(checkpoint)
        sides = _wholes(config, "sample_size")
        if sides:
            return sides[-1] * scale, sides[max(len(sides) - 2, 0)] * scale
    return _DEFAULT_SIDE, _DEFAULT_SIDE


def activation_bytes(checkpoint: Checkpoint, plan: Plan, width: int, height: int, tile: int | None = None) -> int:
    """The largest peak of any component, for one picture of this size. `tile`: see component_peak."""
    return max(
        (component_peak(checkpoint, lane.lane, width, height, DTYPE_BYTES[lane.dtype], tile) for lane in plan.lanes),
        default=0,
    )


def is_denoiser(name: str) -> bool:
    """Whether a component runs in every step."""
    return name in _DENOISERS or name.startswith("controlnet")


def component_peak(
    checkpoint: Checkpoint, name: str, width: int, height: int, dtype_bytes: int, tile: int | None = None
) -> int:
    """Bytes of temporary tensors in one call of a component, for one picture of this size. Autoencoders work in tiles
    with sides of `tile` pixels if that is given."""
    config = _component(checkpoint, name)
    if is_denoiser(name):
        latents = width * height // vae_scale(checkpoint) ** 2
        numbers = _unet_numbers(config) * latents if config.get("block_out_channels") else None
        if numbers is None:
            tokens = latents // _patch_side(checkpoint, config) ** 2 + _TEXT_TOKENS
            numbers = tokens * _transformer_numbers(config)
        return _ROWS * numbers * dtype_bytes
    if name not in AUTOENCODERS:
        return 0
    if tile is None:
        return _vae_peak(config, width, height, dtype_bytes)
    kept = width * height * 3 * _TILE_COPIES * dtype_bytes
    return kept + _vae_peak(config, min(width, tile), min(height, tile), dtype_bytes)


def _unet_numbers(config: Mapping[str, Any]) -> int:
    """Numbers that one forward of a UNet lays out for a row, for each of its latents, at the widest place.

    Calibrated against measured peaks. On the way up, a level joins what comes from below with what it kept on the way
    down: the joined, normalized and activated copies, and the sum. Transformers have their gated layer of 8 times the
    width, in and out. Each level has a quarter of the latents of the one above."""
    widths, kinds = _wholes(config, "block_out_channels"), config.get("down_block_types")
    layers = _wholes(config, "layers_per_block", _MAX_LAYERS) or [2]
    widest = 0
    for level, width in enumerate(widths):
        below = widths[min(level + 1, len(widths) - 1)]
        kind = kinds[level] if isinstance(kinds, (list, tuple)) and level < len(kinds) else "CrossAttn"
        most = max(4 * (width + below), 21 * width if "CrossAttn" in str(kind) else 0)
        kept = (layers[min(level, len(layers) - 1)] + 1) * width + below
        widest = max(widest, (most + kept) >> 2 * level)
    return widest


def _patch_side(checkpoint: Checkpoint, config: Mapping[str, Any]) -> int:
    """Latents of a side for each token of a transformer."""
    vae = next((found for name in AUTOENCODERS if (found := _component(checkpoint, name))), {})
    channels = _whole(vae, "latent_channels", _whole(vae, "z_dim", 0, _MAX_WIDTH), _MAX_WIDTH)
    if channels and _whole(config, "in_channels", channels, _MAX_WIDTH) % (4 * channels) == 0:
        return 2  # the pipeline packs squares of them, as Flux's does, whatever the transformer's own patches are
    sides = _wholes(config, "patch_size") or _wholes(config, "all_patch_size")
    return max(sides[-1] if sides else 2, 1)


def _transformer_numbers(config: Mapping[str, Any]) -> int:
    """Numbers that one forward of a transformer lays out for a token: its states, projections and wide layers."""
    heads = _whole(config, "num_attention_heads", 16, _MAX_WIDTH)
    return heads * _whole(config, "attention_head_dim", 64, _MAX_WIDTH) * 20


def _vae_peak(config: Mapping[str, Any], width: int, height: int, dtype_bytes: int) -> int:
    """Bytes of one decode: the last level at full size, in and out, with the normalized copies between."""
    levels = _wholes(config, "block_out_channels") or [128]
    return width * height * (levels[0] * 3 + levels[min(1, len(levels) - 1)] * 2) * dtype_bytes


def _component(checkpoint: Checkpoint, name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = checkpoint.metadata["components"].get(name, {})
    return found


def _whole(config: Mapping[str, Any], name: str, default: int, high: int) -> int:
    """The value of a configuration; `default` where there is none. Raises UnsupportedCheckpoint."""
    value = config.get(name)
    if not value:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= high:
        raise UnsupportedCheckpoint(
            f"config.json of {config.get('_class_name', 'a component')!s:.60}: {name} is {value!r:.60}, which is no "
            f"whole number from 1 to {high}; download the model again"
        )
    return value


def _wholes(config: Mapping[str, Any], name: str, high: int = _MAX_WIDTH) -> list[int]:
    """The values of a configuration's list, or its one value, without empty ones. Raises UnsupportedCheckpoint."""
    value = config.get(name)
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if len(values) > _MAX_LEVELS:
        raise UnsupportedCheckpoint(
            f"config.json of {config.get('_class_name', 'a component')!s:.60}: {name} has {len(values)} levels; models "
            f"have from 1 to {_MAX_LEVELS}"
        )
    return [whole for each in values if (whole := _whole({**config, name: each}, name, 0, high))]
