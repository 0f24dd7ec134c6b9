"""Where weights lie that are not on the device: in a file that is mapped, or in RAM."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import tempfile
import threading
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ...errors import DoesNotFit
from ...units import format_bytes

_EXTENT_BYTES = 64 << 20
_ALIGNMENT = 64
_WILL_NEED, _DONT_NEED = 3, 4
"""Of `madvise`."""


class Store(Protocol):
    """Keeps tensors for as long as it is open."""

    def keep(self, tensor: Tensor) -> Tensor:
        """A tensor of the same values, in this store."""

    def expect(self, tensors: Iterable[Tensor]) -> None:
        """They will be read soon."""

    def forget(self, tensors: Iterable[Tensor]) -> None:
        """They are not needed for now."""

    def close(self) -> None:
        """Give the memory back, once no tensor uses it any more."""


class DiskStore:
    """A file without a name, mapped: the system reads what is touched, and drops what it needs the room for. Its
    tensors are in memory only while they are used. Thread safe."""

    def __init__(self, folder: Path, expected_bytes: int) -> None:
        """Raises DoesNotFit where the disk has no room for `expected_bytes`, OSError where it cannot be written."""
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if expected_bytes > free:
            raise DoesNotFit(
                f"{format_bytes(expected_bytes)} of weights would have to lie in {folder}, whose disk has "
                f"{format_bytes(free)} free; make room there, or set KAMADO_HOME to a larger disk",
                needed_bytes=expected_bytes,
                available_bytes=free,
            )
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by `close`
        self._lock = threading.Lock()
        self._map: mmap.mmap | None = None
        self._end = self._size = 0

    def keep(self, tensor: Tensor) -> Tensor:
        """See Store. Raises OSError where the disk is full."""
        plain = tensor.detach().cpu().contiguous()
        if not plain.numel():
            return plain
        with self._lock:
            map_, offset = self._room(plain.nbytes)
        kept = torch.frombuffer(map_, dtype=plain.dtype, count=plain.numel(), offset=offset).view(plain.shape)
        kept.copy_(plain)
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
        with self._lock:
            self._map = None  # each tensor holds the map that it lies in
            self._file.close()

    def _room(self, num_bytes: int) -> tuple[mmap.mmap, int]:
        if self._map is None or self._end + num_bytes > len(self._map):
            size = -(-max(num_bytes, _EXTENT_BYTES) // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
            # Reserved now: a page that the disk has no room for later would end the process.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file.fileno(), self._size, size)
            else:
                self._file.truncate(self._size + size)
            self._map = mmap.mmap(self._file.fileno(), size, offset=self._size)
            self._size += size
            self._end = 0
        offset = self._end
        self._end = -(-(offset + num_bytes) // _ALIGNMENT) * _ALIGNMENT
        return self._map, offset


class RamStore:
    """Page-locked RAM where there is a GPU that copies from it, else plain RAM."""

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned

    def keep(self, tensor: Tensor) -> Tensor:
        """See Store. Raises what torch raises where there is no room."""
        plain = tensor.detach().contiguous()
        kept = torch.empty(plain.shape, dtype=plain.dtype, pin_memory=self._pinned)
        return kept.copy_(plain)

    def expect(self, tensors: Iterable[Tensor]) -> None:
        """See Store."""

    def forget(self, tensors: Iterable[Tensor]) -> None:
        """See Store."""

    def close(self) -> None:
        """See Store."""


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
