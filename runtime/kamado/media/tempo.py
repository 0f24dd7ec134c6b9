"""Where beats are in time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise


class Beats:
    """Counts beats while the tempo changes."""

    def __init__(self, tempos: Sequence[tuple[float, float]]) -> None:
        """`tempos`: see kamado.outputs.Score."""
        self._tempos = tempos
        self._seconds = [second for second, _ in tempos]
        self.beats = [0.0]
        """Where each tempo begins."""
        for (second, tempo), (next_second, _) in pairwise(tempos):
            self.beats.append(self.beats[-1] + (next_second - second) * tempo / 60)

    def at(self, second: float) -> float:
        """How many beats have passed."""
        place = max(bisect_right(self._seconds, second) - 1, 0)
        begin, tempo = self._tempos[place]
        return self.beats[place] + (second - begin) * tempo / 60
