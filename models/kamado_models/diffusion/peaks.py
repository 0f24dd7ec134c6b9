"""How much memory the temporary tensors of a picture take, estimated from configurations. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kamado.checkpoint.types import Checkpoint
from kamado.errors import UnsupportedCheckpoint

from .extents import Extent
from .peaks_encoders import text_peak, text_tokens, vision_peak
from .peaks_time import (
    joined_frames,
    latent_frames,
    sound_tokens,
    spatial_scale,
    spectrogram_size,
    video_numbers,
    vocoder_numbers,
    wave_numbers,
)

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_DENOISERS = ("unet", "transformer", "prior", "decoder")
AUTOENCODERS = ("vae", "vqvae", "movq", "vqgan")
_DEFAULT_SIDE = 512
_TILE_COPIES = 4
"""Of the picture: tiles with what overlaps, blended rows, and the whole."""
_MAX_LEVELS = 16
"""Of halving sizes: 65 536 pixels are left of one."""
_MAX_WIDTH = 1 << 20
"""Channels, heads, latents of a side: beyond what any model has."""
_MAX_LAYERS = 1000
"""Of one level."""
_ROWS = 2
"""With and without the prompt: classifier-free guidance."""
_CLIP_TOKENS = 77
_TEXT_COPIES = 8
"""Of the states of a text that is only looked at, while it is projected."""
_GRID_POINTS, _BYTES_A_POINT = 130**3, 540
"""Of the grid that Shap-E cuts meshes out of: measured; numbers of edges are whole ones of 8 bytes."""
_PRIOR_TOKENS = 81
"""CLIP's, and those of the embeddings."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """What one forward of a transformer lays out. Calibrated against peaks measured at the sizes of released models."""

    factor: int
    """Numbers for each token, by the width of the states: these, projections, the wide layer, what is kept beside."""
    joins_text: bool
    """Whether the tokens of the text run through all layers."""
    rows: int = _ROWS
    """1: guidance is an input, or a call of its own."""
    joins_clip: bool = False
    """Whether CLIP's tokens come before the others."""
    most_text: int = 1 << 20
    """Tokens of a text that is usual; padding is taken off."""


_OWN_TABLES = ("DiTTransformer2DModel", "PixArtTransformer2DModel")
_LIKE_MOST = _Layout(18, True)
_LAYOUTS = {
    "AuraFlowTransformer2DModel": _Layout(14, True),
    "ChromaTransformer2DModel": _Layout(20, True, 1),
    "DiTTransformer2DModel": _Layout(13, False),
    "Flux2Transformer2DModel": _Layout(23, True, 1),
    "FluxTransformer2DModel": _Layout(20, True, 1),
    "HunyuanDiT2DModel": _Layout(18, False),
    "HunyuanVideoTransformer3DModel": _Layout(20, True, 1, most_text=256),
    "LTXVideoTransformer3DModel": _Layout(18, False),
    "Lumina2Transformer2DModel": _Layout(18, True, 1),
    "PixArtTransformer2DModel": _Layout(13, False),
    "QwenImageTransformer2DModel": _Layout(16, True, 1),
    "SD3Transformer2DModel": _Layout(14, True, joins_clip=True),
    "SanaTransformer2DModel": _Layout(16, False),
    "WanTransformer3DModel": _Layout(18, False, 1),
    "ZImageTransformer2DModel": _Layout(17, True, most_text=256),
}


def vae_scale(checkpoint: Checkpoint) -> int:
    """Pixels of a picture's side for each latent. 1 for models of pixels.

    Raises UnsupportedCheckpoint, as all here, for configurations that cannot be read."""
    config = _autoencoder(checkpoint)
    if not config:
        return 1
    if said := spatial_scale(config):
        return said
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


def component_peak(checkpoint: Checkpoint, name: str, extent: Extent, dtype_bytes: int) -> int:
    """Bytes of temporary tensors in one call of a component, for one answer of this size."""
    config, kind = _component(checkpoint, name), name.removeprefix("prior_")
    if extent.seconds:
        if name == "vocoder":
            return vocoder_numbers(config, extent.seconds) * dtype_bytes
        length = sound_tokens(_component(checkpoint, "transformer"))
        if (waves := wave_numbers(config, extent.seconds, length)) is not None:
            return waves * dtype_bytes
        extent = Extent(*spectrogram_size(_component(checkpoint, "vocoder"), extent.seconds))
    if name in AUTOENCODERS:
        numbers = _vae_numbers(config)
        if extent.frames > 1:
            numbers = video_numbers(config, extent.frames, numbers)
        return extent.width * extent.height * numbers * dtype_bytes
    if is_denoiser(kind):
        return _denoiser_numbers(checkpoint, config, extent) * dtype_bytes
    if kind == "shap_e_renderer":
        return _GRID_POINTS * _BYTES_A_POINT
    if kind.startswith("text_encoder"):
        return text_peak(config, text_tokens(checkpoint), dtype_bytes)
    return vision_peak(config, dtype_bytes)


def is_denoiser(name: str) -> bool:
    """Whether a component runs in every step."""
    return name in _DENOISERS or name.startswith(("controlnet", "transformer_"))


def is_autoencoder(name: str) -> bool:
    """Whether a component of this name makes pixels of latents."""
    return name in AUTOENCODERS


def tiles_kept(width: int, height: int, dtype_bytes: int) -> int:
    """Bytes of a picture that is made in tiles, beside those of one tile."""
    return width * height * 3 * _TILE_COPIES * dtype_bytes


def table_bytes(checkpoint: Checkpoint, name: str) -> int:
    """Bytes of the table of positions that a transformer makes itself, and holds in float32 beside its weights."""
    config = _component(checkpoint, name)
    kind = config.get("_class_name")
    has_table = kind in _OWN_TABLES or (kind == "SanaTransformer2DModel" and config.get("interpolation_scale"))
    sides = _wholes(config, "sample_size")
    if not has_table or not sides:
        return 0
    patch = _whole(config, "patch_size", 2, _MAX_WIDTH)
    return (sides[-1] // patch) ** 2 * _inner_width(config) * DTYPE_BYTES["float32"]


def _denoiser_numbers(checkpoint: Checkpoint, config: Mapping[str, Any], extent: Extent) -> int:
    """Numbers that one forward of a UNet or transformer lays out, all rows together."""
    if config.get("_class_name") == "PriorTransformer":
        return _ROWS * _PRIOR_TOKENS * _inner_width(config) * _LIKE_MOST.factor
    latents = extent.width * extent.height // vae_scale(checkpoint) ** 2
    latents *= latent_frames(_autoencoder(checkpoint), extent.frames)
    if config.get("block_out_channels"):
        without_guidance = config.get("_class_name") == "UNet2DModel" or config.get("time_cond_proj_dim")
        return (1 if without_guidance else _ROWS) * latents * _unet_numbers(config)
    layout = _LAYOUTS.get(str(config.get("_class_name")), _LIKE_MOST)
    tokens, text = latents // _patch_side(checkpoint, config) ** 2, text_tokens(checkpoint)
    if extent.frames > 1:
        tokens //= joined_frames(config)
    tokens = max(tokens, sound_tokens(config))
    if layout.joins_text:
        tokens += min(text, layout.most_text) + _CLIP_TOKENS * layout.joins_clip
        copies = tokens * layout.factor
    else:
        copies = max(tokens * layout.factor, text * _TEXT_COPIES)
    return layout.rows * copies * _inner_width(config)


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
    vae = _autoencoder(checkpoint)
    channels = _whole(vae, "latent_channels", _whole(vae, "z_dim", 0, _MAX_WIDTH), _MAX_WIDTH)
    if channels and _whole(config, "in_channels", channels, _MAX_WIDTH) % (4 * channels) == 0:
        return 2  # the pipeline packs squares of them, as Flux's does, whatever the transformer's own patches are
    sides = _wholes(config, "patch_size") or _wholes(config, "all_patch_size")
    return max(sides[-1] if sides else 2, 1)


def _inner_width(config: Mapping[str, Any]) -> int:
    """Of a transformer's states."""
    for name in ("hidden_size", "dim", "inner_dim"):
        if config.get(name):
            return _whole(config, name, 1, _MAX_WIDTH)
    heads = _whole(config, "num_attention_heads", 16, _MAX_WIDTH)
    return heads * _whole(config, "attention_head_dim", 64, _MAX_WIDTH)


def _vae_numbers(config: Mapping[str, Any]) -> int:
    """Numbers that one decode lays out for each pixel: at full size, either the states of the last level with their
    normalized and activated copies, or the wider ones that come from the level below.

    Calibrated against measured peaks. Spatial normalization (MoVQ) has two more copies; convolutions over time pad
    theirs, and keep the last frames."""
    kind = str(config.get("_class_name"))
    if base := _whole(config, "base_dim", 0, _MAX_WIDTH):  # Wan's, Qwen-Image's
        multiples = _wholes(config, "dim_mult") or [1]
        return max(12 * base * multiples[0], 9 * base * multiples[min(1, len(multiples) - 1)])
    levels = _wholes(config, "block_out_channels") or _wholes(config, "decoder_block_out_channels")
    levels = _wholes(config, "up_block_out_channels") or levels or [128]
    first, second = levels[0], levels[min(1, len(levels) - 1)]
    if config.get("norm_type") == "spatial":
        return max(7 * first, 5 * second) + 4
    if kind == "AutoencoderTiny":
        return 3 * first + 4
    return max(5 * first, 4 * second if kind == "AutoencoderDC" else 3 * second) + 1


def _autoencoder(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Empty where there is none."""
    return next((found for name in AUTOENCODERS if (found := _component(checkpoint, name))), {})


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
