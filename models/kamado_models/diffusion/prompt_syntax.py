"""Weights in prompts, in the notation that AUTOMATIC1111's web UI made common.

    (word)       counts 1.1 times as much         ((word))   1.21 times
    [word]       counts 1.1 times less            (word:1.3) 1.3 times
    \\( \\) \\[ \\]  are the characters themselves     BREAK      what follows begins a chunk of its own

A parenthesis that is never closed holds to the end; one that was never opened is a character. Imports no torch.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from kamado.errors import InvalidRequest

STEP = 1.1
LARGEST_WEIGHT = 100.0
MAX_DEPTH = 100
_PIECE = re.compile(
    r"""
    \\(?P<escaped>[()\[\]\\])
  | :\s*+(?P<number>[+-]?(?:\d++(?:\.\d*+)?|\.\d++))\s*+(?P<end>\))  # takes back nothing: long ones cost no more
  | (?P<bracket>[()\[\]])
  | \b(?P<break>BREAK)\b
  | (?P<text>[^\\()\[\]:B]+|.)
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of text of one weight."""

    text: str
    weight: float


def parse_weights(prompt: str) -> list[list[Span]]:
    """The parts between BREAKs, each as spans, neighbours of different weights. Raises InvalidRequest for a weight
    beyond LARGEST_WEIGHT, and for more than MAX_DEPTH open brackets."""
    pieces: list[tuple[str | None, float]] = []  # None is a BREAK
    opened: list[tuple[str, int]] = []  # brackets that wait to be closed, and the first piece inside

    def close(factor: float) -> None:
        _, start = opened.pop()
        pieces[start:] = [(text, weight * factor) for text, weight in pieces[start:]]

    for match in _PIECE.finditer(prompt):
        bracket, inside = match["bracket"], opened[-1][0] if opened else None
        if bracket in ("(", "["):
            opened.append((bracket, len(pieces)))
            if len(opened) > MAX_DEPTH:
                raise InvalidRequest(
                    f"the prompt has more than {MAX_DEPTH} open brackets; write \\\\( for the character"
                )
        elif match["number"] is not None and inside == "(":
            close(float(match["number"]))
        elif bracket == ")" and inside == "(":
            close(STEP)
        elif bracket == "]" and inside == "[":
            close(1 / STEP)
        elif match["break"]:
            pieces.append((None, 1.0))
        else:
            pieces.append((match["escaped"] or match[0], 1.0))
    while opened:
        close(STEP if opened[-1][0] == "(" else 1 / STEP)
    return _parts(pieces)


def _parts(pieces: list[tuple[str | None, float]]) -> list[list[Span]]:
    parts: list[list[tuple[list[str], float]]] = [[]]
    for text, weight in pieces:
        if not math.isfinite(weight) or abs(weight) > LARGEST_WEIGHT:
            raise InvalidRequest(f"a part of the prompt has the weight {weight:g}; the largest is {LARGEST_WEIGHT:g}")
        if text is None:
            parts.append([])
        elif parts[-1] and parts[-1][-1][1] == weight:
            parts[-1][-1][0].append(text)
        else:
            parts[-1].append(([text], weight))
    return [[Span("".join(texts), weight) for texts, weight in part] for part in parts]
