"""What lies between the products of a decoder layer, one launch each, rounded where separate operations round.

Shapes: T tokens, E numbers of a token, H query heads, K key-value heads, D head size.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024
_WIDE = 2048
"""Rows longer than this are worth more threads."""


def add_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`x + residual` (T, E), and its RMS norm times `weight` (E,). Without a residual, `x` itself. All contiguous."""
    rows, size = x.shape
    normed = torch.empty_like(x)
    total = x if residual is None else torch.empty_like(x)
    with torch.cuda.device_of(x):
        _add_norm[(rows,)](
            x, x if residual is None else residual, weight, total, normed, size, eps,
            ADDS=residual is not None, BLOCK=triton.next_power_of_2(size), num_warps=8 if size > _WIDE else 4,
        )  # fmt: skip
    return total, normed


def turn_and_write(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    angles: tuple[Tensor, Tensor],
    slots: Tensor,
    pages: tuple[Tensor, Tensor],
    norms: tuple[Tensor, Tensor, float] | None = None,
) -> Tensor:
    """Rotary embedding: of `query` (T, H * D), returned as (T, H, D); of `key` (T, K * D), which is written with
    `value` (T, K * D) to `slots` (T,) of `pages`, keys and values (pages, page tokens, K, D). Rows may lie apart.
    `angles`: cosines and sines (T, D), contiguous. `norms`: RMS norms of each head before that, weights (D,) and
    epsilon."""
    tokens, dim = angles[0].shape
    keys, values = pages
    shared = keys.shape[2]
    heads = query.shape[1] // dim
    out = query.new_empty((tokens, heads, dim))
    weights = norms or (angles[0], angles[0], 0.0)
    with torch.cuda.device_of(query):
        _turn_and_write[(tokens, heads + 2 * shared)](
            query, key, value, angles[0], angles[1], slots, keys, values, out, weights[0], weights[1],
            query.stride(0), key.stride(0), value.stride(0), weights[2],
            HEADS=heads, SHARED=shared, DIM=dim, HALF_UP=triton.next_power_of_2(dim // 2),
            DIM_UP=triton.next_power_of_2(dim), NORMED=norms is not None, num_warps=1,
        )  # fmt: skip
    return out


def silu_times(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, both (T, E), whose rows may lie apart."""
    tokens, size = gate.shape
    out = gate.new_empty((tokens, size))
    with torch.cuda.device_of(gate):
        _silu_times[(tokens, triton.cdiv(size, _BLOCK))](
            gate, up, out, gate.stride(0), up.stride(0), size, BLOCK=_BLOCK, num_warps=4
        )
    return out


@triton.jit
def _add_norm(
    x, residual, weight, total, normed, size, eps,
    ADDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.arange(0, BLOCK)
    place = tl.program_id(0).to(tl.int64) * size + at
    inside = at < size
    kind = normed.dtype.element_ty
    row = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        row = (row + tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)).to(kind)
        tl.store(total + place, row, mask=inside)
        row = row.to(tl.float32)
    scaled = row * tl.rsqrt(tl.sum(row * row, 0) / size + eps)
    factor = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + place, (scaled.to(kind).to(tl.float32) * factor).to(kind), mask=inside)


@triton.jit
def _turn(
    source, target, cosines, sines, weight, eps,
    DIM: tl.constexpr, HALF_UP: tl.constexpr, NORMED: tl.constexpr,
):  # fmt: skip
    """One head, whose halves are turned against each other."""
    half: tl.constexpr = DIM // 2
    at = tl.arange(0, HALF_UP)
    inside = at < half
    kind = target.dtype.element_ty
    low = tl.load(source + at, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(source + half + at, mask=inside, other=0.0).to(tl.float32)
    if NORMED:
        scale = tl.rsqrt((tl.sum(low * low, 0) + tl.sum(high * high, 0)) / DIM + eps)
        low = (low * scale).to(kind).to(tl.float32) * tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
        high = (high * scale).to(kind).to(tl.float32)
        high = high * tl.load(weight + half + at, mask=inside, other=0.0).to(tl.float32)
        low, high = low.to(kind).to(tl.float32), high.to(kind).to(tl.float32)
    cos_low = tl.load(cosines + at, mask=inside, other=0.0).to(tl.float32)
    sin_low = tl.load(sines + at, mask=inside, other=0.0).to(tl.float32)
    cos_high = tl.load(cosines + half + at, mask=inside, other=0.0).to(tl.float32)
    sin_high = tl.load(sines + half + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(target + at, (low * cos_low - high * sin_low).to(kind), mask=inside)
    tl.store(target + half + at, (high * cos_high + low * sin_high).to(kind), mask=inside)


@triton.jit
def _turn_and_write(
    query, key, value, cosines, sines, slots, keys, values, out,
    query_norm, key_norm, query_row, key_row, value_row, eps,
    HEADS: tl.constexpr, SHARED: tl.constexpr, DIM: tl.constexpr, HALF_UP: tl.constexpr, DIM_UP: tl.constexpr,
    NORMED: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slots + row).to(tl.int64)
    cosines += row * DIM
    sines += row * DIM
    if head < HEADS:
        target = out + (row * HEADS + head) * DIM
        _turn(query + row * query_row + head * DIM, target, cosines, sines, query_norm, eps, DIM, HALF_UP, NORMED)
    elif head < HEADS + SHARED:
        shared = head - HEADS
        target = keys + (slot * SHARED + shared) * DIM
        _turn(key + row * key_row + shared * DIM, target, cosines, sines, key_norm, eps, DIM, HALF_UP, NORMED)
    else:
        shared = head - HEADS - SHARED
        at = tl.arange(0, DIM_UP)
        found = tl.load(value + row * value_row + shared * DIM + at, mask=at < DIM)
        tl.store(values + (slot * SHARED + shared) * DIM + at, found, mask=at < DIM)


@triton.jit
def _silu_times(
    gate, up, out, gate_row, up_row, size, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    kind = out.dtype.element_ty
    opened = tl.load(gate + row * gate_row + at, mask=inside, other=0.0).to(tl.float32)
    opened = (opened * tl.sigmoid(opened)).to(kind).to(tl.float32)
    found = opened * tl.load(up + row * up_row + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * size + at, found.to(kind), mask=inside)
