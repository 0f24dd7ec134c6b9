"""What every form of a quantized weight matrix can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional

PIECE_VALUES = {"cpu": 1 << 19, "cuda": 1 << 26}
"""Values that are brought back to full precision at once: what stays in a CPU's cache, and what a GPU has room for."""


class Packed(ABC):
    """One matrix (out, in), in fewer bits. Immutable; its tensors may be shared."""

    form: ClassVar[str]
    shared: ClassVar[frozenset[str]] = frozenset()
    """Parts that are the same for all rows; of all others each row has its own."""

    def __init__(self, shape: tuple[int, int], parts: Mapping[str, Tensor]) -> None:
        self.shape = shape
        self.parts = dict(parts)
        """Its tensors by name: all that it is made of."""

    @property
    def device(self) -> torch.device:
        return next(iter(self.parts.values())).device

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return sum(part.nbytes for part in self.parts.values())

    @property
    def ends_whole(self) -> bool:
        """Whether the parts of another matrix can be put behind its own, to make one of both."""
        return True

    @abstractmethod
    def rows(self, index: slice | Tensor, dtype: torch.dtype) -> Tensor:
        """Some rows in full precision: (len(index), in)."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What its constructor takes besides."""
        return {}

    def like(self, shape: tuple[int, int], parts: Mapping[str, Tensor]) -> Self:
        """Another matrix of this form and these settings."""
        return type(self)(shape, parts, **self.settings)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The matrix in full precision: (out, in)."""
        return self.rows(slice(0, self.shape[0]), dtype)

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`x` (..., in) times the transposed matrix: (..., out). Each row of `x` is computed for itself."""
        out, columns = self.shape
        step = max(1, PIECE_VALUES["cpu" if x.device.type == "cpu" else "cuda"] // columns)
        if step >= out:
            return functional.linear(x, self.dequantize(x.dtype), bias)
        result = x.new_empty((*x.shape[:-1], out))
        for start in range(0, out, step):
            end = min(start + step, out)
            piece = None if bias is None else bias[start:end]
            result[..., start:end] = functional.linear(x, self.rows(slice(start, end), x.dtype), piece)
        return result

    def to(self, device: torch.device | str) -> Self:
        """The same on another device; itself where it is there."""
        if self.device == torch.device(device):
            return self
        return self.like(self.shape, {name: part.to(device) for name, part in self.parts.items()})


def scaled(values: Tensor, scale: Tensor, dtype: torch.dtype, offset: Tensor | None = None) -> Tensor:
    """`values` (rows, groups, n), which may be overwritten, times `scale` (rows, groups), perhaps plus `offset` of that
    shape, rounded to `dtype` once, at the end."""
    scale = scale.float().unsqueeze(-1)
    if offset is not None:
        return values.float().mul_(scale).add_(offset.float().unsqueeze(-1)).to(dtype)
    if values.device.type == "cpu":
        return values.float().mul_(scale).to(dtype)
    # A GPU converts on the way: one pass over the memory.
    result = torch.empty(values.shape, dtype=dtype, device=values.device)
    return torch.mul(values, scale, out=result)
