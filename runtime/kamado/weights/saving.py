"""Write safetensors files tensor by tensor: never more than one of them in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from .stream import TORCH_DTYPES

_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
_HEADER_BYTES_EACH = 160
"""Of a tensor's entry in the header, its name left out."""
_ALIGNMENT = 64


class SafetensorsWriter:
    """One safetensors file. The header's room is kept free at the front and written last, padded with spaces, as the
    format allows. Use it in a `with` block; left by an exception, the file is removed.

    Raises OSError if the disk fails, KeyError for a tensor of a type that the format has not.
    """

    def __init__(self, path: Path, *, max_tensors: int, longest_name: int, metadata: Mapping[str, str]) -> None:
        self._path = path
        self._metadata = dict(metadata)
        self._entries: dict[str, Any] = {}
        room = max_tensors * (longest_name + _HEADER_BYTES_EACH) + len(json.dumps(self._metadata)) + _ALIGNMENT
        self._header_bytes = -(-room // _ALIGNMENT) * _ALIGNMENT - 8
        self._file = path.open("xb")
        self._file.seek(8 + self._header_bytes)
        self._end = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Write one more."""
        assert name not in self._entries, f"{name} is written twice"
        plain = tensor.detach().cpu().contiguous()
        raw = plain.view(-1).view(torch.uint8).numpy().data if plain.numel() else b""
        self._file.write(raw)
        start, self._end = self._end, self._end + len(raw)
        self._entries[name] = {
            "dtype": _NAMES[plain.dtype],
            "shape": list(plain.shape),
            "data_offsets": [start, self._end],
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                header = json.dumps({"__metadata__": self._metadata, **self._entries}, separators=(",", ":")).encode()
                assert len(header) <= self._header_bytes, "more tensors than were announced"
                self._file.seek(0)
                self._file.write(self._header_bytes.to_bytes(8, "little") + header.ljust(self._header_bytes))
        finally:
            self._file.close()
            if kind is not None:
                self._path.unlink(missing_ok=True)
