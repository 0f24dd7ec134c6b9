"""Generation options that a folder recommends for its model, as a catalog does: `kamado_defaults.json`."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from ..errors import UnsupportedCheckpoint
from .strict_json import read_json_object

FILE = "kamado_defaults.json"
_NUMBERS = frozenset({"steps", "guidance", "width", "height", "strength", "hires_strength", "step_cache"})
_WORDS = frozenset({"scheduler", "negative", "weighting"})
_SWITCHES = frozenset({"tiling"})
_MAX_TEXT = 2000


def read_recommended(path: Path) -> Mapping[str, Any]:
    """The options in such a file. None of them can name a file or an adapter. Raises UnsupportedCheckpoint."""
    told = read_json_object(path)
    for name, value in told.items():
        if not _fits(name, value):
            raise UnsupportedCheckpoint(
                f"{path}: {name!r:.40} = {value!r:.60} is no option that may be recommended there"
            )
    return told


def _fits(name: str, value: object) -> bool:
    if name in _SWITCHES or isinstance(value, bool):
        return name in _SWITCHES and isinstance(value, bool)
    if name in _NUMBERS:
        return isinstance(value, (int, float)) and isfinite(value)
    return name in _WORDS and isinstance(value, str) and len(value) <= _MAX_TEXT
