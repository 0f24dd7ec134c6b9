"""Which models have a forward of their own on a CPU, as far as headers tell. `native_step` looks closer. No torch."""

from __future__ import annotations

from kamado.memory.plan import PlanOptions

from .batching import PAGED
from .shape import TextShape

FAMILIES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
"""transformers' classes begin with that, by model type."""
_SCHEMES = frozenset({"int8-dynamic", "int8-weight-only", "int4"})
_FEATURES = frozenset({"avx2", "fma", "f16c"})
"""Of CPUs that have it."""


def kv_dtype(shape: TextShape, how: str, dtype: str, options: PlanOptions) -> str:
    """The form of its KV cache, one of `kamado.memory.plan.KV_DTYPES`: what was asked for, and else float16 where
    native forwards of quantized weights read it, twice as fast as float32 comes from memory. Others would have to copy
    what they read; they have the compute precision."""
    if options.kv_dtype != "auto":
        return options.kv_dtype
    quantized = options.quant is not None and options.quant.scheme in _SCHEMES
    on_cpu = options.device == "cpu" and dtype == "float32" and _FEATURES.issubset(options.features)
    known = how == PAGED and shape.model_type in FAMILIES and not any(shape.window)
    return "float16" if quantized and on_cpu and known else "auto"
