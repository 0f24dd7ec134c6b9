"""What kind each layer is: attention over everything or over a window, a state of fixed size, or no memory at all.

The names are those of transformers' `layer_types`. Older files have none: then the rule of the architecture decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from kamado.errors import UnsupportedCheckpoint

from .shape_fields import MAX_LAYERS, Fields

LayerKind = Literal["full", "sliding", "chunked", "linear", "conv", "hybrid", "hybrid_sliding", "none"]

ATTENTION: frozenset[str] = frozenset({"full", "sliding", "chunked", "hybrid", "hybrid_sliding"})
"""Kinds that keep keys and values."""
RECURRENT: frozenset[str] = frozenset({"linear", "conv", "hybrid", "hybrid_sliding"})
"""Kinds that keep a state of fixed size."""
WINDOWED: frozenset[str] = frozenset({"sliding", "chunked", "hybrid_sliding"})

_KINDS: dict[str, LayerKind] = {
    "full_attention": "full",
    "attention": "full",
    "global": "full",
    "indexed_attention": "full",
    "deepseek_sparse_attention": "full",
    "sliding_attention": "sliding",
    "local": "sliding",
    "chunked_attention": "chunked",
    "linear_attention": "linear",
    "mamba": "linear",
    "mamba2": "linear",
    "recurrent": "linear",
    "conv": "conv",
    "short_conv": "conv",
    "hybrid": "hybrid",
    "parallel": "hybrid",
    "hybrid_sliding": "hybrid_sliding",
    "moe": "none",
    "mlp": "none",
    "dummy": "none",
}
_PATTERN_LETTERS: dict[str, LayerKind] = {"M": "linear", "*": "full", "-": "none", "E": "none"}


def layer_kinds(fields: Fields, num_layers: int) -> tuple[LayerKind, ...]:
    """One kind for each of `num_layers` layers. Raises UnsupportedCheckpoint on unknown names."""
    if num_layers > MAX_LAYERS:
        raise UnsupportedCheckpoint(f"num_hidden_layers in the configuration is {num_layers}, not a usable number")
    stated = fields.names("layer_types") or fields.names("layers_block_type")
    if stated is not None:
        kinds = [_kind(name) for name in stated]
    elif fields.model_type in _RULES:
        kinds = _RULES[fields.model_type](fields, num_layers)
    else:
        kinds = _by_window(fields, num_layers)
    kinds = kinds[:num_layers] + [kinds[-1]] * (num_layers - len(kinds))
    if fields.model_type.startswith("gemma4"):
        kinds[-1] = "full"
    return tuple(_without_shared(fields, kinds))


def window_of(fields: Fields, kind: LayerKind) -> int | None:
    """Tokens that a layer of this kind looks back at most, itself included; None: all."""
    if kind == "chunked":
        return fields.optional("attention_chunk_size")
    if kind in WINDOWED:
        return fields.optional("sliding_window") or fields.optional("attention_window_size")
    return None


def _kind(name: str) -> LayerKind:
    try:
        return _KINDS[name]
    except KeyError:
        raise UnsupportedCheckpoint(f"Layers of type {name!r} are unknown; a newer Kamado may know them") from None


def _without_shared(fields: Fields, kinds: list[LayerKind]) -> list[LayerKind]:
    """The last `num_kv_shared_layers` layers read the keys and values of earlier ones and keep none."""
    num_shared = fields.optional("num_kv_shared_layers") or 0
    own = max(len(kinds) - num_shared, 0)
    return kinds[:own] + ["none"] * (len(kinds) - own)


def _by_window(fields: Fields, num_layers: int) -> list[LayerKind]:
    if fields.optional("sliding_window") is not None and fields.flag("use_sliding_window", True):
        return ["sliding"] * num_layers
    if fields.optional("attention_chunk_size") is not None:
        return ["chunked"] * num_layers
    return ["full"] * num_layers


_Rule = Callable[[Fields, int], list[LayerKind]]


def _every(kind: LayerKind, field: str | None, default: int, other: LayerKind = "full", at: int = -1) -> _Rule:
    """All layers are of `kind`, except that of each period (its last, or the one at index `at`)."""

    def rule(fields: Fields, num_layers: int) -> list[LayerKind]:
        period = max((fields.optional(field) if field else None) or default, 1)
        return [other if i % period == at % period else kind for i in range(num_layers)]

    return rule


def _same(kind: LayerKind) -> _Rule:
    return lambda fields, num_layers: [kind] * num_layers


def _listed(field: str, inside: LayerKind, outside: LayerKind, default_inside: bool) -> _Rule:
    """Layers whose index the field lists, and the others; where the field is absent all are alike."""

    def rule(fields: Fields, num_layers: int) -> list[LayerKind]:
        listed = fields.numbers(field)
        if listed is None:
            return [inside if default_inside else outside] * num_layers
        return [inside if i in listed else outside for i in range(num_layers)]

    return rule


def _from_layer(fields: Fields, num_layers: int) -> list[LayerKind]:
    """A window from layer `max_window_layers` on, where it is switched on."""
    on = fields.flag("use_sliding_window") and fields.optional("sliding_window") is not None
    first = fields.integer("max_window_layers", 0) if on else num_layers
    return ["sliding" if i >= first else "full" for i in range(num_layers)]


def _jamba(fields: Fields, num_layers: int) -> list[LayerKind]:
    period, offset = fields.integer("attn_layer_period", 8), fields.integer("attn_layer_offset", 4)
    return ["full" if i % max(period, 1) == offset else "linear" for i in range(num_layers)]


def _zamba(fields: Fields, num_layers: int) -> list[LayerKind]:
    period, offset = fields.integer("attn_layer_period", 6), fields.integer("attn_layer_offset", 4)
    later: list[LayerKind] = ["hybrid" if i % max(period, 1) == offset else "linear" for i in range(num_layers - 3)]
    return ["linear", "linear", "hybrid", *later]


def _zamba2(fields: Fields, num_layers: int) -> list[LayerKind]:
    hybrid = {6, 12, 18, 24, 30, 36, 42, 47, 51}
    return ["hybrid" if i in hybrid else "linear" for i in range(num_layers)]


def _nemotron_h(fields: Fields, num_layers: int) -> list[LayerKind]:
    pattern = fields.get("hybrid_override_pattern")
    if not isinstance(pattern, str) or not pattern:
        return ["linear", "none", "full", "none"]
    return [_PATTERN_LETTERS.get(letter, "none") for letter in pattern]


def _recurrent_gemma(fields: Fields, num_layers: int) -> list[LayerKind]:
    blocks: Sequence[str] = fields.names("block_types") or ("recurrent", "recurrent", "attention")
    return ["linear" if blocks[i % len(blocks)] == "recurrent" else "sliding" for i in range(num_layers)]


def _rope_layers(with_rope: LayerKind, without: LayerKind) -> _Rule:
    """`no_rope_layers` says 1 for layers that have rotary positions; by default all but every fourth."""

    def rule(fields: Fields, num_layers: int) -> list[LayerKind]:
        period = max(fields.integer("no_rope_layer_interval", 4), 1)
        listed = fields.numbers("no_rope_layers") or [int((i + 1) % period != 0) for i in range(num_layers)]
        return [with_rope if has_rope else without for has_rope in listed]

    return rule


def _smollm3(fields: Fields, num_layers: int) -> list[LayerKind]:
    on = fields.flag("use_sliding_window") and fields.optional("sliding_window") is not None
    return _rope_layers("full", "sliding" if on else "full")(fields, num_layers)


def _kimi_linear(fields: Fields, num_layers: int) -> list[LayerKind]:
    stated = fields.get("linear_attn_config")
    full = stated.get("full_attn_layers") if isinstance(stated, dict) else None
    if isinstance(full, list):
        return ["full" if i + 1 in full else "linear" for i in range(num_layers)]
    return ["full" if i and i % 4 == 0 else "linear" for i in range(num_layers)]


def _gpt_neo(fields: Fields, num_layers: int) -> list[LayerKind]:
    """Its local layers keep everything too: the window is in the mask alone."""
    return ["full"] * num_layers


_RULES: dict[str, _Rule] = {
    "afmoe": _every("sliding", "global_attn_every_n_layers", 4),
    "bailing_hybrid": _every("linear", "layer_group_size", 6),
    "bamba": _listed("attn_layer_indices", "full", "linear", default_inside=False),
    "cohere2": _every("sliding", "sliding_window_pattern", 4),
    "cwm": _every("sliding", None, 4, at=0),
    "exaone4": _every("sliding", "sliding_window_pattern", 4),
    "exaone_moe": _every("sliding", "sliding_window_pattern", 4),
    "falcon_h1": _same("hybrid"),
    "falcon_mamba": _same("linear"),
    "gemma3n_text": _every("sliding", None, 5),
    "gpt_neo": _gpt_neo,
    "granite_swa": _every("sliding", None, 4, at=0),
    "granitemoe_swa": _every("sliding", None, 4, at=0),
    "granitemoehybrid": _same("linear"),
    "jamba": _jamba,
    "kimi_linear": _kimi_linear,
    "kolibri1": _every("sliding", None, 5),
    "lfm2": _listed("full_attn_idxs", "full", "conv", default_inside=True),
    "llama4_text": _rope_layers("chunked", "full"),
    "mamba": _same("linear"),
    "mamba2": _same("linear"),
    "ministral": _by_window,
    "minimax": _every("linear", None, 2, at=0),
    "modernbert-decoder": _every("sliding", "global_attn_every_n_layers", 3, at=0),
    "nemotron_h": _nemotron_h,
    "olmo3": _every("sliding", None, 4),
    "olmo_hybrid": _every("linear", None, 4),
    "recurrent_gemma": _recurrent_gemma,
    "rwkv": _same("linear"),
    "smollm3": _smollm3,
    "zamba": _zamba,
    "zamba2": _zamba2,
    **dict.fromkeys(("gemma2", "gpt_oss", "t5_gemma_module", "vaultgemma"), _every("sliding", None, 2)),
    **dict.fromkeys(
        ("gemma3_text", "gemma4_text", "gemma4_unified_text"), _every("sliding", "sliding_window_pattern", 6)
    ),
    **dict.fromkeys(
        ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "qwen4_exp_text"),
        _every("linear", "full_attention_interval", 4),
    ),
    **dict.fromkeys(("dots1", "qwen2", "qwen2_moe", "qwen3"), _from_layer),
}
