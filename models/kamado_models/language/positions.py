"""What a configuration says of positions, for models whose positions mean something else as sequences grow. No torch.

`get` gives the value of a field of the decoder's configuration, None where it has none: `Fields.get` for a file,
`fields_of` for transformers' object.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Get = Callable[[str], Any]

_SHIFTING = {"dynamic", "longrope"}
_OLD_LONGROPE = {"phi3": {"su", "yarn"}}
"""What early files of a model type call LongRoPE."""


def fields_of(config: Any) -> Get:
    """The fields of transformers' configuration object."""
    text = config.get_text_config(decoder=True)
    return lambda name: getattr(text, name, None)


def shifting_positions(get: Get) -> str | None:
    """Why rows of other lengths or pieces of a prompt may change results in a way that short probes cannot show."""
    if get("index_topk"):
        return "attention picks keys of long sequences (index_topk)"
    kinds = {_rope_type(get, entry) for entry in _rope_settings(get)} & _SHIFTING
    return f"rope_type {min(kinds)!r} scales with the longest row of a forward" if kinds else None


def longrope_switch(get: Get) -> int | None:
    """Length beyond which LongRoPE (Ding et al. 2024) takes its other factors, for all positions; None without it."""
    for entry in _rope_settings(get):
        if _rope_type(get, entry) == "longrope":
            original = entry.get("original_max_position_embeddings") or get("original_max_position_embeddings")
            return int(original or get("max_position_embeddings"))
    return None


def _rope_type(get: Get, entry: Mapping[str, Any]) -> str:
    stated = str(entry.get("rope_type") or entry.get("type"))
    return "longrope" if stated in _OLD_LONGROPE.get(str(get("model_type")), ()) else stated


def _rope_settings(get: Get) -> list[Mapping[str, Any]]:
    """The rotary settings, which some models have once for each kind of layer."""
    rope = get("rope_parameters") or get("rope_scaling")
    settings = [rope, *rope.values()] if isinstance(rope, Mapping) else []
    return [entry for entry in settings if isinstance(entry, Mapping)]
