"""A trace of requests: what was asked when, one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidRequest
from .options import MOST_TOKENS

DEFAULT_NEW_TOKENS = 128
_MOST_LINES = 1_000_000
_LATEST_S = 1e7
_MOST_CHARACTERS = 16 << 20
_PROMPTS = ("prompt", "messages", "prompt_tokens", "prompt_length")
_KEYS = ("at", "max_tokens", *_PROMPTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One request of a trace."""

    line: int
    """Its number in the file, from 1."""
    at_s: float | None
    """When it comes, in seconds after the first line of all; None: as soon as there is room for it."""
    asked: Mapping[str, Any]
    """Its prompt, as `Model.submit` takes it; empty where only its length is known."""
    prompt_length: int
    """Tokens of a random prompt; 0 where `asked` has one."""
    max_tokens: int


def read_trace(path: Path) -> list[Arrival]:
    """The requests in the order in which they come. Raises InvalidRequest, which names the line, and OSError."""
    arrivals = []
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(_MOST_CHARACTERS + 1), b""), start=1):
            if number > _MOST_LINES or len(line) > _MOST_CHARACTERS:
                raise InvalidRequest(f"{path}, line {number}: a trace has at most {_MOST_LINES} lines of 16 MiB")
            if line.strip():
                arrivals.append(_arrival(f"{path}, line {number}", number, line))
    if not arrivals:
        raise InvalidRequest(
            f'{path} has no requests; a line is like {{"at": 0.5, "prompt_length": 200, "max_tokens": 50}}'
        )
    timed = [arrival for arrival in arrivals if arrival.at_s is not None]
    if timed and len(timed) < len(arrivals):
        without = next(arrival for arrival in arrivals if arrival.at_s is None)
        raise InvalidRequest(f"{path}, line {without.line} has no `at`, but others do; give it to all or to none")
    return sorted(arrivals, key=lambda arrival: arrival.at_s or 0.0)


def _arrival(where: str, number: int, line: bytes) -> Arrival:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{where} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise InvalidRequest(f"{where} must be an object, not {found!r:.60}")
    unknown = next((key for key in found if key not in _KEYS), None)
    if unknown is not None:
        raise InvalidRequest(f"{where}: unknown key {unknown!r:.60}; there are {', '.join(_KEYS)}")
    given = [key for key in _PROMPTS if key in found]
    if len(given) != 1:
        raise InvalidRequest(f"{where} must have exactly one of {', '.join(_PROMPTS)}")
    length = _count(where, "prompt_length", found["prompt_length"]) if "prompt_length" in found else 0
    asked = {} if length else {given[0]: found[given[0]]}
    _check_asked(where, asked)
    return Arrival(
        line=number,
        at_s=_moment(where, found["at"]) if "at" in found else None,
        asked=asked,
        prompt_length=length,
        max_tokens=_count(where, "max_tokens", found.get("max_tokens", DEFAULT_NEW_TOKENS)),
    )


def _check_asked(where: str, asked: Mapping[str, Any]) -> None:
    """What no model would take is found before one is loaded."""
    from ..requests import resolve_text_options

    if asked:
        try:
            resolve_text_options(asked)
        except InvalidRequest as error:
            raise InvalidRequest(f"{where}: {error}") from None


def _count(where: str, name: str, value: object) -> int:
    if type(value) is not int or not 1 <= value <= MOST_TOKENS:
        raise InvalidRequest(f"{where}: {name} must be a whole number from 1 to {MOST_TOKENS}, not {value!r:.60}")
    return value


def _moment(where: str, value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _LATEST_S:  # NaN is not
        return float(value)
    raise InvalidRequest(f"{where}: at must be seconds from 0 to {_LATEST_S:.0f}, not {value!r:.60}")
