"""What is to be measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import InvalidRequest

MOST_TOKENS = 10_000_000
MOST_BATCH = 4096
MOST_REPS = 10_000
Row = dict[str, Any]
"""One line of the result, as `--json` prints it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """The tests. Raises InvalidRequest for values out of range."""

    prompt_tokens: int = 512
    """Of the prefill test; 0 leaves it out."""
    new_tokens: int = 128
    """Made in each decoding test; 0 leaves them out."""
    depth: int = 16
    """Tokens of prompt before decoding."""
    batches: tuple[int, ...] = (1, 8)
    """Requests at the same time: a decoding test, or one of pictures, for each number."""
    reps: int = 5
    """Repetitions, after a first run that does not count."""
    picture: Mapping[str, Any] = field(default_factory=dict)
    """Options of the pictures: `width`, `height`, `steps`, ..."""

    def __post_init__(self) -> None:
        _check("prompt tokens (-p)", self.prompt_tokens, 0, MOST_TOKENS)
        _check("new tokens (-n)", self.new_tokens, 0, MOST_TOKENS)
        _check("depth (-d)", self.depth, 1, MOST_TOKENS)
        _check("repetitions (--reps)", self.reps, 1, MOST_REPS)
        for batch in self.batches:
            _check("a batch (-b)", batch, 1, MOST_BATCH)
        if not self.batches or len(set(self.batches)) < len(self.batches):
            raise InvalidRequest("batches (-b) must be different numbers, like 1,8")


def _check(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise InvalidRequest(f"{name} must be from {least} to {most}, not {value}")


def parse_batches(text: str) -> tuple[int, ...]:
    """`"1,8"` -> (1, 8). Raises InvalidRequest."""
    items = [item.strip() for item in text.split(",")]
    if not all(item.isascii() and item.isdecimal() and len(item) < 10 for item in items):
        raise InvalidRequest(f"-b {text!r:.60} must be numbers from 1 on, like 1,8")
    return tuple(int(item) for item in items)
