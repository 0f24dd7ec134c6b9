"""Tensors that are read from their file only when somebody asks for them, straight into their own memory.

A `LazyTensor` can be a value of the `state_dict` that is handed to transformers: its loader calls `tensor[...]` on
each value, from several threads, when the place for the weight is ready. Nothing here knows what a weight is for.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

import torch

from ..checkpoint.types import TensorEntry
from ..errors import UnsupportedCheckpoint

READ_BYTES = 32 << 20
"""Most bytes read between two progress reports."""

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Element types that are stored as torch has them in memory, by their safetensors name."""


class ReadableTensor(Protocol):
    """What the loaders need of a tensor that is not read yet."""

    name: str
    nbytes: int
    """Bytes as stored."""

    @property
    def dtype(self) -> torch.dtype: ...

    def read(self) -> torch.Tensor:
        """A fresh CPU tensor of `dtype`."""

    def __getitem__(self, index: object) -> torch.Tensor: ...


class ReadProgress:
    """Counts bytes read by any number of threads and reports them as `report(done_bytes, total_bytes)`."""

    def __init__(self, total_bytes: int, report: Callable[[int, int], None]) -> None:
        self.total_bytes = total_bytes
        self._report = report
        self._done_bytes = 0
        self._lock = threading.Lock()

    def add(self, num_bytes: int) -> None:
        """`num_bytes` more are read. Reports never run at the same time, and never go backwards."""
        with self._lock:
            self._done_bytes = min(self._done_bytes + num_bytes, self.total_bytes)
            self._report(self._done_bytes, self.total_bytes)


def read_into(
    buffer: torch.Tensor, entry: TensorEntry, *, offset: int = 0, progress: ReadProgress | None = None
) -> None:
    """Fill `buffer` (uint8, 1-dimensional, contiguous, CPU) from `entry`'s bytes, starting `offset` bytes into them.

    Raises UnsupportedCheckpoint when the file ends too early or cannot be read.
    """
    view = buffer.numpy().data
    filled = 0
    try:
        with open(entry.file, "rb", buffering=0) as file:
            file.seek(entry.offset + offset)
            while filled < len(view):
                count = file.readinto(view[filled : filled + READ_BYTES])
                if not count:
                    break
                filled += count
                if progress is not None:
                    progress.add(count)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UnsupportedCheckpoint(f"{entry.file}: cannot read tensor {entry.name!r}: {reason}") from error
    if filled < len(view):
        raise UnsupportedCheckpoint(
            f"{entry.file} ends inside tensor {entry.name!r}, after {filled} of {len(view)} bytes; fetch the file again"
        )


class StoredTensor(ABC):
    """One tensor of a file that reads as `dtype`. Any number of threads may read it, each time anew.

    Raises UnsupportedCheckpoint if it does not have `nbytes` bytes, which is what its shape and type need.
    """

    def __init__(self, entry: TensorEntry, dtype: torch.dtype, *, nbytes: int, progress: ReadProgress | None) -> None:
        if entry.nbytes != nbytes:
            raise UnsupportedCheckpoint(
                f"{entry.file}: tensor {entry.name!r} of shape {list(entry.shape)} and type {entry.dtype} "
                f"must have {nbytes} bytes, not {entry.nbytes}"
            )
        self.entry = entry
        self.name = entry.name
        self.nbytes = entry.nbytes
        self._dtype = dtype
        self._progress = progress

    @property
    def shape(self) -> tuple[int, ...]:
        return self.entry.shape

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    def get_shape(self) -> list[int]:
        """As the slices of the safetensors library have it."""
        return list(self.entry.shape)

    @abstractmethod
    def read(self) -> torch.Tensor:
        """A fresh CPU tensor. Raises UnsupportedCheckpoint."""

    def __getitem__(self, index: object) -> torch.Tensor:
        tensor = self.read()
        return tensor if index is Ellipsis else tensor[index]  # type: ignore[index]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.entry.dtype}, {list(self.shape)})"


class LazyTensor(StoredTensor):
    """A tensor that is stored as torch has it in memory.

    Raises UnsupportedCheckpoint for an element type that torch has not, or a byte count that the shape contradicts.
    """

    def __init__(self, entry: TensorEntry, *, progress: ReadProgress | None = None) -> None:
        dtype = TORCH_DTYPES.get(entry.dtype)
        if dtype is None:
            raise UnsupportedCheckpoint(
                f"{entry.file}: tensor {entry.name!r} has the element type {entry.dtype}, which cannot be read"
            )
        super().__init__(entry, dtype, nbytes=entry.numel * dtype.itemsize, progress=progress)

    def get_dtype(self) -> str:
        """The safetensors name of the element type."""
        return self.entry.dtype

    def read(self) -> torch.Tensor:
        """A fresh CPU tensor. Raises UnsupportedCheckpoint."""
        tensor = torch.empty(self.entry.shape, dtype=self._dtype)
        if self.nbytes:
            read_into(tensor.view(-1).view(torch.uint8), self.entry, progress=self._progress)
        return tensor


def lazy_tensors(
    entries: Mapping[str, TensorEntry], *, progress: Callable[[int, int], None] | None = None
) -> dict[str, LazyTensor]:
    """A `LazyTensor` for each entry. `progress(done_bytes, total_bytes)` may be called from any reading thread."""
    meter = ReadProgress(sum(entry.nbytes for entry in entries.values()), progress) if progress is not None else None
    return {name: LazyTensor(entry, progress=meter) for name, entry in entries.items()}


T = TypeVar("T")


def renamed(
    tensors: Mapping[str, T], *, strip: str = "", add: str = "", rename: Callable[[str], str | None] | None = None
) -> dict[str, T]:
    """The tensors whose name starts with `strip`, under `add` + the rest of the name, after `rename` of that rest.

    `rename` may return None to leave a tensor out. Raises UnsupportedCheckpoint when two tensors get one name.
    """
    result: dict[str, T] = {}
    for name, tensor in tensors.items():
        if not name.startswith(strip):
            continue
        rest: str | None = name[len(strip) :]
        if rename is not None and rest is not None:
            rest = rename(rest)
        if rest is None:
            continue
        if add + rest in result:
            raise UnsupportedCheckpoint(
                f"two tensors of the checkpoint are named {add + rest!r} (one of them was {name!r})"
            )
        result[add + rest] = tensor
    return result
