"""Bytes, seconds and counts, as people write them."""

from __future__ import annotations

import re

from .errors import InvalidRequest

_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS[f"{_letter}ib"] = _UNITS[_letter] = 1024**_power
    _UNITS[f"{_letter}b"] = 1000**_power

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*\Z", re.ASCII)


def parse_bytes(text: str | int) -> int:
    """`"8GiB"`, `"500MB"`, `"8G"` (binary) or a plain number of bytes -> bytes. Raises InvalidRequest."""
    if isinstance(text, bool) or not isinstance(text, (int, str)):
        raise InvalidRequest(f"{text!r} is not a size; write it like 8GiB, 500MB or 1073741824")
    if isinstance(text, int):
        number, unit = str(text), ""
    else:
        match = _SIZE.match(text)
        if match is None or match.group(2).lower() not in _UNITS:
            raise InvalidRequest(f"{text!r} is not a size; write it like 8GiB, 500MB or 1073741824")
        number, unit = match.group(1), match.group(2).lower()
    size = int(float(number) * _UNITS[unit])
    if not 0 < size < 2**60:
        raise InvalidRequest(f"{text!r} is not a usable size: it must be above 0 and below 1 EiB")
    return size


def check_counts(**counts: int | None) -> None:
    """Raise InvalidRequest for one that is given and below 1."""
    for name, value in counts.items():
        if value is not None and value < 1:
            raise InvalidRequest(f"{name} must be at least 1, not {value}")


def format_bytes(size: int) -> str:
    """Bytes as people read them: `512 B`, `98.4 MiB`, `1.25 GiB`."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            break
        value /= 1024
    digits = 0 if unit == "B" else 2 if value < 10 else 1
    return f"{value:.{digits}f} {unit}"


def format_seconds(seconds: float) -> str:
    """Seconds as people read them: `850 ms`, `3.2 s`, `2 min 5 s`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"
