"""Checkpoint files for tests, sound and crafted: safetensors, GGUF and wheels, written byte by byte."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

GGUF_STRING, GGUF_ARRAY, GGUF_U32, GGUF_BOOL = 8, 9, 4, 7


def safetensors_bytes(
    tensors: Mapping[str, tuple[str, Sequence[int], int]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """A sound file. `tensors`: name -> (dtype, shape, bytes)."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    position = 0
    for name, (dtype, shape, nbytes) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + nbytes]}
        position += nbytes
    return raw_safetensors(json.dumps(header).encode(), bytes(i % 251 for i in range(position)))


def raw_safetensors(header: bytes, data: bytes = b"", *, length: int | None = None) -> bytes:
    """Any header and data; `length` is what the file claims of the header."""
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def gguf_string(text: str | bytes) -> bytes:
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def gguf_value(value: Any) -> bytes:
    """Type and value: bool, int (u32), str, or a list of ints or strings."""
    if isinstance(value, bool):
        return struct.pack("<IB", GGUF_BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", GGUF_U32, value)
    if isinstance(value, str):
        return struct.pack("<I", GGUF_STRING) + gguf_string(value)
    kind = GGUF_STRING if value and isinstance(value[0], str) else GGUF_U32
    items = b"".join(gguf_string(item) if kind == GGUF_STRING else struct.pack("<I", item) for item in value)
    return struct.pack("<IIQ", GGUF_ARRAY, kind, len(value)) + items


def gguf_tensor(name: str, dims: Sequence[int], kind: int, offset: int) -> bytes:
    """One tensor info; `dims` as the file has them, innermost first."""
    shape = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return gguf_string(name) + shape + struct.pack("<IQ", kind & 0xFFFFFFFF, offset)


def gguf_bytes(
    key_values: Sequence[tuple[str, Any]] = (("general.architecture", "llama"),),
    tensors: Sequence[tuple[str, Sequence[int], int, int]] = (("a", (32, 2), 8, 0), ("b", (4,), 0, 96)),
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    num_tensors: int | None = None,
    num_key_values: int | None = None,
    alignment: int = 32,
    data_bytes: int = 128,
) -> bytes:
    """A GGUF file; sound as it stands. Values that are `bytes` go in raw, type included."""
    body = bytearray(magic + struct.pack("<I", version))
    body += struct.pack("<Q", len(tensors) if num_tensors is None else num_tensors)
    body += struct.pack("<Q", len(key_values) if num_key_values is None else num_key_values)
    for key, value in key_values:
        body += gguf_string(key) + (value if isinstance(value, bytes) else gguf_value(value))
    for tensor in tensors:
        body += gguf_tensor(*tensor)
    body += bytes(-len(body) % alignment)
    return bytes(body) + bytes(i % 253 for i in range(data_bytes))


def write_wheel(
    folder: Path,
    files: Mapping[str, bytes],
    *,
    package: str = "tiny_model",
    version: str = "1.0",
    record: Mapping[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
    tag: str = "py3-none-any",
) -> Path:
    """A wheel; its RECORD is right unless `record` gives other contents to hash."""
    info = f"{package}-{version}.dist-info"
    path = folder / f"{package}-{version}-{tag}.whl"
    rows = []
    for name, content in (files if record is None else record).items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        rows.append(f"{name},sha256={digest},{len(content)}")
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\n")
        archive.writestr(f"{info}/METADATA", f"Name: {package}\nVersion: {version}\n")
        archive.writestr(f"{info}/RECORD", "\n".join([*rows, f"{info}/RECORD,,"]))
    return path


def write_transformers(folder: Path, *, tokenizer: bool = True) -> Path:
    """A folder in transformers layout with two tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    (folder / "model.safetensors").write_bytes(safetensors_bytes({"a": ("F32", (2, 3), 24), "b": ("BF16", (4,), 8)}))
    if tokenizer:
        (folder / "tokenizer.json").write_text("{}")
        (folder / "tokenizer_config.json").write_text("{}")
    return folder
