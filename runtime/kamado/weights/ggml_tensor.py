"""A tensor of packed GGML blocks that is read and decoded, piece by piece, when somebody asks for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from ..checkpoint.types import TensorEntry
from ..errors import UnsupportedCheckpoint
from .ggml import BlockFormat, block_format
from .stream import TORCH_DTYPES, LazyTensor, ReadableTensor, ReadProgress, StoredTensor, read_into

PIECE_VALUES = 1 << 18
"""Values decoded at once: small enough for the temporaries (a few MiB) to stay in the cache."""
READ_PIECES = 16
"""Pieces of packed data that are read from the file at once."""


class GgmlTensor(StoredTensor):
    """One packed tensor; reads as `dtype` (float32, float16 or bfloat16).

    Temporary memory of a read is below 16 MiB. Raises UnsupportedCheckpoint for an unknown format, rows that are
    no whole blocks, or a byte count that the shape contradicts.
    """

    def __init__(
        self, entry: TensorEntry, *, dtype: torch.dtype = torch.float32, progress: ReadProgress | None = None
    ) -> None:
        found = block_format(entry.dtype)
        if found is None:
            raise UnsupportedCheckpoint(
                f"{entry.file}: tensor {entry.name!r} has the GGML type {entry.dtype}, which is unknown here; "
                "the package gguf knows more types: pip install gguf"
            )
        if not entry.shape or entry.shape[-1] % found.values:
            raise UnsupportedCheckpoint(
                f"{entry.file}: tensor {entry.name!r} of shape {list(entry.shape)} cannot be {entry.dtype}: "
                f"its rows must be whole blocks of {found.values} values"
            )
        super().__init__(entry, dtype, nbytes=entry.numel // found.values * found.nbytes, progress=progress)
        self._format: BlockFormat = found

    def read(self) -> torch.Tensor:
        """A fresh CPU tensor. Raises UnsupportedCheckpoint."""
        packed = self._format
        result = torch.empty(self.entry.shape, dtype=self._dtype)
        blocks_out = result.view(-1, packed.values)
        piece = max(1, PIECE_VALUES // packed.values)
        span = piece * READ_PIECES
        buffer = torch.empty(min(span, len(blocks_out)) * packed.nbytes, dtype=torch.uint8)
        scratch = None
        if self._dtype != torch.float32:
            scratch = torch.empty((min(piece, len(blocks_out)), packed.values), dtype=torch.float32)
        for start in range(0, len(blocks_out), span):
            count = min(span, len(blocks_out) - start)
            raw = buffer[: count * packed.nbytes]
            read_into(raw, self.entry, offset=start * packed.nbytes, progress=self._progress)
            blocks = raw.view(count, packed.nbytes)
            for first in range(0, count, piece):
                some = blocks[first : first + piece]
                target = blocks_out[start + first : start + first + len(some)]
                if scratch is None:
                    packed.decode(some, target)
                else:
                    packed.decode(some, scratch[: len(some)])
                    target.copy_(scratch[: len(some)])
        return result


class TransformedTensor:
    """`function` of other tensors, computed when asked for. `function` may change what it gets in place."""

    def __init__(
        self, name: str, sources: tuple[ReadableTensor, ...], dtype: torch.dtype, function: Callable[..., torch.Tensor]
    ) -> None:
        self.name = name
        self.nbytes = sum(source.nbytes for source in sources)
        self.dtype = dtype
        self._sources = sources
        self._function = function

    def read(self) -> torch.Tensor:
        """A fresh CPU tensor of `dtype`, contiguous. Raises UnsupportedCheckpoint, also when a shape is impossible."""
        tensors = [source.read() for source in self._sources]
        shapes = ", ".join(str(list(tensor.shape)) for tensor in tensors)
        try:
            with torch.no_grad():
                result = self._function(*tensors)
        except (RuntimeError, IndexError) as error:
            raise UnsupportedCheckpoint(f"tensor {self.name!r} cannot be made of tensors of shape {shapes}") from error
        return result.to(self.dtype).contiguous()

    def __getitem__(self, index: object) -> torch.Tensor:
        tensor = self.read()
        return tensor if index is Ellipsis else tensor[index]  # type: ignore[index]

    def __repr__(self) -> str:
        return f"TransformedTensor({self.name!r}, of {len(self._sources)})"


def gguf_tensor(
    entry: TensorEntry, *, dtype: torch.dtype = torch.float32, progress: ReadProgress | None = None
) -> LazyTensor | GgmlTensor:
    """The reader for one tensor of a GGUF file: plain types as they are stored, packed ones decoded to `dtype`."""
    if entry.dtype in TORCH_DTYPES:
        return LazyTensor(entry, progress=progress)
    return GgmlTensor(entry, dtype=dtype, progress=progress)


def row_slices(entry: TensorEntry) -> Mapping[int, TensorEntry]:
    """A stacked tensor `[E, ...]` as E entries `[...]` that lie one behind the other in the file."""
    if len(entry.shape) < 2 or entry.shape[0] == 0 or entry.nbytes % entry.shape[0]:
        raise UnsupportedCheckpoint(
            f"{entry.file}: tensor {entry.name!r} of shape {list(entry.shape)} cannot be cut into experts"
        )
    size = entry.nbytes // entry.shape[0]
    return {
        i: TensorEntry(f"{entry.name}[{i}]", entry.dtype, entry.shape[1:], entry.file, entry.offset + i * size, size)
        for i in range(entry.shape[0])
    }
