"""One file of prepared weights: safetensors, with what the tensors are in its metadata. For a CPU it is read in one go,
for other devices mapped.

Every tensor has a check sum. Tensors begin at multiples of 64 bytes, where the memory of others would; what is between
them are tensors as well (`-1`, `-2`, ...), since the format has no gaps.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy
import torch
from torch import Tensor

from ...checkpoint.safetensors_header import MAX_HEADER_BYTES, SafetensorsHeader, parse_safetensors_header
from ...checkpoint.types import TensorEntry
from ...errors import KamadoError
from ..large_pages import empty_bytes
from ..stream import TORCH_DTYPES

_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
_ALIGNMENT = 64
_TOLD, _DIGEST = "kamado", "sha256"
"""Keys of the metadata: JSON, and its hash."""
_ROW = 512
"""Words of 8 bytes whose sum is weighted as one: a page of memory."""
_PIECE_BYTES = 8 << 20
"""Written, and summed up, at once."""


class Unusable(Exception):
    """A file of prepared weights that is damaged, or not of what it is called."""


class Layout:
    """Where everything goes in a file that is to be written."""

    def __init__(self, parts: Mapping[str, Tensor]) -> None:
        """`parts`: contiguous, of types that the format has (KeyError)."""
        self._header: dict[str, Any] = {}
        self.nbytes = 0
        self._order: list[Tensor | None] = []
        for name, tensor in parts.items():
            self._add(name, _NAMES[tensor.dtype], list(tensor.shape), tensor.nbytes, tensor)
            missing = -self.nbytes % _ALIGNMENT
            if missing:
                self._add(f"-{len(self._header)}", "U8", [missing], missing, None)
        self.parts = parts

    def _add(self, name: str, dtype: str, shape: list[int], nbytes: int, tensor: Tensor | None) -> None:
        start, self.nbytes = self.nbytes, self.nbytes + nbytes
        self._header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, self.nbytes]}
        self._order.append(tensor)

    def write(self, file: BinaryIO, told: Mapping[str, Any], going_on: Callable[[], bool] = lambda: True) -> bool:
        """Write it, `told` (JSON) with it. `going_on` is asked now and then; False as soon as it says so."""
        sums = {}
        for name, tensor in self.parts.items():
            if not going_on():
                return False
            entry = self._header[name]
            sums[name] = _marked(entry["dtype"], entry["shape"], check_sum(_bytes(tensor)))
        text = json.dumps({**told, "sums": sums}, separators=(",", ":"))
        metadata = {_TOLD: text, _DIGEST: _digest(text)}
        header = json.dumps({"__metadata__": metadata, **self._header}, separators=(",", ":")).encode()
        header = header.ljust(-(-(8 + len(header)) // _ALIGNMENT) * _ALIGNMENT - 8)
        file.write(len(header).to_bytes(8, "little") + header)
        for entry, each in zip(self._header.values(), self._order, strict=True):
            data: Any = bytes(entry["shape"][0]) if each is None else _bytes(each).data
            for start in range(0, len(data), _PIECE_BYTES):
                if not going_on():
                    return False
                file.write(data[start : start + _PIECE_BYTES])
        return True


class Contents:
    """A file that is read. Its tensors lie in one block of memory, as they do in the file."""

    def __init__(self, path: Path, key: Mapping[str, Any], *, mapped: bool = False) -> None:
        """`mapped`: what is not needed of it need not be in memory, but a CPU reads large pages faster. Raises Unusable
        for one that is not of `key`, OSError where there is none or no memory for it."""
        self.path = path
        with path.open("rb") as file:
            self._memory: Any = _mapped(file) if mapped else _read(file)
        if self._memory is None:
            raise Unusable(f"{path} is empty, or was cut off")
        try:
            header = self._header(path)
            text = header.metadata[_TOLD]
            if header.metadata[_DIGEST] != _digest(text):
                raise Unusable(f"{path}: its description was changed")
            self.told: dict[str, Any] = json.loads(text)
            self._sums: dict[str, str] = self.told["sums"]
            found = self.told["key"]
        except (KamadoError, ValueError, KeyError, TypeError) as error:
            raise Unusable(f"{path}: {error}") from error
        self._entries: Mapping[str, TensorEntry] = header.tensors
        if found != json.loads(json.dumps(key, default=str)):
            raise Unusable(f"{path} is of something else")

    def _header(self, path: Path) -> SafetensorsHeader:
        length = int.from_bytes(bytes(self._memory[:8]), "little")
        if not length <= min(MAX_HEADER_BYTES, len(self._memory) - 8):
            raise Unusable(f"{path}: its header would be {length} bytes")
        return parse_safetensors_header(bytes(self._memory[8 : 8 + length]), path=path, file_bytes=len(self._memory))

    def verify(self) -> None:
        """Compare every tensor with its check sum, which reads the file. Raises Unusable."""
        for name, wanted in self._sums.items():
            entry = self._entries.get(name)
            if entry is None or _marked(entry.dtype, entry.shape, check_sum(self._numbers(entry))) != wanted:
                raise Unusable(f"{entry.file if entry else name}: a tensor is not what was written")

    def part(self, name: str) -> Tensor:
        """A tensor by its name. Raises KeyError."""
        entry = self._entries[name]
        dtype = TORCH_DTYPES[entry.dtype]
        if name not in self._sums:
            raise KeyError(name)
        if not entry.nbytes:
            return torch.empty(entry.shape, dtype=dtype)
        flat = torch.frombuffer(self._memory, dtype=torch.uint8, count=entry.nbytes, offset=entry.offset)
        return flat.view(dtype).view(entry.shape)

    def _numbers(self, entry: TensorEntry) -> Any:
        return numpy.frombuffer(self._memory, dtype=numpy.uint8, count=entry.nbytes, offset=entry.offset)


def _read(file: BinaryIO) -> Any:
    try:
        memory = empty_bytes(os.fstat(file.fileno()).st_size)
    except MemoryError as error:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from error
    return memory if len(memory) and file.readinto(memory.data) == len(memory) else None  # type: ignore[attr-defined]


def _mapped(file: BinaryIO) -> Any:
    try:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except ValueError:
        return None


def _marked(dtype: str, shape: Iterable[int], total: str) -> str:
    return f"{dtype} {'x'.join(map(str, shape))} {total}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def check_sum(data: Any) -> str:
    """Of bytes (a NumPy array, uint8). It tells any change of one place, and places that were exchanged; it is no
    protection against somebody who wants to deceive. Reads memory at full speed, and holds no lock meanwhile."""
    total = len(data)
    whole = len(data) // 8 * 8
    words = data[:whole].view(numpy.uint64)
    for start in range(0, len(words), _PIECE_BYTES):
        piece = words[start : start + _PIECE_BYTES]
        rows = len(piece) // _ROW
        sums = piece[: rows * _ROW].reshape(rows, _ROW).sum(axis=1, dtype=numpy.uint64)
        weights = numpy.arange(start + 1, start + rows + 1, dtype=numpy.uint64) * numpy.uint64(2) + numpy.uint64(1)
        total += int((sums * weights).sum(dtype=numpy.uint64))
        rest = piece[rows * _ROW :]
        total += int((rest * numpy.arange(1, 2 * len(rest), 2, dtype=numpy.uint64)).sum(dtype=numpy.uint64))
    total += int.from_bytes(bytes(data[whole:]), "little") * 31
    return f"{total % (1 << 64):016x}"


def _bytes(tensor: Tensor) -> Any:
    """Of a contiguous tensor, which is copied if it is not on the CPU."""
    return tensor.detach().cpu().view(-1).view(torch.uint8).numpy() if tensor.numel() else numpy.empty(0, numpy.uint8)
