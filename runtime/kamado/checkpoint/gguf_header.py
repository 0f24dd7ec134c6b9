"""Header of a GGUF file (versions 2 and 3, little endian): metadata and where each tensor lies. No torch, no numpy.

    magic, version, tensor count, key-value count | key-values | tensor infos | padding | data

Nothing is allocated on the file's word: each count is held against the bytes that are left, products are checked, and
the walk over strings has a budget. The header is read rather than mapped, because a mapped file that another process
truncates kills this one.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from ..errors import UnsafeCheckpoint, UnsupportedCheckpoint
from .gguf_types import GGML_TYPES
from .safetensors_header import looks_like_pickle
from .types import TensorEntry

MAX_HEADER_BYTES = 64 << 20
"""Four times the header of a model with a 260,000 token vocabulary and all its merges."""
MAX_STRING_BYTES = 8 << 20
MAX_NAME_BYTES = 1024
MAX_KEY_VALUES = 1 << 14
MAX_TENSORS = 1 << 16
MAX_ITEMS = 3 << 19
"""Strings and eagerly read numbers that all metadata together may hold; strings in short arrays count four times."""
MAX_EAGER_ITEMS = 1024
"""Longer arrays become `GgufArray`."""
MAX_EAGER_BYTES = 16 << 20
"""Bytes of all strings that are read at once."""
MAX_TENSOR_BYTES = 1 << 62

_SCALARS = {
    0: ("u8", struct.Struct("<B")), 1: ("i8", struct.Struct("<b")),
    2: ("u16", struct.Struct("<H")), 3: ("i16", struct.Struct("<h")),
    4: ("u32", struct.Struct("<I")), 5: ("i32", struct.Struct("<i")),
    6: ("f32", struct.Struct("<f")), 7: ("bool", struct.Struct("<B")),
    10: ("u64", struct.Struct("<Q")), 11: ("i64", struct.Struct("<q")), 12: ("f64", struct.Struct("<d")),
}  # fmt: skip
_SCALARS_BY_NAME = dict(_SCALARS.values())
_STRING, _ARRAY = 8, 9
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufArray:
    """A long metadata array that is read only when somebody wants it."""

    type: str
    """Of the items: `string`, `u8` ... `f64`, `bool`."""
    count: int
    file: Path
    offset: int
    """Of the first item, in bytes from the start of the file."""
    nbytes: int

    def __len__(self) -> int:
        return self.count

    def load(self) -> list[Any]:
        """The items. Strings with invalid UTF-8 get replacement characters. Raises UnsupportedCheckpoint if the file
        changed since it was inspected."""
        try:
            with self.file.open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.nbytes)
        except OSError as error:
            raise UnsupportedCheckpoint(f"{self.file} cannot be read: {error.strerror or error}") from error
        if len(data) != self.nbytes:
            _damaged(self.file, "it became shorter since it was inspected")
        if self.type == "string":
            return self._strings(data)
        if self.type == "bool":
            return [byte != 0 for byte in data]
        return [item for (item,) in _SCALARS_BY_NAME[self.type].iter_unpack(data)]

    def _strings(self, data: bytes) -> list[str]:
        items: list[str] = []
        position, end = 0, len(data)
        for _ in range(self.count):
            start = position + 8
            position = start + int.from_bytes(data[position:start], "little")
            if position > end:
                _damaged(self.file, "its strings changed since it was inspected")
            items.append(data[start:position].decode("utf-8", "replace"))
        return items


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """What one GGUF file says of itself."""

    version: int
    alignment: int
    """Bytes. Each tensor starts at a multiple of it."""
    metadata: dict[str, Any]
    """Numbers, strings, booleans, lists of up to 1024 items, and `GgufArray` for longer ones."""
    tensors: dict[str, TensorEntry] = field(repr=False)


def read_gguf_header(path: Path) -> GgufHeader:
    """Read and check the header of `path`.

    Raises UnsupportedCheckpoint for a damaged file and UnsafeCheckpoint for a pickle under this name.
    """
    try:
        with path.open("rb", buffering=0) as file:
            reader = _Reader(path, file.fileno())
            return _read(reader)
    except OSError as error:
        raise UnsupportedCheckpoint(f"{path} cannot be read: {error.strerror or error}") from error


def _read(reader: _Reader) -> GgufHeader:
    version, num_tensors, num_key_values = _read_start(reader)
    metadata = dict(_read_key_values(reader, num_key_values))
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        _damaged(reader.path, f"general.alignment is {str(alignment)[:40]}, not a power of two up to 1 MiB")
    infos = [_read_tensor_info(reader) for _ in range(num_tensors)]
    data_start = -(-reader.position // alignment) * alignment
    tensors = _place(reader, infos, data_start, alignment)
    return GgufHeader(version=version, alignment=alignment, metadata=metadata, tensors=tensors)


def _damaged(path: Path, why: str) -> NoReturn:
    raise UnsupportedCheckpoint(f"{path} is not a sound GGUF file: {why}; fetch it again")


class _Reader:
    """The first bytes of the file, read as far as they are needed."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor
        self.file_bytes = os.fstat(descriptor).st_size
        self.limit = min(self.file_bytes, MAX_HEADER_BYTES)
        self.data = bytearray()
        self.position = 0
        self.items_left = MAX_ITEMS
        self.eager_bytes_left = MAX_EAGER_BYTES

    def need(self, size: int) -> None:
        """Have `size` bytes from `position` on in `data`, or raise."""
        end = self.position + size
        if end <= len(self.data):
            return
        if end > self.limit:
            if end > self.file_bytes:
                _damaged(
                    self.path, f"byte {self.position} claims {size} bytes more, but the file has {self.file_bytes}"
                )
            _damaged(self.path, f"its header is larger than {MAX_HEADER_BYTES} bytes")
        while end > len(self.data):
            wanted = min(max(end, len(self.data) + _CHUNK_BYTES), self.limit) - len(self.data)
            chunk = os.pread(self.descriptor, wanted, len(self.data))
            if not chunk:
                _damaged(self.path, "it was cut while it was read")
            self.data += chunk

    def take(self, size: int) -> bytes:
        self.need(size)
        start, self.position = self.position, self.position + size
        return bytes(self.data[start : self.position])

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def scalar(self, kind: int) -> int | float | bool:
        name, layout = _SCALARS[kind]
        value: int | float = layout.unpack(self.take(layout.size))[0]
        return value != 0 if name == "bool" else value

    def string(self, *, max_bytes: int, what: str) -> bytes:
        size = self.u64()
        if size > max_bytes:
            _damaged(self.path, f"{what} would be {size} bytes long")
        return self.take(size)

    def spend(self, items: int, what: str) -> None:
        self.items_left -= items
        if self.items_left < 0:
            _damaged(self.path, f"{what}: the metadata has more than {MAX_ITEMS} items")


def _read_start(reader: _Reader) -> tuple[int, int, int]:
    start = reader.take(4) if reader.file_bytes >= 24 else b""
    if start != b"GGUF":
        if looks_like_pickle(start):
            raise UnsafeCheckpoint(
                f"{reader.path} is a pickle under another name: loading it can run code. "
                f"If you trust it: kamado convert-pickle {reader.path} FOLDER"
            )
        _damaged(reader.path, f"it starts with {start!r}, not with GGUF" if start else "it is shorter than 24 bytes")
    version = reader.u32()
    if version not in (2, 3):
        kind = "big endian" if version & 0xFFFF == 0 and version else f"version {version}"
        raise UnsupportedCheckpoint(
            f"{reader.path} is a {kind} GGUF file; versions 2 and 3, little endian, can be read"
        )
    num_tensors, num_key_values = reader.u64(), reader.u64()
    left = reader.file_bytes - reader.position
    if num_tensors > min(MAX_TENSORS, left // 24) or num_key_values > min(MAX_KEY_VALUES, left // 13):
        _damaged(reader.path, f"it claims {num_tensors} tensors and {num_key_values} key-values in {left} bytes")
    return version, num_tensors, num_key_values


def _read_key_values(reader: _Reader, count: int) -> Iterator[tuple[str, Any]]:
    seen: set[str] = set()
    for _ in range(count):
        key = _name(reader, "a metadata key")
        if key in seen:
            _damaged(reader.path, f"the metadata key {key[:80]!r} is there twice")
        seen.add(key)
        kind = reader.u32()
        if kind == _ARRAY:
            yield key, _read_array(reader, key)
        elif kind == _STRING:
            yield key, _read_text(reader, key)
        elif kind in _SCALARS:
            yield key, reader.scalar(kind)
        else:
            _damaged(reader.path, f"the metadata key {key[:80]!r} has the unknown type {kind}")


def _name(reader: _Reader, what: str) -> str:
    raw = reader.string(max_bytes=MAX_NAME_BYTES, what=what)
    if not raw:
        _damaged(reader.path, f"{what} is empty")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        _damaged(reader.path, f"{what} is not UTF-8: {raw[:40]!r}")


def _read_text(reader: _Reader, key: str) -> str:
    raw = reader.string(max_bytes=MAX_STRING_BYTES, what=f"a string of {key[:80]!r}")
    reader.eager_bytes_left -= len(raw)
    if reader.eager_bytes_left < 0:
        _damaged(reader.path, f"its metadata strings are longer than {MAX_EAGER_BYTES} bytes together")
    return raw.decode("utf-8", "replace")


def _read_array(reader: _Reader, key: str) -> list[Any] | GgufArray:
    kind, count = reader.u32(), reader.u64()
    if kind != _STRING and kind not in _SCALARS:
        _damaged(reader.path, f"the array {key[:80]!r} has items of the unknown or nested type {kind}")
    item_bytes = 8 if kind == _STRING else _SCALARS[kind][1].size
    if count > (reader.file_bytes - reader.position) // item_bytes:
        _damaged(reader.path, f"the array {key[:80]!r} claims {count} items, more than the file can hold")
    if count <= MAX_EAGER_ITEMS:
        return _read_items(reader, key, kind, count)
    offset = reader.position
    if kind == _STRING:
        reader.spend(count, f"the array {key[:80]!r}")
        _skip_strings(reader, count)
    else:
        reader.need(count * item_bytes)
        reader.position += count * item_bytes
    name = "string" if kind == _STRING else _SCALARS[kind][0]
    return GgufArray(type=name, count=count, file=reader.path, offset=offset, nbytes=reader.position - offset)


def _read_items(reader: _Reader, key: str, kind: int, count: int) -> list[Any]:
    if kind == _STRING:
        reader.spend(4 * count, f"the array {key[:80]!r}")
        return [_read_text(reader, key) for _ in range(count)]
    reader.spend(count, f"the array {key[:80]!r}")
    name, layout = _SCALARS[kind]
    items = [item for (item,) in layout.iter_unpack(reader.take(count * layout.size))]
    return [item != 0 for item in items] if name == "bool" else items


def _skip_strings(reader: _Reader, count: int) -> None:
    """Walk over `count` strings. The hot loop of a large vocabulary: 0.15 microseconds a string."""
    length_at = _U64.unpack_from
    data, position, have = reader.data, reader.position, len(reader.data) - 8
    for _ in range(count):
        if position > have:
            reader.position = position
            reader.need(8)
            have = len(data) - 8
        position += 8 + length_at(data, position)[0]
    reader.position = position
    reader.need(0)


@dataclass(frozen=True, slots=True)
class _TensorInfo:
    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


def _read_tensor_info(reader: _Reader) -> _TensorInfo:
    name = _name(reader, "a tensor name")
    num_dimensions = reader.u32()
    if num_dimensions > 4:
        _damaged(reader.path, f"the tensor {name[:80]!r} has {num_dimensions} dimensions; 4 is the most")
    shape = tuple(reader.u64() for _ in range(num_dimensions))
    kind, offset = reader.u32(), reader.u64()
    return _TensorInfo(name, shape, kind, offset)


def _place(reader: _Reader, infos: list[_TensorInfo], data_start: int, alignment: int) -> dict[str, TensorEntry]:
    """Check the tensors against the file and each other."""
    tensors: dict[str, TensorEntry] = {}
    for info in infos:
        if info.name in tensors:
            _damaged(reader.path, f"the tensor {info.name[:80]!r} is there twice")
        if info.offset % alignment:
            _damaged(reader.path, f"the tensor {info.name[:80]!r} starts at {info.offset}, not aligned to {alignment}")
        nbytes = _tensor_bytes(reader.path, info)
        if data_start + info.offset + nbytes > reader.file_bytes:
            _damaged(reader.path, f"the tensor {info.name[:80]!r} of {nbytes} bytes ends outside of the file")
        tensors[info.name] = TensorEntry(
            name=info.name,
            dtype=GGML_TYPES[info.kind].name,
            shape=info.shape[::-1],
            file=reader.path,
            offset=data_start + info.offset,
            nbytes=nbytes,
        )
    end = data_start
    for entry in sorted(tensors.values(), key=lambda entry: entry.offset):
        if entry.offset < end:
            _damaged(reader.path, f"the tensor {entry.name[:80]!r} overlaps another one")
        end = entry.offset + entry.nbytes
    return tensors


def _tensor_bytes(path: Path, info: _TensorInfo) -> int:
    kind = GGML_TYPES.get(info.kind)
    if kind is None:
        _damaged(path, f"the tensor {info.name[:80]!r} has the unknown type {info.kind}")
    numel = math.prod(info.shape)
    innermost = info.shape[0] if info.shape else 1
    if not 0 < numel < MAX_TENSOR_BYTES:
        _damaged(path, f"the tensor {info.name[:80]!r} has an impossible shape {info.shape}")
    if innermost % kind.block_size:
        _damaged(path, f"the tensor {info.name[:80]!r} has rows of {innermost}, not whole blocks of {kind.name}")
    return numel // kind.block_size * kind.block_bytes
