"""What would make a model fit that does not: the same plan with smaller forms, and those that are small enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from ..quant import Quant
from ..units import format_bytes
from .plan import DTYPES, PlanOptions


def forms_that_fit(
    options: PlanOptions, needed: Callable[[PlanOptions], int], *, dtype: str, quantizable: bool, pages: bool = False
) -> list[str]:
    """A sentence for each form in which the model fits `options.budget_bytes`, the least loss first; several options at
    once only where one alone would not do.

    `needed`: bytes without which it does not run, with other options. `dtype`: the precision that was chosen.
    `quantizable`: whether its weights can be quantized; `pages`: whether its KV cache can be held in 8 bits."""
    found: list[str] = []
    for changes in _changes(options, dtype, quantizable=quantizable, pages=pages):
        if len(changes) > 1 and found:
            break
        size = needed(replace(options, **{name: _on(options.device, value) for name, value in changes.items()}))
        if size <= options.budget_bytes:
            flags = " ".join(f"--{name.replace('_', '-')} {_typed(value)}" for name, value in changes.items())
            found.append(f"{flags} needs about {format_bytes(size)}.")
    return found


def _changes(options: PlanOptions, dtype: str, *, quantizable: bool, pages: bool) -> Iterator[Mapping[str, Any]]:
    half = next((good for good in options.good_dtypes if good != "float32"), None)
    keeps = options.kv_dtype in DTYPES[1:]  # and does without what computes in fewer bits
    halves: list[Mapping[str, Any]] = [{"dtype": half}] if dtype == "float32" and half is not None and not keeps else []
    shrinks: list[Mapping[str, Any]] = (
        [{"kv_dtype": "int8"}] if pages and options.kv_dtype not in ("int8", "fp8") else []
    )
    quants = [{"quant": Quant(scheme=name)} for name in ("int8", "int4")] if quantizable and not options.quant else []
    yield from (*halves, *shrinks, *quants)
    yield from ({**quants[-1], **other} for other in (*shrinks, *halves) if quants)


def _on(device: str, value: Any) -> Any:
    """What an option means there."""
    return value.on(device.partition(":")[0]) if isinstance(value, Quant) else value


def _typed(value: Any) -> str:
    return value.scheme if isinstance(value, Quant) else str(value)
