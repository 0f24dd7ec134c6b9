"""Integers of quantized checkpoints, in the layout of `Integers`. L: rows (outputs), N: columns (inputs), G: groups.

Words of 32 bits have their lowest bits first, as the bytes of the files do, so most are taken apart as bytes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ....errors import UnsupportedCheckpoint
from ...ggml import BLOCK_FORMATS
from ..dynamic import MOST_COLUMNS, DynamicIntegers
from ..integers import Integers, pack4, unpack4
from .entries import StoredWeight
from .ggml import KEPT

_ONES = {4: 0x11111111, 8: 0x01010101}
"""One in each value of a word."""
_NIBBLE_SIGNS = 0x88
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word each of 8 neighbouring outputs lies."""
_PIECE_VALUES = 1 << 20
"""Values that are taken out of GGML's blocks at once: bounds the temporaries."""

Read = Mapping[str, Tensor]


def gptq(entry: StoredWeight, read: Read) -> Integers:
    """values int32 (N * bits / 32, L), scales (G, L), zeros int32 (G, L * bits / 32), perhaps groups int32 (N)."""
    bits = entry.settings["bits"]
    values = _columns(read["values"], bits)
    # The first format subtracts 1 from whole words, so it is added to whole words.
    zeros = read["zeros"] + _ONES[bits] if entry.settings["first_format"] else read["zeros"]
    scales = read["scales"].t().contiguous()
    found = _numbers(zeros, bits).t()
    return _made(entry, values, scales, found, bits, read.get("groups"))


def awq(entry: StoredWeight, read: Read) -> Integers:
    """values int32 (N, L / 8), scales (G, L), zeros int32 (G, L / 8)."""

    def straight(words: Tensor) -> Tensor:
        numbers = _numbers(words, 4).view(len(words), -1, 8)
        return numbers[..., list(_AWQ_PLACES)].flatten(1).t()

    values = pack4(straight(read["values"]).to(torch.int8) - 8)
    return _made(entry, values, read["scales"].t().contiguous(), straight(read["zeros"]), 4, None)


def packed_integers(entry: StoredWeight, read: Read) -> Integers:
    """values int32 (L, words), scales, perhaps zeros int32 (words, G) or int8 (L, G), perhaps groups int32 (N)."""
    bits = entry.settings["bits"]
    rows, columns = entry.shape
    raised = read["values"].view(torch.uint8)[:, : columns * bits // 8]
    values = raised.contiguous() if bits == 4 else _lowered(raised)
    zeros = read.get("zeros")
    if zeros is not None:
        zeros = (
            zeros + (1 << bits - 1) if zeros.dtype == torch.int8 else _numbers(zeros.t().contiguous(), bits).t()[:rows]
        )
    groups = read.get("groups")
    if groups is not None and bool((groups == -1).all()):
        groups = None  # how its authors write that there is no order
    return _made(entry, values, _scales(read["scales"], rows), zeros, bits, groups)


def integers(entry: StoredWeight, read: Read) -> Integers:
    """values int8 (L, N), of 8 bits or 4; scales; perhaps zeros int8 of their shape."""
    rows = entry.shape[0]
    scales = _scales(read["scales"], rows)
    if "divisor" in entry.settings:
        scales = scales / entry.settings["divisor"]
    values, zeros, bits = read["values"], read.get("zeros"), entry.settings.get("bits", 8)
    if zeros is not None:
        zeros = _scales(zeros, rows).to(torch.int16) + (1 << bits - 1)
    if bits == 4:
        if bool(((values < -8) | (values > 7)).any()):
            raise UnsupportedCheckpoint(f"{entry.file}: {entry.name} has values that are no 4-bit numbers")
        values = pack4(values)
    made = _made(entry, values, scales, zeros, bits, None)
    outlier = entry.settings.get("outlier")
    in_groups = made.group_size < made.shape[1]
    fits = entry.settings.get("by_groups", False) if in_groups else made.shape[1] <= MOST_COLUMNS
    if outlier is None or "offset" in made.parts or not fits:
        return made
    return DynamicIntegers(made.shape, made.parts, outlier=outlier)


def signed_nibbles(entry: StoredWeight, read: Read) -> Integers:
    """values int8 (L, N / 2): two's complement, the even column in the low half; scales (G, L); zeros (G, L), added."""
    parts = {
        "values": read["values"].view(torch.uint8) ^ _NIBBLE_SIGNS,
        "scale": read["scales"].t().contiguous(),
        "offset": read["zeros"].t().float().contiguous(),
    }
    rows, columns = entry.shape
    return Integers((rows, columns), parts, bits=4)


def _made(
    entry: StoredWeight, values: Tensor, scales: Tensor, zeros: Tensor | None, bits: int, groups: Tensor | None
) -> Integers:
    """`zeros` (L, G): numbers of the same unsigned range as the values had."""
    rows, columns = entry.shape
    parts = {"values": values, "scale": scales}
    middle = 1 << bits - 1
    if zeros is not None and bool((zeros != middle).any()):
        parts["offset"] = scales.float() * (middle - zeros.to(torch.int32))
    if groups is not None:
        order = _order(entry, groups.long(), scales.shape[1])
        if order is not None:
            parts["order"] = order
            parts["values"] = values[:, order] if bits == 8 else pack4(unpack4(values)[:, order])
    # Products go through the rows, wherever the file began.
    return Integers((rows, columns), {name: part.contiguous() for name, part in parts.items()}, bits=bits)


def _order(entry: StoredWeight, groups: Tensor, count: int) -> Tensor | None:
    """Which column comes at each place, where columns of a group lie together; None where they do already.

    Raises UnsupportedCheckpoint unless all groups have the same number of columns."""
    size = len(groups) // count
    if bool(((groups < 0) | (groups >= count)).any()) or bool((torch.bincount(groups, minlength=count) != size).any()):
        raise UnsupportedCheckpoint(
            f"{entry.file}: {entry.name}: its g_idx does not make {count} groups of {size} columns"
        )
    order = torch.argsort(groups, stable=True)
    return None if bool((order == torch.arange(len(groups))).all()) else order


def _numbers(words: Tensor, bits: int) -> Tensor:
    """int32 (A, B) -> uint8 (A, B * 32 / bits)."""
    parts = words.contiguous().view(torch.uint8)
    return parts if bits == 8 else torch.stack((parts & 15, parts >> 4), dim=-1).flatten(1)


def _columns(words: Tensor, bits: int) -> Tensor:
    """int32 (N * bits / 32, L), packed along columns -> values as Integers has them."""
    parts = words.view(torch.uint8).view(*words.shape, 4).permute(1, 0, 2).flatten(1)
    return parts if bits == 4 else _lowered(parts)


def _lowered(values: Tensor) -> Tensor:
    """uint8 -> int8, 128 less."""
    return (values ^ 128).view(torch.int8)


def _scales(scales: Tensor, rows: int) -> Tensor:
    """Of the shape (), (1), (L), (L, 1), (L, G) or of blocks of rows -> (L, G)."""
    if scales.numel() == 1:
        return scales.reshape(1, 1).repeat(rows, 1)
    if scales.ndim == 1:
        return scales.unsqueeze(1)
    return scales if len(scales) == rows else scales.repeat_interleave(rows // len(scales), dim=0)


def ggml(entry: StoredWeight, read: Read) -> Integers:
    """blocks uint8 (L, bytes of a row)."""
    how, split = KEPT[entry.dtype], BLOCK_FORMATS[entry.dtype].split
    assert split is not None
    rows, columns = entry.shape
    scale_type = torch.float16 if how.scale == "F16" else torch.float32
    grid = (rows, columns // how.group)
    parts = {
        "values": torch.empty((rows, columns * how.bits // 8), dtype=torch.int8 if how.bits == 8 else torch.uint8),
        "scale": torch.empty(grid, dtype=scale_type),
        **({"offset": torch.empty(grid)} if how.offset else {}),
    }
    step = max(1, _PIECE_VALUES // columns)
    for start in range(0, rows, step):
        some = slice(start, min(start + step, rows))
        numbers, scale, offset = split(read["blocks"][some].view(-1, how.nbytes))
        shifted = numbers.view(torch.int8).reshape(-1, columns) - how.shift
        parts["values"][some] = shifted if how.bits == 8 else pack4(shifted)
        parts["scale"][some] = scale.reshape(-1, grid[1]).to(scale_type)
        if offset is not None:
            parts["offset"][some] = (offset + how.shift * scale).reshape(-1, grid[1])
    return Integers((rows, columns), parts, bits=how.bits)
