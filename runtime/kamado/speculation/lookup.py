"""Guesses without a model: what followed the last tokens where they stood before (prompt look-up, Saxena 2023).

Earlier places are found as LZ77 compressors find them: chains of the places of each pair of tokens.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

MIN_MATCH = 2
"""Tokens. Also what the chains are made of."""
MAX_MATCH = 16
"""A longer match says nothing more."""
MAX_PLACES = 16
"""So many earlier places are compared."""


@dataclass(frozen=True, slots=True)
class Guess:
    """Tokens that may come."""

    tokens: tuple[int, ...]
    match: int
    """How many of the last tokens stood before these, MIN_MATCH to MAX_MATCH; 0: there is no guess."""


NO_GUESS = Guess((), 0)


class Lookup:
    """The tokens of one sequence, indexed as they come. Cost: constant for a token, memory: about 100 bytes."""

    def __init__(self) -> None:
        self._newest: dict[tuple[int, int], int] = {}
        """By a pair of tokens: what stands behind its newest place; the last pair of all is not in it."""
        self._older = array("q")
        """By a position: the same pair's place before, or -1."""

    def guess(self, tokens: Sequence[int], length: int) -> Guess:
        """The `length` tokens that followed the longest match with the end of `tokens`, the newest of equal ones.

        `tokens` must begin with those of the last call."""
        self._index(tokens)
        if length < 1 or len(tokens) <= MIN_MATCH:
            return NO_GUESS
        place = self._newest.get((tokens[-2], tokens[-1]), -1)
        best, best_match = -1, 0
        for _ in range(MAX_PLACES):
            if place < 0:
                break
            match = _match(tokens, place)
            if match > best_match:
                best, best_match = place, match
            if match == MAX_MATCH:
                break
            place = self._older[place]
        if best < 0:
            return NO_GUESS
        # Where the place is so near that its text ends with the sequence, the sequence repeats itself.
        period = len(tokens) - best
        return Guess(tuple(tokens[best + i % period] for i in range(length)), best_match)

    def _index(self, tokens: Sequence[int]) -> None:
        for place in range(len(self._older), len(tokens)):
            if place < MIN_MATCH:
                self._older.append(-1)
                continue
            pair = (tokens[place - 2], tokens[place - 1])
            self._older.append(self._newest.get(pair, -1))
            self._newest[pair] = place


def _match(tokens: Sequence[int], place: int) -> int:
    """How many tokens before `place` are those at the end; the pair that led there is known to be."""
    end = len(tokens)
    match = MIN_MATCH
    most = min(MAX_MATCH, place)
    while match < most and tokens[place - 1 - match] == tokens[end - 1 - match]:
        match += 1
    return match
