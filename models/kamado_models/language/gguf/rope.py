"""Rotary position embeddings: from GGUF to the `rope_scaling` of a transformers configuration. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from kamado.errors import UnsupportedCheckpoint

from .source import GgufSource

_TOLERANCE = 2e-3


def rope_theta(source: GgufSource) -> float:
    """The base of the rotary frequencies."""
    return source.meta.number("{arch}.rope.freq_base", 10000.0)


def rope_scaling(source: GgufSource, *, head_dim: int) -> dict[str, Any] | None:
    """`rope_scaling` as transformers has it, or None. `head_dim`: number of rotated values of a head.

    Raises UnsupportedCheckpoint for a kind that is unknown.
    """
    meta = source.meta
    if source.has("rope_freqs.weight"):
        return _llama3(source, head_dim)
    if source.has("rope_factors_long.weight", "rope_factors_short.weight"):
        return _longrope(source)
    kind = meta.text("{arch}.rope.scaling.type", "none")
    if kind == "none":
        # Old files have a bare factor.
        factor = meta.number("{arch}.rope.scale_linear", 1.0)
        return None if factor == 1.0 else {"rope_type": "linear", "factor": factor}
    factor = meta.number("{arch}.rope.scaling.factor", 1.0)
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        return _yarn(source, factor)
    raise UnsupportedCheckpoint(
        f"{source.file}: RoPE scaling of type {kind!r} cannot be used; known are linear, yarn, longrope and llama3"
    )


def _yarn(source: GgufSource, factor: float) -> dict[str, Any]:
    meta = source.meta
    scaling: dict[str, Any] = {"rope_type": "yarn", "factor": factor}
    if meta.has("{arch}.rope.scaling.original_context_length"):
        scaling["original_max_position_embeddings"] = meta.integer("{arch}.rope.scaling.original_context_length")
    for name, key in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
        if meta.has(f"{{arch}}.rope.scaling.{key}"):
            scaling[name] = meta.number(f"{{arch}}.rope.scaling.{key}")
    return scaling


def _longrope(source: GgufSource) -> dict[str, Any]:
    source.shape("rope_factors_long.weight")
    source.shape("rope_factors_short.weight")
    meta = source.meta
    scaling: dict[str, Any] = {
        "rope_type": "longrope",
        "long_factor": source.floats("rope_factors_long.weight"),
        "short_factor": source.floats("rope_factors_short.weight"),
        "original_max_position_embeddings": meta.integer("{arch}.rope.scaling.original_context_length"),
    }
    if meta.has("{arch}.rope.scaling.attn_factor"):
        scaling["attention_factor"] = meta.number("{arch}.rope.scaling.attn_factor")
    return scaling


def llama3_factors(
    *, theta: float, head_dim: int, factor: float, low: float, high: float, context: float
) -> list[float]:
    """What each frequency is divided by (Llama 3.1): 1 for short waves, `factor` for long ones, a blend between."""
    factors = []
    for i in range(head_dim // 2):
        wavelength = 2 * math.pi * theta ** (2 * i / head_dim)
        smooth = (context / wavelength - low) / (high - low)
        share = min(max(smooth, 0.0), 1.0)
        factors.append(1 / ((1 - share) / factor + share))
    return factors


def _llama3(source: GgufSource, head_dim: int) -> dict[str, Any] | None:
    """Find the parameters that the converter turned into `rope_freqs.weight`.

    In the blend, 1/f_i = (1 - s_i)/F + s_i, where s_i is linear in 1/wavelength_i: two points give the line. Only the
    ratios context : low : high matter, so low is set to 1, unless the usual 8192 : 1 : 4 fits.
    """
    stored = source.floats("rope_freqs.weight")
    theta = rope_theta(source)
    if len(stored) != head_dim // 2:
        raise UnsupportedCheckpoint(f"{source.file}: rope_freqs.weight has {len(stored)} factors, not {head_dim // 2}")
    factor = round(max(stored), 4)
    if factor == 1.0 and min(stored) == 1.0:
        return None
    low, high, context = 1.0, 4.0, 8192.0
    if not _agree(
        stored, llama3_factors(theta=theta, head_dim=head_dim, factor=factor, low=low, high=high, context=context)
    ):
        blend = [
            (1 / (2 * math.pi * theta ** (2 * i / head_dim)), f)
            for i, f in enumerate(stored)
            if 1.001 < f < factor * 0.999
        ]
        if len(blend) < 2 or factor <= 1.0:
            raise _unknown_factors(source)
        (x0, y0), (x1, y1) = [(x, (1 / f - 1 / factor) / (1 - 1 / factor)) for x, f in (blend[0], blend[-1])]
        slope = (y1 - y0) / (x1 - x0)
        crossing = slope * x0 - y0
        if crossing <= 0 or slope <= 0:
            raise _unknown_factors(source)
        low, high, context = 1.0, 1.0 + 1 / crossing, slope / crossing
        if not _agree(
            stored, llama3_factors(theta=theta, head_dim=head_dim, factor=factor, low=low, high=high, context=context)
        ):
            raise _unknown_factors(source)
        if abs(context - round(context)) < 1:
            context = float(round(context))
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": int(context),
    }


def _agree(stored: Sequence[float], computed: Sequence[float]) -> bool:
    return all(math.isclose(a, b, rel_tol=_TOLERANCE) for a, b in zip(stored, computed, strict=True))


def _unknown_factors(source: GgufSource) -> UnsupportedCheckpoint:
    return UnsupportedCheckpoint(
        f"{source.file}: the RoPE factors in rope_freqs.weight follow no rule that is known here"
    )
