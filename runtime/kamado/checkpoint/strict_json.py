"""JSON from strangers: size and depth are bounded, duplicate keys are refused, errors name the file."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from ..errors import UnsupportedCheckpoint
from ..units import format_bytes

MAX_CONFIG_BYTES = 4 << 20
"""Largest `config.json`, `tokenizer_config.json`, ... that is parsed. Real ones stay below 2 MiB."""
MAX_DEPTH = 64
MAX_CONTAINERS = 100_000
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")


class DuplicateKeyError(ValueError):
    """An object has the same key twice."""


def unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """`object_pairs_hook` that refuses duplicate keys: two readers must never see two different files."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise DuplicateKeyError(f"the key {twice[:80]!r} is there twice")
    return found


def read_bounded(path: Path, *, max_bytes: int = MAX_CONFIG_BYTES) -> bytes:
    """All of a file. Raises UnsupportedCheckpoint if it is larger, or cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise UnsupportedCheckpoint(f"{path} cannot be read: {error.strerror or error}") from error
    if len(data) > max_bytes:
        raise UnsupportedCheckpoint(f"{path} is larger than {format_bytes(max_bytes)}, which no such file should be")
    return data


def read_json_object(path: Path, *, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """The JSON object in `path`. Raises UnsupportedCheckpoint for anything else, too large or too deep."""
    return parse_json_object(read_bounded(path, max_bytes=max_bytes), what=str(path))


def parse_json_object(data: bytes, *, what: str) -> dict[str, Any]:
    """The JSON object in `data`; `what` names it in errors. Raises UnsupportedCheckpoint."""
    objection = _objection_to_brackets(data)
    if objection is not None:
        raise UnsupportedCheckpoint(f"{what} {objection}; it is damaged or hostile")
    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=unique_pairs)
    except (ValueError, RecursionError) as error:
        raise UnsupportedCheckpoint(f"{what} is not valid JSON: {str(error)[:160]}; fetch it again") from error
    if not isinstance(value, dict):
        raise UnsupportedCheckpoint(f"{what} holds a JSON {type(value).__name__}, not an object")
    return value


def _objection_to_brackets(data: bytes) -> str | None:
    """Judge nesting before the parser builds anything: a small file of brackets would else take 20 times its size."""
    opening = data.count(b"[") + data.count(b"{")
    if opening <= MAX_DEPTH:
        return None
    brackets = _STRING.sub(b"", data).translate(None, delete=_NOT_BRACKETS)
    if len(brackets) > 2 * MAX_CONTAINERS:
        return f"holds more than {MAX_CONTAINERS} lists and objects"
    depth = 0
    for byte in brackets:
        depth += 1 if byte in b"[{" else -1
        if depth > MAX_DEPTH:
            return f"is nested more than {MAX_DEPTH} deep"
    return None
