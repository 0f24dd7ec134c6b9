"""Attention of single tokens over the pages of a KV cache: every key and value is read once, where it lies.

The keys of a row are split among several programs, which keep a running softmax each (Milakov and Gimelshein 2018; Dao
et al. 2023, flash decoding); a second kernel joins their results. Which keys a row has is read on the device, so that
one launch fits rows of any length.

Shapes: B rows, H query heads, K key-value heads, D head size, V size of a value, P pages of a row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_DIM = 256
"""Largest head."""
_BLOCK = 32
"""Keys that are read at once."""
_LEAST_ROWS = 16
"""Matrix units take no fewer."""
_LEAST_KEYS = 128
"""Of one program: fewer are not worth joining."""
_MAX_SPLITS = 64
_WAVES = 2
"""Programs for each of the GPU's processors."""


def paged_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    tables: Tensor,
    lengths: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Softmax attention (B, H, V) of `query` (B, H, D) over the last `window` (None: all) of the first `lengths` (B,),
    at least 1, keys of the pages `tables` (B, P) int64. `keys` (pages, page tokens, K, D) and `values` (..., V) are
    contiguous and of the query's precision; sums are float32. `softcap`, `sinks` (H,): see `language.attention`. Of
    tables nothing behind a row's length is looked at."""
    rows, num_heads, dim = query.shape
    page, shared, width = keys.shape[1], keys.shape[2], values.shape[3]
    groups = num_heads // shared
    if query.stride(2) != 1:
        query = query.contiguous()
    splits = _num_splits(rows * shared, tables.shape[1] * page, query.device)
    out = query.new_empty((rows, num_heads, width))
    joins = splits > 1 or sinks is not None
    parts = torch.empty((rows, num_heads, splits, width), dtype=torch.float32, device=query.device) if joins else out
    sums = torch.empty((rows, num_heads, splits), dtype=torch.float32, device=query.device) if joins else out
    with torch.cuda.device_of(query):
        _attend[(rows, shared, splits)](
            query, keys, values, tables, lengths, parts, sums,
            query.stride(0), query.stride(1), tables.stride(0), scale, softcap or 1.0,
            PAGE=page, SHARED=shared, GROUPS=groups, ROWS=max(_LEAST_ROWS, triton.next_power_of_2(groups)),
            DIM=dim, DIM_UP=max(_LEAST_ROWS, triton.next_power_of_2(dim)),
            WIDTH=width, WIDTH_UP=max(_LEAST_ROWS, triton.next_power_of_2(width)),
            BLOCK=_BLOCK, SPLITS=splits, WINDOW=window or 0, CAPPED=softcap is not None, JOINS=joins,
            num_warps=4, num_stages=3,
        )  # fmt: skip
        if joins:
            _join[(rows, num_heads)](
                parts, sums, sums if sinks is None else sinks, out,
                HEADS=num_heads, SPLITS=splits, SPLITS_UP=triton.next_power_of_2(splits),
                WIDTH=width, WIDTH_UP=triton.next_power_of_2(width), HAS_SINKS=sinks is not None,
                num_warps=4,
            )  # fmt: skip
    return out


def _num_splits(programs: int, most_keys: int, device: torch.device) -> int:
    """Among how many programs the keys of a row are split, so that the GPU is full."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
    wanted = min(-(-_WAVES * processors // programs), most_keys // _LEAST_KEYS, _MAX_SPLITS)
    return max(wanted, 1)


@triton.jit
def _attend(
    query, keys, values, tables, lengths, parts, sums,
    query_row, query_head, table_row, scale, softcap,
    PAGE: tl.constexpr, SHARED: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr,
    DIM: tl.constexpr, DIM_UP: tl.constexpr, WIDTH: tl.constexpr, WIDTH_UP: tl.constexpr,
    BLOCK: tl.constexpr, SPLITS: tl.constexpr, WINDOW: tl.constexpr, CAPPED: tl.constexpr, JOINS: tl.constexpr,
):  # fmt: skip
    """One row, one key-value head with the query heads that share it, one part of the keys."""
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + row).to(tl.int32)
    first = 0
    if WINDOW > 0:
        first = tl.maximum(length - WINDOW, 0)
    each = tl.cdiv(tl.cdiv(length - first, SPLITS), BLOCK) * BLOCK
    begin = first + split * each
    end = tl.minimum(begin + each, length)
    group, dim, wide = tl.arange(0, ROWS), tl.arange(0, DIM_UP), tl.arange(0, WIDTH_UP)
    heads = head * GROUPS + group
    is_head = group[:, None] < GROUPS
    asked = tl.load(
        query + row.to(tl.int64) * query_row + heads[:, None] * query_head + dim[None, :],
        mask=is_head & (dim[None, :] < DIM),
        other=0.0,
    )
    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    found = tl.zeros([ROWS, WIDTH_UP], tl.float32)
    for start in range(begin, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < end
        page = tl.load(tables + row.to(tl.int64) * table_row + at // PAGE, mask=inside, other=0)
        place = (page * PAGE + at % PAGE) * SHARED + head
        key = tl.load(
            keys + place[:, None] * DIM + dim[None, :], mask=inside[:, None] & (dim[None, :] < DIM), other=0.0
        )
        scores = tl.dot(asked, tl.trans(key), input_precision="ieee") * scale
        if CAPPED:
            scores = (2.0 * tl.sigmoid(2.0 * scores / softcap) - 1.0) * softcap
        scores = tl.where(inside[None, :], scores, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        kept = tl.exp(best - higher)
        value = tl.load(
            values + place[:, None] * WIDTH + wide[None, :], mask=inside[:, None] & (wide[None, :] < WIDTH), other=0.0
        )
        total = total * kept + tl.sum(weights, 1)
        found = found * kept[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        best = higher
    # A part without keys has a sum of 0, and weighs nothing when parts are joined.
    found = found / tl.where(total > 0.0, total, 1.0)[:, None]
    place = (row.to(tl.int64) * (SHARED * GROUPS) + heads) * SPLITS + split
    tl.store(
        parts + place[:, None] * WIDTH + wide[None, :],
        found.to(parts.dtype.element_ty),
        mask=is_head & (wide[None, :] < WIDTH),
    )
    if JOINS:
        tl.store(sums + place, tl.where(total > 0.0, best + tl.log(total), float("-inf")), mask=group < GROUPS)


@triton.jit
def _join(
    parts, sums, sinks, out,
    HEADS: tl.constexpr, SPLITS: tl.constexpr, SPLITS_UP: tl.constexpr,
    WIDTH: tl.constexpr, WIDTH_UP: tl.constexpr, HAS_SINKS: tl.constexpr,
):  # fmt: skip
    """The parts of one row and head, each weighed by the sum of its softmax."""
    head = tl.program_id(1)
    place = tl.program_id(0).to(tl.int64) * HEADS + head
    split, wide = tl.arange(0, SPLITS_UP), tl.arange(0, WIDTH_UP)
    logs = tl.load(sums + place * SPLITS + split, mask=split < SPLITS, other=float("-inf"))
    best = tl.max(logs, 0)
    if HAS_SINKS:
        sink = tl.load(sinks + head).to(tl.float32)
        best = tl.maximum(best, sink)
    weights = tl.exp(logs - best)
    total = tl.sum(weights, 0)
    if HAS_SINKS:
        total += tl.exp(sink - best)
    found = tl.load(
        parts + (place * SPLITS + split[:, None]) * WIDTH + wide[None, :],
        mask=(split[:, None] < SPLITS) & (wide[None, :] < WIDTH),
        other=0.0,
    )
    result = tl.sum(found * weights[:, None], 0) / total
    tl.store(out + place * WIDTH + wide, result.to(out.dtype.element_ty), mask=wide < WIDTH)
