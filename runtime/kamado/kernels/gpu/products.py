"""Products of few rows with weights in 8 or 4 bits, which are read as they are: each byte of the matrix once.

One row is multiplied and summed in float32; several go through the matrix units, with weights restored to the rows'
precision in registers. Shapes: T rows, N outputs, E inputs, in groups of G that share a scale.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_ROWS = 64
"""More are better off with the whole matrix restored once: then arithmetic counts, not memory."""
_LEAST_ROWS = 16
"""Matrix units take no fewer."""
_LEAST_GROUP = 16


def fits(group: int, columns: int) -> bool:
    """Whether the kernels know groups of this size."""
    return group == columns or (group >= _LEAST_GROUP and triton.next_power_of_2(group) == group and group <= 256)


def product(x: Tensor, values: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """`x` (T, E), T up to MAX_ROWS, rows contiguous, times the transposed matrix `scale * values`: (T, N) of x's dtype.
    `values`: int8 or float8_e4m3fn (N, E), or uint8 (N, E / 2), two whole numbers from -8 each, the even column in the
    low half. `scale` (N, E / G), of a size for which `fits` holds. Sums are float32."""
    rows, columns = x.shape
    out_features, groups = scale.shape
    group = columns // groups
    out = x.new_empty((rows, out_features))
    floats = values.dtype == torch.float8_e4m3fn
    form = 2 if floats else 1 if values.dtype == torch.uint8 else 0
    values = values.view(torch.uint8) if floats else values
    common = {"GROUP": 0 if groups == 1 else group, "FORM": form, "BIASED": bias is not None}
    arguments = (x, values, scale, bias if bias is not None else scale, out, columns, out_features, x.stride(0))
    with torch.cuda.device_of(x):
        if rows == 1:
            block, wide = (8, 512) if out_features > 1 << 13 else (4, 1024)
            _one_row[(triton.cdiv(out_features, block),)](*arguments, BLOCK=block, WIDE=wide, num_warps=4, **common)
        else:
            block = 32 if out_features > 1 << 13 else 16
            _few_rows[(triton.cdiv(out_features, block),)](
                *arguments, rows, ROWS=max(_LEAST_ROWS, triton.next_power_of_2(rows)), BLOCK=block,
                WIDE=128 if form == 1 or rows > 32 else 256, num_warps=4, num_stages=3, **common,
            )  # fmt: skip
    return out


@triton.jit
def _restored(
    values, scale, place, first, columns, is_out,
    GROUP: tl.constexpr, FORM: tl.constexpr, HIGH: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """float32 (BLOCK, WIDE): weights of columns from `first` on, times their scales but for those of whole rows. FORM:
    0 is whole numbers of 8 bits; 1 two of 4 bits in each byte, of which every other column is meant, from the first or,
    with HIGH, from the second on; 2 the bits of e4m3. `place` (BLOCK,): rows of the matrix."""
    STEP: tl.constexpr = 2 if FORM == 1 else 1
    at = first // STEP + tl.arange(0, WIDE)
    inside = is_out[:, None] & (at[None, :] < columns // STEP)
    stored = tl.load(values + place[:, None] * (columns // STEP) + at[None, :], mask=inside, other=0)
    if FORM == 1:
        half = (stored >> 4) if HIGH else (stored & 15)
        found = half.to(tl.float32) - 8.0
    elif FORM == 2:
        found = stored.to(tl.float8e4nv, bitcast=True).to(tl.float32)
    else:
        found = stored.to(tl.float32)
    if GROUP > 0:
        SHARE: tl.constexpr = GROUP // STEP
        number = first // GROUP + tl.arange(0, WIDE // SHARE)
        factor = tl.load(
            scale + place[:, None] * (columns // GROUP) + number[None, :],
            mask=is_out[:, None] & (number[None, :] < columns // GROUP),
            other=0.0,
        ).to(tl.float32)
        found = tl.reshape(tl.reshape(found, (BLOCK, WIDE // SHARE, SHARE)) * factor[:, :, None], (BLOCK, WIDE))
    return found


@triton.jit
def _one_row(
    x, values, scale, bias, out, columns, out_features, x_row,
    GROUP: tl.constexpr, FORM: tl.constexpr, BIASED: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_out = number < out_features
    place = number.to(tl.int64)
    STEP: tl.constexpr = 2 if FORM == 1 else 1
    sums = tl.zeros([BLOCK, WIDE], tl.float32)
    for first in range(0, columns, WIDE * STEP):
        at = first + tl.arange(0, WIDE * STEP)
        given = tl.load(x + at, mask=at < columns, other=0.0).to(tl.float32)
        if FORM == 1:
            given, odd = tl.split(tl.reshape(given, (WIDE, 2)))
        weight = _restored(values, scale, place, first, columns, is_out, GROUP, FORM, False, BLOCK, WIDE)
        sums += weight * given[None, :]
        if FORM == 1:
            weight = _restored(values, scale, place, first, columns, is_out, GROUP, FORM, True, BLOCK, WIDE)
            sums += weight * odd[None, :]
    found = tl.sum(sums, 1)
    if GROUP == 0:
        found = found * tl.load(scale + place, mask=is_out, other=0.0).to(tl.float32)
    if BIASED:
        found += tl.load(bias + place, mask=is_out, other=0.0).to(tl.float32)
    tl.store(out + place, found.to(out.dtype.element_ty), mask=is_out)


@triton.jit
def _few_rows(
    x, values, scale, bias, out, columns, out_features, x_row, rows,
    GROUP: tl.constexpr, FORM: tl.constexpr, BIASED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_out = number < out_features
    place = number.to(tl.int64)
    row = tl.arange(0, ROWS)
    is_row = row < rows
    kind = x.dtype.element_ty
    STEP: tl.constexpr = 2 if FORM == 1 else 1
    found = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in range(0, columns, WIDE * STEP):
        at = first + tl.arange(0, WIDE * STEP)
        asked = x + row[:, None].to(tl.int64) * x_row + at[None, :]
        given = tl.load(asked, mask=is_row[:, None] & (at[None, :] < columns), other=0.0)
        if FORM == 1:
            given, odd = tl.split(tl.reshape(given, (ROWS, WIDE, 2)))
        weight = _restored(values, scale, place, first, columns, is_out, GROUP, FORM, False, BLOCK, WIDE)
        found = tl.dot(given, tl.trans(weight.to(kind)), found, input_precision="ieee")
        if FORM == 1:
            weight = _restored(values, scale, place, first, columns, is_out, GROUP, FORM, True, BLOCK, WIDE)
            found = tl.dot(odd, tl.trans(weight.to(kind)), found, input_precision="ieee")
    if GROUP == 0:
        found = found * tl.load(scale + place, mask=is_out, other=0.0).to(tl.float32)[None, :]
    if BIASED:
        found += tl.load(bias + place, mask=is_out, other=0.0).to(tl.float32)[None, :]
    target = out + row[:, None].to(tl.int64) * out_features + place[None, :]
    tl.store(target, found.to(kind), mask=is_row[:, None] & is_out[None, :])
