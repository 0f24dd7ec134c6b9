"""What checking guesses costs and brings on one lane, measured there. No torch."""

from __future__ import annotations

import statistics
from bisect import bisect_left
from collections import deque

PRIOR_SECONDS = 0.06
"""Of a forward with one token, for each further one, before anything is measured."""
_KEPT = 9
"""Measurements of one size, of which the median counts: others use the machine as well."""
DRAFT_RATE = 0.7
"""How probable a token that a draft guesses is to be right, before anything is known."""
_RATE_STEP = 0.05
"""What one outcome counts for in that, over all requests."""
_RATE_RETURN = 0.005
"""How far it returns with each request."""
_UNKNOWN_SHARE = 0.2
"""Of the time of a model's forward, that of its draft's, where nothing at all is known."""
_ENOUGH_MEASURED = 5
"""The first forwards of a model that has just come are slow."""
_MAX_TOKENS = 256
"""Larger forwards are prompts being read, of which none is a check."""


class StepCosts:
    """Seconds of a forward by its number of tokens. Not thread safe: the loop's thread owns it."""

    def __init__(self) -> None:
        self._seconds: dict[int, deque[float]] = {}
        self._curve: tuple[list[int], list[float]] | None = None

    def note(self, num_tokens: int, seconds: float) -> None:
        """A forward of so many tokens took so long."""
        if 0 < num_tokens <= _MAX_TOKENS and seconds > 0:
            self._seconds.setdefault(num_tokens, deque(maxlen=_KEPT)).append(seconds)
            self._curve = None

    def num_measured(self, most_tokens: int) -> int:
        """How many forwards of at most so many tokens count."""
        return sum(len(seconds) for size, seconds in self._seconds.items() if size <= most_tokens)

    def seconds(self, num_tokens: int) -> float:
        """Of a forward, as far as it can be told; any number where nothing was measured."""
        return self._at(num_tokens)

    def extra(self, num_tokens: int, num_more: int) -> float:
        """By what part of its time a forward of `num_tokens` takes longer with `num_more` tokens in it."""
        before = self._at(num_tokens)
        return max(self._at(num_tokens + num_more) / before - 1, 0.0)

    def _at(self, num_tokens: int) -> float:
        """Seconds, between and beyond what was measured as the nearest sizes and the prior say; the unit does not
        matter where nothing was measured."""
        sizes, seconds = self._curve or self._made_curve()
        if not sizes:
            return 1 + PRIOR_SECONDS * (num_tokens - 1)
        if num_tokens <= sizes[0]:
            return seconds[0] * _prior(num_tokens) / _prior(sizes[0])
        if num_tokens >= sizes[-1]:
            return seconds[-1] * _prior(num_tokens) / _prior(sizes[-1])
        high = bisect_left(sizes, num_tokens)
        low = high - 1
        part = (num_tokens - sizes[low]) / (sizes[high] - sizes[low])
        return seconds[low] + part * (seconds[high] - seconds[low])

    def _made_curve(self) -> tuple[list[int], list[float]]:
        """Sizes and their medians; a larger forward is never taken for the quicker one."""
        sizes = sorted(self._seconds)
        medians: list[float] = []
        for size in sizes:
            medians.append(max([statistics.median(self._seconds[size]), *medians[-1:]]))
        self._curve = (sizes, medians)
        return self._curve


def _prior(num_tokens: int) -> float:
    return 1 + PRIOR_SECONDS * (num_tokens - 1)


class LaneSpeculation:
    """What the tasks of one lane share. Not thread safe: the loop's thread owns it; figures may be read by others."""

    def __init__(self, *, max_rows: int, weight_bytes: int = 0) -> None:
        """`max_rows`: tokens drawn in one forward at most; memory was planned for so many. `weight_bytes`: what a
        forward reads, as far as that is known."""
        self.max_rows = max_rows
        self.weight_bytes = weight_bytes
        self.costs = StepCosts()
        self.draft_rate = DRAFT_RATE
        """How probable a token that a draft guesses is to be right, over all requests."""
        self.num_drafted = 0
        self.num_drafts_accepted = 0
        self.num_proposed = 0
        self.num_accepted = 0
        self.num_checks = 0
        """Forwards of a sequence in which proposals were checked."""
        self._rows = 1
        self._tokens = 1

    @property
    def rows(self) -> int:
        """Sequences in the last forward."""
        return self._rows

    def plain_seconds(self) -> float:
        """Of the next forward, where nobody guesses."""
        return self.costs.seconds(self._tokens)

    def forward_done(self, *, rows: int, tokens: int, proposed: int, seconds: float) -> None:
        """A forward of `rows` sequences with `tokens` tokens, `proposed` of them guesses."""
        self._rows = rows
        self._tokens = max(tokens - proposed, 1)
        self.costs.note(tokens, seconds)

    def room(self) -> int:
        """How many tokens each sequence may guess, where as many run as in the last forward."""
        return max(self.max_rows // self._rows - 1, 0)

    def extra(self, length: int) -> float:
        """By what part of its time the next forward takes longer, where each sequence guesses so many tokens."""
        return self.costs.extra(self._tokens, self._rows * length)

    def checked(self, proposed: int, accepted: int, *, drafted: bool = False) -> None:
        """Count the outcome of one check. `drafted`: a draft had made these guesses."""
        self.num_proposed += proposed
        self.num_accepted += accepted
        self.num_checks += 1
        if drafted:
            self.num_drafted += proposed
            self.num_drafts_accepted += accepted
            for outcome in [1.0] * accepted + [0.0] * (accepted < proposed):
                self.draft_rate += _RATE_STEP * (outcome - self.draft_rate)

    def first_draft_rate(self) -> float:
        """What a request begins with. Asked once a request: each moves it a little back to where it began, so that a
        draft that came to nothing is tried again."""
        self.draft_rate += _RATE_RETURN * (DRAFT_RATE - self.draft_rate)
        return self.draft_rate

    def figures(self, *, drafts: bool = False) -> dict[str, int]:
        """For `Runtime.stats`. `drafts`: with those of a draft's guesses, which count among the others."""
        own = {"drafted_tokens": self.num_drafted, "accepted_drafted_tokens": self.num_drafts_accepted}
        return {
            "checks": self.num_checks,
            "proposed_tokens": self.num_proposed,
            "accepted_tokens": self.num_accepted,
            **(own if drafts else {}),
        }


class DraftCosts:
    """What forwards of a draft cost, in forwards of the model that it guesses for."""

    def __init__(self, model: LaneSpeculation, draft: LaneSpeculation) -> None:
        self._model = model
        self._draft = draft

    def of(self, num_tokens: int) -> float:
        """One forward with so many tokens of each sequence, where as many run as in the model's last forward."""
        rows = self._model.rows
        if self._draft.costs.num_measured(2 * rows) >= _ENOUGH_MEASURED and self._model.costs.num_measured(_MAX_TOKENS):
            return self._draft.costs.seconds(rows * num_tokens) / self._model.plain_seconds()
        known = self._draft.weight_bytes and self._model.weight_bytes
        share = self._draft.weight_bytes / self._model.weight_bytes if known else _UNKNOWN_SHARE
        return share * _prior(rows * num_tokens) / _prior(rows)
