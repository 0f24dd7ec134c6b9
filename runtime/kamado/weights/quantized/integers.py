"""Whole numbers of 8 or 4 bits, a scale for each group of a row: what GGML, GPTQ, AWQ and others store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from .packed import Packed

_PIECE_VALUES = 1 << 22
"""Values that are quantized at once: bounds the temporaries."""


class Integers(Packed):
    """`weight = scale * value`, or `scale * value + offset`.

    Parts: `values`, int8 (out, in), or for 4 bits uint8 (out, in / 2), the even column in the low half, 8 for zero;
    `scale` (out, in / group), float16 or float32; perhaps `offset` of the same form; perhaps `order`, int64 (in): which
    input belongs to each column.
    """

    form = "integers"

    def __init__(self, shape: tuple[int, int], parts: Mapping[str, Tensor], *, bits: int) -> None:
        super().__init__(shape, parts)
        assert bits in (4, 8)
        self.bits = bits

    @property
    def group_size(self) -> int:
        """Values of a row that share a scale."""
        return self.shape[1] // self.parts["scale"].shape[1]

    def like(self, shape: tuple[int, int], parts: Mapping[str, Tensor]) -> Self:
        """See Packed."""
        return type(self)(shape, parts, bits=self.bits)

    def rows(self, index: slice | Tensor, dtype: torch.dtype) -> Tensor:
        """See Packed."""
        values = self.values(index)
        scale = self.parts["scale"][index]
        result = values.view(*scale.shape, -1).to(dtype).mul_(scale.to(dtype).unsqueeze(-1))
        if "offset" in self.parts:
            result.add_(self.parts["offset"][index].to(dtype).unsqueeze(-1))
        result = result.view(values.shape)
        if "order" in self.parts:
            unordered = torch.empty_like(result)
            unordered[..., self.parts["order"]] = result
            return unordered
        return result

    def values(self, index: slice | Tensor) -> Tensor:
        """The numbers themselves: int8 (rows, in)."""
        stored = self.parts["values"][index]
        return stored if self.bits == 8 else unpack4(stored)


def quantize_integers(weight: Tensor, *, bits: int, group_size: int, scale_dtype: torch.dtype) -> Integers:
    """Round `weight` (out, in) to `bits` (8 or 4) bits with a scale for each `group_size` values of a row (0: a row).

    8 bits: the largest magnitude of a group becomes 127. 4 bits: it becomes -8, whatever its sign (GGML's Q4_0), so
    that all 16 levels are used. Scales beyond float16 are kept in float32. Bit for bit the same for the same weight.
    """
    rows, columns = weight.shape
    group = group_size or columns
    scale = torch.empty((rows, columns // group), dtype=torch.float32, device=weight.device)
    values = torch.empty((rows, columns if bits == 8 else columns // 2), device=weight.device).to(
        torch.int8 if bits == 8 else torch.uint8
    )
    step = max(1, _PIECE_VALUES // columns)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        scale[part] = _scales(weight[part].float().view(-1, columns // group, group), bits)
    rounded = scale.to(scale_dtype)
    if not bool((torch.isfinite(rounded) & ((rounded != 0) | (scale == 0))).all()):
        rounded = scale
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        piece = weight[part].float().view(-1, columns // group, group)
        divisor = rounded[part].float().unsqueeze(-1)
        piece = torch.where(divisor == 0, 0.0, piece / divisor).round_()
        whole = piece.clamp_(-127 if bits == 8 else -8, 127 if bits == 8 else 7).to(torch.int8).view(-1, columns)
        values[part] = whole if bits == 8 else pack4(whole)
    return Integers((rows, columns), {"values": values, "scale": rounded}, bits=bits)


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
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)).squeeze(-1)
    return largest / -8
