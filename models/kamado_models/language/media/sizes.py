"""What seeing and hearing takes, by the configuration: arithmetic behind plans. No torch."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from kamado.quant import Quant

from .table import senses_of

ENCODERS = (
    *("*vision*", "*visual*", "*image*", "*video*", "*audio*", "*speech*", "*projector*", "*connector*", "*perceiver*"),
    *("*qformer*", "*resampler*", "*aligner*", "*vqmodel*", "*generation_embeddings*", "*generation_head*"),
    "*mlp_AR*",  # of PaddleOCR-VL
)
"""Patterns of the names of tensors in front of the language model."""
_MOST_PATCHES = 4096
"""Of one picture that a model takes in its own size."""
_USUAL_TILES = 5
"""Of one picture that is cut: four pieces and the whole."""
_CUT = ("cohere2_vision", "idefics3", "internvl", "llama4", "ovis2")
_MOST = 1 << 20
_POSITION_VALUES, _FEED_VALUES = 12, 3
"""Numbers that are laid out for each position: times the width, and times the width of the feed-forward part."""
_SCORE_BYTES = 4


def text_quant(config: Mapping[str, Any], quant: Quant | None) -> Quant | None:
    """The form of the weights: what sees and hears keeps the compute precision, being small beside the rest and easily
    hurt."""
    if quant is None or not senses_of(config):
        return quant
    return replace(quant, skip=(*quant.skip, *(pattern for pattern in ENCODERS if pattern not in quant.skip)))


def in_encoders(config: Mapping[str, Any], sizes: Mapping[str, int]) -> int:
    """Bytes of the tensors, by name, that are in front of the language model."""
    if not senses_of(config):
        return 0
    return sum(size for name, size in sizes.items() if any(fnmatch.fnmatchcase(name, each) for each in ENCODERS))


def encoder_peak(config: Mapping[str, Any], dtype_bytes: int) -> int:
    """About how many bytes of temporary tensors one picture, or half a minute of sound, takes; 0 for a model of text
    alone."""
    if not senses_of(config):
        return 0
    parts = [config.get(name) for name in ("vision_config", "high_res_vision_config", "audio_config")]
    return max((_peak(config, part, dtype_bytes) for part in parts if isinstance(part, Mapping)), default=0)


def _peak(config: Mapping[str, Any], part: Mapping[str, Any], dtype_bytes: int) -> int:
    width = _first(part, ("hidden_size", "embed_dim", "d_model"), 1024)
    feed = _first(part, ("intermediate_size", "encoder_ffn_dim"), 4 * width)
    heads = _first(part, ("num_attention_heads", "num_heads", "encoder_attention_heads"), 16)
    positions = _first(part, ("max_source_positions",), 0)
    rows = 1
    if not positions:
        side = _first(part, ("image_size",), 0) // max(_first(part, ("patch_size",), 16), 1)
        positions = min(side * side, _MOST_PATCHES) or _MOST_PATCHES
        rows = _USUAL_TILES if _is_cut(config) else 1
    values = rows * positions * (_POSITION_VALUES * width + _FEED_VALUES * feed)
    return values * dtype_bytes + heads * positions * positions * _SCORE_BYTES


def _is_cut(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") in _CUT or "image_grid_pinpoints" in config


def _first(part: Mapping[str, Any], names: Iterable[str], default: int) -> int:
    for name in names:
        value = part.get(name)
        value = max(value) if isinstance(value, list) and value and all(type(each) is int for each in value) else value
        if type(value) is int and value > 0:
            return min(value, _MOST)
    return default
