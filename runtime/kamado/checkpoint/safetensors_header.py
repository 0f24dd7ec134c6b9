"""Header of a safetensors file: which tensors lie where. Reads no tensor and imports no torch.

File: u64 little endian length N, N bytes of JSON, then the data. Everything the format promises is checked before it
is believed: the JSON's shape, unique keys, known types, shape x item size = bytes, and that the tensors tile the data
without a gap or an overlap.
"""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NoReturn

from ..errors import UnsafeCheckpoint, UnsupportedCheckpoint
from .types import TensorEntry

MAX_HEADER_BYTES = 32 << 20
"""About 250,000 tensors in one file."""
MAX_BYTES = 1 << 62

DTYPE_BITS: dict[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetensorsHeader:
    """What one safetensors file says of itself."""

    tensors: dict[str, TensorEntry] = field(repr=False)
    metadata: dict[str, str]
    """`__metadata__`, or empty."""


def read_safetensors_header(path: Path) -> SafetensorsHeader:
    """Read and check the header of `path`.

    Raises UnsupportedCheckpoint for a damaged file and UnsafeCheckpoint for a pickle under this name.
    """
    try:
        with path.open("rb") as file:
            file_bytes = os.fstat(file.fileno()).st_size
            header = _header_bytes(file, file_bytes, path)
    except OSError as error:
        raise UnsupportedCheckpoint(f"{path} cannot be read: {error.strerror or error}") from error
    return parse_safetensors_header(header, path=path, file_bytes=file_bytes)


def parse_safetensors_header(header: bytes, *, path: Path, file_bytes: int) -> SafetensorsHeader:
    """Check the JSON `header` of a file of `file_bytes` bytes. Raises UnsupportedCheckpoint."""
    tensors, metadata = _parse(header, path)
    _check_tiling(tensors, path, data_start=8 + len(header), file_bytes=file_bytes)
    return SafetensorsHeader(tensors=tensors, metadata=metadata)


def looks_like_pickle(start: bytes) -> bool:
    """Whether the first bytes are those of a pickle (protocol 2 to 5) or of torch's zip with a pickle inside."""
    return start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"))


def _header_bytes(file: BinaryIO, file_bytes: int, path: Path) -> bytes:
    start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    # A header of 640 bytes starts like a pickle of protocol 2 does, hence the look at the ninth byte.
    if looks_like_pickle(start) and start[8:9] != b"{":
        raise UnsafeCheckpoint(
            f"{path} is a pickle under another name: loading it can run code. "
            f"If you trust it: kamado convert-pickle {path} FOLDER"
        )
    if start[8:9] != b"{" or not 2 <= length <= min(MAX_HEADER_BYTES, file_bytes - 8):
        _damaged(path, f"its header would be {length} bytes of a file of {file_bytes}")
    file.seek(8)
    header = file.read(length)
    if len(header) != length:
        _damaged(path, "it was cut while it was read")
    return header


def _damaged(path: Path, why: str) -> NoReturn:
    raise UnsupportedCheckpoint(f"{path} is not a sound safetensors file: {why}; fetch it again")


# A grammar for exactly this kind of JSON instead of a JSON parser: it stops at the first thing that does not belong
# there, so a hostile header cannot make it build large trees first. Possessive quantifiers keep it linear.
_WS = r"[ \t\r\n]*+"
_STRING = r'"(?:[^"\\\x00-\x1f]++|\\.)*+"'
_INT = r"(?:0|[1-9][0-9]{0,18}+)"
_INTS = rf"\[{_WS}(?:{_INT}(?:{_WS},{_WS}{_INT}){{0,31}}+)?+{_WS}\]"
_FIELD = rf'"(?:dtype"{_WS}:{_WS}"[A-Z0-9_]{{1,16}}"|(?:shape|data_offsets)"{_WS}:{_WS}{_INTS})'
_OPEN = re.compile(rf"{_WS}\{{")
_CLOSE = re.compile(rf"{_WS}\}}")
_COMMA = re.compile(rf"{_WS},")
_END = re.compile(rf"{_WS}\Z")
_METADATA = re.compile(rf'{_WS}"__metadata__"{_WS}:{_WS}\{{')
_PAIR = re.compile(rf"{_WS}(?P<key>{_STRING}){_WS}:{_WS}(?P<value>{_STRING})")
_ENTRY = re.compile(
    rf"{_WS}(?P<name>{_STRING}){_WS}:{_WS}(?P<value>\{{{_WS}{_FIELD}{_WS},{_WS}{_FIELD}{_WS},{_WS}{_FIELD}{_WS}\}})"
)


class _Scanner:
    """Walks over the header's text, one expected piece after the other."""

    def __init__(self, text: str, path: Path) -> None:
        self.text = text
        self.path = path
        self.position = 0

    def take(self, piece: re.Pattern[str]) -> re.Match[str] | None:
        match = piece.match(self.text, self.position)
        if match is not None:
            self.position = match.end()
        return match

    def need(self, piece: re.Pattern[str]) -> re.Match[str]:
        match = self.take(piece)
        if match is None:
            near = self.text[self.position : self.position + 40]
            _damaged(self.path, f"its header breaks the format at character {self.position}, near {near!r}")
        return match

    def string(self, quoted: str) -> str:
        if "\\" not in quoted:
            return quoted[1:-1]
        try:
            text = str(json.loads(quoted))
            text.encode()  # half a surrogate pair is valid JSON, but no text
            return text
        except ValueError:
            _damaged(self.path, f"the string {quoted[:80]} in its header is not valid JSON")


def _parse(header: bytes, path: Path) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    try:
        scanner = _Scanner(header.decode("utf-8"), path)
    except UnicodeDecodeError as error:
        _damaged(path, f"its header is not UTF-8 at byte {error.start}")
    tensors: dict[str, TensorEntry] = {}
    metadata: dict[str, str] | None = None
    scanner.need(_OPEN)
    while scanner.take(_CLOSE) is None:
        if tensors or metadata is not None:
            scanner.need(_COMMA)
        if metadata is None and scanner.take(_METADATA) is not None:
            metadata = _metadata(scanner)
            continue
        match = scanner.need(_ENTRY)
        name = scanner.string(match["name"])
        if name in tensors or name == "__metadata__":
            _damaged(path, f"the key {name[:80]!r} is there twice")
        try:
            facts = json.loads(match["value"])
        except ValueError:
            _damaged(path, f"the entry of {name[:80]!r} in its header is not valid JSON")
        tensors[name] = _entry(name, facts, path, data_start=8 + len(header))
    scanner.need(_END)
    return tensors, metadata or {}


def _metadata(scanner: _Scanner) -> dict[str, str]:
    found: dict[str, str] = {}
    while scanner.take(_CLOSE) is None:
        if found:
            scanner.need(_COMMA)
        match = scanner.need(_PAIR)
        key = scanner.string(match["key"])
        if key in found:
            _damaged(scanner.path, f"the metadata key {key[:80]!r} is there twice")
        found[key] = scanner.string(match["value"])
    return found


def _entry(name: str, value: dict[str, object], path: Path, *, data_start: int) -> TensorEntry:
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not (isinstance(dtype, str) and isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2):
        _damaged(path, f"the tensor {name[:80]!r} needs one dtype, one shape and two data_offsets")
    if dtype not in DTYPE_BITS:
        _damaged(path, f"the tensor {name[:80]!r} has the unknown type {dtype}")
    begin, end = offsets
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if bits % 8 or not 0 <= begin <= end < MAX_BYTES or bits // 8 != end - begin:
        _damaged(path, f"the tensor {name[:80]!r} of type {dtype}, shape {shape} does not take bytes {begin} to {end}")
    return TensorEntry(
        name=name, dtype=dtype, shape=tuple(shape), file=path, offset=data_start + begin, nbytes=end - begin
    )


def _check_tiling(tensors: dict[str, TensorEntry], path: Path, *, data_start: int, file_bytes: int) -> None:
    position = data_start
    for entry in sorted(tensors.values(), key=lambda entry: (entry.offset, entry.nbytes)):
        if entry.offset != position:
            kind = "overlaps another one" if entry.offset < position else "leaves a gap before it"
            _damaged(path, f"the tensor {entry.name[:80]!r} {kind}")
        position += entry.nbytes
    if position != file_bytes:
        _damaged(path, f"its tensors end at byte {position}, the file at byte {file_bytes}")
