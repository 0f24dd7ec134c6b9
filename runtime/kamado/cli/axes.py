"""What is typed after `--axis`: an option, and its values."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from ..checkpoint.strict_json import unique_pairs
from ..errors import InvalidRequest
from ..grids.axes import MAX_CELLS
from ..media.inputs import INPUTS
from ..picture_requests import ALIASES
from .media_options import INPUT_FLAGS

FREE_TEXTS = ("prompt", "negative", "system", "suffix", "lyrics", "text", "instruct")
"""Options whose values may hold commas."""
FILES = (*INPUTS, *INPUT_FLAGS)
"""Options whose values are paths."""
MAX_FILE_BYTES = 64 << 20
_RENAMED = {"adapter": "adapters", "adapter_image": "ip_adapter_image"}
_NUMBER = r"-?\d+(?:\.\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(?:\.\.({_NUMBER}))?", re.ASCII)
_NO_RANGE = re.compile(r"[-+.\d\s]*\.\.[-+.\d\s]*", re.ASCII)
"""What was to be a range: digits, and two points."""
_MOST_DIGITS = 25
"""Of a range's numbers; decimals are exact to 28."""
_MOST_SCALAR = 400
"""Characters of a number; Python reads no whole numbers of thousands."""
_EXAMPLE = "write it like seed=1..8, guidance=3,5,7, prompt=prompts.txt"


def parse_axes(items: Sequence[str]) -> dict[str, list[Any]]:
    """`["seed=1..3", "prompt=a cat", "prompt=a dog"]` -> `{"seed": [1, 2, 3], "prompt": ["a cat", "a dog"]}`.

    Values are a range (`1..8`, `0..1..0.25`), a list with commas, a JSON list, or for texts (FREE_TEXTS) one text or a
    file with one on each line. An option that comes again gets more values. Raises InvalidRequest.
    """
    found: dict[str, list[Any]] = {}
    for item in items:
        typed, separator, text = item.partition("=")
        name = typed.strip().replace("-", "_")
        if not separator or not name.isidentifier():
            raise InvalidRequest(f"--axis {item!r:.80}: {_EXAMPLE}")
        own = _RENAMED.get(name, ALIASES.get(name, name))
        values = _values(own, text, f"--axis {typed}")
        if own in FILES:
            values = [Path(value) if isinstance(value, str) else value for value in values]
        found.setdefault(own, []).extend(values)
    return found


def _values(name: str, text: str, shown: str) -> list[Any]:
    if not text.strip():
        raise InvalidRequest(f"{shown}: no values; {_EXAMPLE}")
    if text.lstrip().startswith("["):
        return _json_list(text, shown)
    if name in FREE_TEXTS:
        path = Path(text)
        return _lines(path, shown) if _is_file(path) else [text]
    if match := _RANGE.fullmatch(text.strip()):
        return _range(match, shown)
    if _NO_RANGE.fullmatch(text):
        raise InvalidRequest(
            f"{shown}={text[:80]}: a range is FIRST..LAST or FIRST..LAST..STEP, like 1..8 or 0..1..0.25"
        )
    parts = [part.strip() for part in text.split(",")]
    if "" in parts:
        raise InvalidRequest(f"{shown}={text[:80]}: a value is missing between the commas")
    return [_scalar(part) for part in parts]


def _scalar(text: str) -> Any:
    """A number, true, false, null, or the text itself."""
    if len(text) <= _MOST_SCALAR and re.fullmatch(rf"{_NUMBER}|true|false|null", text, re.ASCII):
        return json.loads(text) if not re.match(r"-?0\d", text) else text
    return text


def _range(match: re.Match[str], shown: str) -> list[Any]:
    if max(len(part) for part in match.groups() if part) > _MOST_DIGITS:
        raise InvalidRequest(f"{shown}={match[0]:.80}: a range's numbers have {_MOST_DIGITS} characters at most")
    first, last = Decimal(match[1]), Decimal(match[2])
    step = Decimal(match[3]) if match[3] else Decimal(1 if last >= first else -1)
    if step == 0 or (last - first) * step < 0:
        raise InvalidRequest(
            f"{shown}={match[0]}: steps of {step} never come from {first} to {last}; "
            f"leave the step out, or give one {'above' if last > first else 'below'} 0"
        )
    count = int((last - first) / step) + 1
    if count > MAX_CELLS:
        raise InvalidRequest(f"{shown}={match[0]} has {count} values; {MAX_CELLS} is the most")
    is_whole = "." not in "".join(part for part in match.groups() if part)
    return [int(value) if is_whole else float(value) for value in (first + step * number for number in range(count))]


def _json_list(text: str, shown: str) -> list[Any]:
    try:
        values = json.loads(text, object_pairs_hook=unique_pairs)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{shown}: {text!r:.80} is no JSON list: {str(error)[:80]}") from None
    if not isinstance(values, list) or not values:
        raise InvalidRequest(f"{shown}: the list has no values")
    return values


def _lines(path: Path, shown: str) -> list[str]:
    """Each line that is not blank."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InvalidRequest(f"{shown}: {path} is too large for a list of texts")
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InvalidRequest(f"{shown}: cannot read {path}: {reason}") from error
    if not any(lines):
        raise InvalidRequest(f"{shown}: {path} has no lines with text")
    return [line for line in lines if line]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
