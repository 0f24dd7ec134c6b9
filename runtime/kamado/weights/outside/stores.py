"""Where weights lie that are not on the device: in a file that is mapped, or in RAM."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import shutil
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import DoesNotFit, KamadoError
from ...units import format_bytes

EXTENT_BYTES = 64 << 20
"""Taken at once. A power of two: torch takes page-locked memory in such sizes."""
_ALIGNMENT = 64
_SLACK = 4096
"""For what aligning takes."""
_WILL_NEED, _DONT_NEED = 3, 4
"""Of `madvise`."""


class Store(ABC):
    """Keeps tensors, cut from large extents, for as long as it is open, and as somebody has them. Thread safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._extents: list[Tensor] = []
        self._end = 0

    def keep(self, tensor: Tensor) -> Tensor:
        """A tensor of the same values, in this store. Raises DoesNotFit where there is no room."""
        plain = tensor.detach()
        if not plain.numel():
            return plain.cpu()
        with self._lock:
            if not self._extents or self._end + plain.nbytes > len(self._extents[-1]):
                self._extents.append(self._extent(plain.nbytes))
                self._end = 0
            begin, self._end = self._end, -(-(self._end + plain.nbytes) // _ALIGNMENT) * _ALIGNMENT
            part = self._extents[-1][begin : begin + plain.nbytes]
        kept = part.view(plain.dtype).view(plain.shape)
        return kept.copy_(plain)

    def holds(self, tensor: Tensor) -> bool:
        """Whether it lies in this store. One without elements lies anywhere."""
        place = tensor.data_ptr()
        return not tensor.numel() or any(
            extent.data_ptr() <= place < extent.data_ptr() + len(extent) for extent in self._extents
        )

    def expect(self, tensors: Iterable[Tensor]) -> None:  # noqa: B027 - nothing is to be done in RAM
        """They will be read soon."""

    def forget(self, tensors: Iterable[Tensor]) -> None:  # noqa: B027
        """They are not needed for now."""

    def close(self) -> None:
        """Give the memory back, once no tensor uses it any more."""
        with self._lock:
            self._extents.clear()

    @property
    def nbytes(self) -> int:
        """What it takes."""
        return sum(map(len, self._extents))

    @abstractmethod
    def _extent(self, least: int) -> Tensor:
        """Memory of at least so many bytes: uint8, one dimension."""


class DiskStore(Store):
    """A file without a name, mapped: the system reads what is touched, and drops what it needs the room for. Its
    tensors are in memory only while they are used."""

    def __init__(self, folder: Path, expected_bytes: int) -> None:
        """Raises DoesNotFit where the disk has no room for `expected_bytes`, KamadoError where it cannot be written."""
        super().__init__()
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder).free
            if expected_bytes > free:
                raise self._too_full(expected_bytes, free)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by `close`
        except OSError as error:
            raise KamadoError(
                f"weights that there is no room for cannot be put into {folder}: {error.strerror or error}; set "
                "KAMADO_HOME to a folder that can be written"
            ) from error
        self._size = 0

    def keep(self, tensor: Tensor) -> Tensor:
        """See Store."""
        kept = super().keep(tensor)
        self.forget([kept])
        return kept

    def expect(self, tensors: Iterable[Tensor]) -> None:
        """See Store."""
        for tensor in tensors:
            _advise(tensor, _WILL_NEED)

    def forget(self, tensors: Iterable[Tensor]) -> None:
        """See Store."""
        for tensor in tensors:
            _advise(tensor, _DONT_NEED)

    def close(self) -> None:
        """See Store."""
        super().close()
        self._file.close()

    def _extent(self, least: int) -> Tensor:
        size = -(-max(least, EXTENT_BYTES) // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        try:
            self._reserve(size)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise KamadoError(f"{self._folder} cannot be written: {error.strerror or error}") from error
            raise self._too_full(size, shutil.disk_usage(self._folder).free) from error
        mapped = mmap.mmap(self._file.fileno(), size, offset=self._size)
        self._size += size
        return torch.frombuffer(mapped, dtype=torch.uint8)

    def _reserve(self, size: int) -> None:
        """Now: a page that the disk has no room for later would end the process."""
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._file.fileno(), self._size, size)
            return
        self._file.seek(self._size)
        for _ in range(0, size, 1 << 20):
            self._file.write(bytes(1 << 20))
        self._file.flush()

    def _too_full(self, needed: int, free: int) -> DoesNotFit:
        return DoesNotFit(
            f"{format_bytes(needed)} of weights would have to lie in {self._folder}, whose disk has "
            f"{format_bytes(free)} free; make room there, or set KAMADO_HOME to a larger disk",
            needed_bytes=needed,
            available_bytes=free,
            place="disk",
        )


class RamStore(Store):
    """Page-locked RAM where there is a GPU that copies from it, else plain RAM."""

    def __init__(self, expected_bytes: int, *, pinned: bool) -> None:
        """The last extent is no larger than what is expected still."""
        super().__init__()
        self._expected_bytes = expected_bytes
        self._pinned = pinned

    def _extent(self, least: int) -> Tensor:
        rest = max(self._expected_bytes - self.nbytes, 0) + _SLACK
        size = max(least, min(EXTENT_BYTES, rest))
        return torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)


@cache
def _libc() -> Any:
    """The C library, where it has `madvise`. Calls through it let other threads run."""
    try:
        library = ctypes.CDLL(None, use_errno=True)
        library.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    except (AttributeError, OSError, TypeError):
        return None
    return library


def _advise(tensor: Tensor, advice: int) -> None:
    """Tell the system about the pages that a mapped tensor touches. It is advice: failing changes nothing."""
    library = _libc()
    if library is None or not tensor.numel():
        return
    start = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    library.madvise(start, tensor.data_ptr() + tensor.nbytes - start, advice)
