"""Which models have a forward of their own on a CPU, as far as headers tell. `native_step` looks closer. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kamado.checkpoint.types import Checkpoint
from kamado.memory.plan import PlanOptions
from kamado.quant import STORED, Quant

from .batching import PAGED
from .shape import TextShape

FAMILIES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
"""transformers' classes begin with that, by model type."""
_SCHEMES = frozenset({"int8", "int8-dynamic", "int8-weight-only", "int4"})
_GROUP, _HEAD_MULTIPLE = 32, 16
_FEATURES = frozenset({"avx2", "fma", "f16c"})
"""Of CPUs that have it."""


def kv_dtype(checkpoint: Checkpoint, shape: TextShape, how: str, dtype: str, options: PlanOptions) -> str:
    """The form of its KV cache, one of `kamado.memory.plan.KV_DTYPES`: what was asked for, and else float16 where a
    native forward of quantized weights reads it, twice as fast as float32 comes from memory. Others would have to copy
    what they read; they have the compute precision."""
    if options.kv_dtype != "auto":
        return options.kv_dtype
    on_cpu = options.device == "cpu" and dtype == "float32" and _FEATURES.issubset(options.features)
    config = checkpoint.config
    known = how == PAGED and config.get("model_type") in FAMILIES and config.get("hidden_act", "silu") == "silu"
    fits = not shape.head_dim % _HEAD_MULTIPLE and not any(shape.window)
    return "float16" if on_cpu and known and fits and _is_tiled(checkpoint, options.quant) else "auto"


def _is_tiled(checkpoint: Checkpoint, quant: Quant | None) -> bool:
    """Whether all its matrices come to be in the order of the library in C: quantized when they are loaded, or before,
    as `kamado quantize` writes them."""
    if quant is not None and quant.scheme != STORED:
        plain = quant.group_size in (None, _GROUP) and not quant.skip and not quant.overrides
        return plain and {quant.scheme, quant.embeddings} <= _SCHEMES
    stored = checkpoint.config.get("quantization_config")
    groups = stored.get("config_groups") if isinstance(stored, Mapping) and not stored.get("ignore") else None
    return isinstance(groups, Mapping) and bool(groups) and all(map(_is_integers, groups.values()))


def _is_integers(group: Any) -> bool:
    """A group of matrices in compressed-tensors' words."""
    weights = group.get("weights") if isinstance(group, Mapping) else None
    wanted = {"type": "int", "strategy": "group", "group_size": _GROUP, "symmetric": True}
    return (
        isinstance(weights, Mapping)
        and weights.get("num_bits") in (4, 8)
        and not weights.get("actorder")
        and all(weights.get(name) == value for name, value in wanted.items())
    )
