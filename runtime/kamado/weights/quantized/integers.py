"""Whole numbers of 8 or 4 bits, a scale for each group of a row: what GGML, GPTQ, AWQ and others store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from . import few_rows
from .lookup import look_up, signed_nibble_pairs
from .packed import Packed, scaled

_PIECE_VALUES = 1 << 22
"""Values that are quantized at once: bounds the temporaries."""
_LEVELS_OF_LARGEST = (-8.0, -7.5, -8.5, -7.0, -9.0, -6.5, -9.5)
"""What the largest magnitude of a group is tried to become in 4 bits; beyond -8 it is cut off, for the others' good.
For SmolLM2 the KL divergence is a tenth less than with -8 alone."""


class Integers(Packed):
    """`weight = scale * value`, or `scale * value + offset`.

    Parts: `values`, int8 (out, in), or for 4 bits uint8 (out, in / 2), the even column in the low half, 8 for zero;
    `scale` (out, in / group), float16 or float32; perhaps `offset` of the same form; perhaps `order`, int64 (in): which
    input belongs to each column.
    """

    form = "integers"
    shared = frozenset({"order"})

    def __init__(self, shape: tuple[int, int], parts: Mapping[str, Tensor], *, bits: int) -> None:
        super().__init__(shape, parts)
        assert bits in (4, 8)
        self.bits = bits

    @property
    def group_size(self) -> int:
        """Values of a row that share a scale."""
        return self.shape[1] // self.parts["scale"].shape[1]

    @property
    def settings(self) -> Mapping[str, Any]:
        """See Packed."""
        return {"bits": self.bits}

    def rows(self, index: slice | Tensor, dtype: torch.dtype) -> Tensor:
        """See Packed."""
        stored, scale = self.parts["values"][index], self.parts["scale"][index]
        values = stored if self.bits == 8 else look_up(stored, signed_nibble_pairs(stored.device))
        offset = self.parts["offset"][index] if "offset" in self.parts else None
        result = scaled(values.view(*scale.shape, self.group_size), scale, dtype, offset).view(values.shape)
        if "order" in self.parts:
            unordered = torch.empty_like(result)
            unordered[..., self.parts["order"]] = result
            return unordered
        return result

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """See Packed. Few rows meet the numbers as they are stored, on a GPU."""
        plain = x.device.type == "cuda" and self.parts.keys() == {"values", "scale"}
        found = few_rows.product(x, self.parts["values"], self.parts["scale"], bias) if plain else None
        return super().linear(x, bias) if found is None else found

    def values(self, index: slice | Tensor) -> Tensor:
        """The numbers themselves: int8 (rows, in)."""
        stored = self.parts["values"][index]
        return stored if self.bits == 8 else unpack4(stored)


def quantize_integers(weight: Tensor, *, bits: int, group_size: int, scale_dtype: torch.dtype) -> Integers:
    """Round `weight` (out, in) to `bits` (8 or 4) bits with a scale for each `group_size` values of a row (0: a row).

    8 bits: the largest magnitude of a group becomes 127. 4 bits: it becomes -8 or so, whatever its sign (as in GGML's
    Q4_0), so that all 16 levels are used; of some scales about that, the one with the least squared error is taken.
    Scales beyond float16 are kept in float32. A group with NaN or an infinity becomes NaN as a whole. Bit for bit the
    same for the same weight.
    """
    rows, columns = weight.shape
    group = group_size or columns
    scale = torch.empty((rows, columns // group), dtype=torch.float32, device=weight.device)
    values = torch.empty(
        (rows, columns if bits == 8 else columns // 2),
        dtype=torch.int8 if bits == 8 else torch.uint8,
        device=weight.device,
    )
    step = max(1, _PIECE_VALUES // columns)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        scale[part] = _scales(weight[part].float().view(-1, columns // group, group), bits)
    if scale_dtype == torch.float16:
        scale = _halved(scale)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        piece = weight[part].float().view(-1, columns // group, group)
        whole = round_to(piece, scale[part].float().unsqueeze(-1), bits).view(-1, columns)
        values[part] = whole if bits == 8 else pack4(whole)
    return Integers((rows, columns), {"values": values, "scale": scale}, bits=bits)


def round_to(values: Tensor, scale: Tensor, bits: int = 8) -> Tensor:
    """The nearest multiples of `scale`, as int8; what has no scale is 0."""
    divided = torch.where(scale == 0, 0.0, values / scale).round_()
    return divided.clamp_(-127 if bits == 8 else -8, 127 if bits == 8 else 7).to(torch.int8)


def pack4(values: Tensor) -> Tensor:
    """int8 (rows, in) in [-8, 7] -> uint8 (rows, in / 2)."""
    raised = (values + 8).to(torch.uint8)
    return raised[:, 0::2] | (raised[:, 1::2] << 4)


def unpack4(packed: Tensor) -> Tensor:
    """The reverse of `pack4`."""
    low, high = (packed & 15).to(torch.int8), (packed >> 4).to(torch.int8)
    return torch.stack((low, high), dim=-1).flatten(-2) - 8


def _scales(groups: Tensor, bits: int) -> Tensor:
    """Of float32 (rows, groups, values of a group)."""
    if bits == 8:
        return groups.abs().amax(-1) / 127
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    unit = torch.where(largest == 0, 0.0, groups / largest)
    best = most = torch.full_like(largest[..., 0], -1.0)
    for level in _LEVELS_OF_LARGEST:
        whole = (unit * level).round_().clamp_(-8, 7)
        products, squares = (whole * unit).sum(-1), (whole * whole).sum(-1)
        # Least squares: with the scale products / squares, the squared error is that much less than without any.
        scale = torch.where(squares == 0, 0.0, products / squares)
        gain = scale * products
        better = ~(gain <= most)  # NaN, too
        best, most = torch.where(better, scale, best), torch.where(better, gain, most)
    return best * largest[..., 0]


def _halved(scale: Tensor) -> Tensor:
    """In float16, and nowhere so much smaller that the largest values would be cut off; float32 where that is too
    large for float16."""
    short = scale.half()
    if not bool((short.isfinite() | ~scale.isfinite()).all()):
        return scale
    # float16 is coarse below 6e-5: there the next larger number is taken, whose bits, read as an integer, are one more.
    smaller = short.float().abs() < scale.abs() * (1 - 2**-10)
    return torch.where(smaller, (short.view(torch.int16) + 1).view(torch.float16), short)
