"""Matrices below each other, each in a form of its own: the experts of a layer, and what libraries join."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from .packed import Packed


class Pieces(Packed):
    """Several matrices of equally many columns as one. Its parts are theirs, under `0.values`, `1.values`..."""

    form = "pieces"

    def __init__(self, pieces: Sequence[Packed]) -> None:
        columns = pieces[0].shape[1]
        assert all(piece.shape[1] == columns for piece in pieces)
        parts = {f"{n}.{name}": part for n, piece in enumerate(pieces) for name, part in piece.parts.items()}
        super().__init__((sum(piece.shape[0] for piece in pieces), columns), parts)
        self.pieces = tuple(pieces)

    def rows(self, index: slice | Tensor, dtype: torch.dtype) -> Tensor:
        """See Packed."""
        if isinstance(index, Tensor):
            return self._chosen(index, dtype)
        start, stop, step = index.indices(self.shape[0])
        found, first = [], 0
        for piece in self.pieces:
            part = slice(max(start - first, 0), min(stop - first, piece.shape[0]))
            if part.start < part.stop:
                found.append(piece.rows(part, dtype))
            first += piece.shape[0]
        return torch.cat(found)[::step] if found else self.pieces[0].rows(slice(0, 0), dtype)

    def _chosen(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        result = torch.empty((len(index), self.shape[1]), dtype=dtype, device=index.device)
        first = 0
        for piece in self.pieces:
            here = ((index >= first) & (index < first + piece.shape[0])).nonzero().view(-1)
            if len(here):
                result[here] = piece.rows(index[here] - first, dtype)
            first += piece.shape[0]
        return result

    def like(self, shape: tuple[int, int], parts: Mapping[str, Tensor]) -> Self:
        """See Packed. Only of this shape."""
        assert shape == self.shape
        return type(self)(
            [
                piece.like(piece.shape, {name: parts[f"{n}.{name}"] for name in piece.parts})
                for n, piece in enumerate(self.pieces)
            ]
        )

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """See Packed."""
        sizes = [piece.shape[0] for piece in self.pieces]
        biases = [None] * len(sizes) if bias is None else bias.split(sizes)
        return torch.cat([piece.linear(x, part) for piece, part in zip(self.pieces, biases, strict=True)], dim=-1)


class Plain(Packed):
    """A matrix in full precision, among others that are not. Part: `values` (out, in)."""

    form = "plain"

    def rows(self, index: slice | Tensor, dtype: torch.dtype) -> Tensor:
        """See Packed."""
        return self.parts["values"][index].to(dtype)

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """See Packed."""
        return functional.linear(x, self.parts["values"].to(x.dtype), bias)


def joined(matrices: Sequence[Packed]) -> Packed:
    """Matrices below each other as one: of their own form where that is the same for all, else as Pieces."""
    first = matrices[0]
    if len(matrices) == 1:
        return first
    alike = all(_alike(first, other) for other in matrices[1:]) and all(each.ends_whole for each in matrices[:-1])
    if isinstance(first, Pieces) or not alike:
        return Pieces(matrices)
    parts = {
        name: part
        if name in first.shared
        else torch.cat([_bytes(each.parts[name]) for each in matrices]).view(part.dtype)
        for name, part in first.parts.items()
    }
    return first.like((sum(each.shape[0] for each in matrices), first.shape[1]), parts)


def _alike(one: Packed, other: Packed) -> bool:
    """Whether the rows of one could be those of the other."""
    if type(one) is not type(other) or one.settings != other.settings or one.shape[1] != other.shape[1]:
        return False
    if one.parts.keys() != other.parts.keys():
        return False
    for name, part in one.parts.items():
        its = other.parts[name]
        if part.dtype != its.dtype or part.device != its.device or part.shape[1:] != its.shape[1:]:
            return False
        if name in one.shared and part is not its and not torch.equal(part, its):
            return False
    return True


def _bytes(part: Tensor) -> Tensor:
    """Not every operation knows the 8-bit floats."""
    return part.view(torch.uint8) if part.dtype == torch.float8_e4m3fn else part
