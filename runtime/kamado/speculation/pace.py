"""When one request guesses, how far and by which means: where what is accepted pays for what it costs. No torch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from .costs import DraftCosts, LaneSpeculation
from .lookup import Lookup

LENGTHS = (16, 8, 4, 2, 1)
DRAFT_LENGTHS = (16, 12, 8, 6, 5, 4, 3, 2, 1)
"""A draft pays for each of its tokens, so that one more or less counts."""
MAX_LENGTH = LENGTHS[0]
FREE_LOSS = 1.0
LOSS_SHARE = 0.02
"""A request loses at most the time of FREE_LOSS forwards, and this part of its own, with guesses of one kind that come
to nothing, as far as costs are known."""
_MOST_SAVED = 2.0
"""Forwards that were won long ago pay for no more losses than this."""
_WORTH = 1.05
"""Tokens a second with guesses, as a multiple of those without, that are worth trying for."""
_PRIORS = {2: 0.3, 3: 0.45, 4: 0.6, 8: 0.8}
"""By the length of the match, from so many tokens on: how probable a guessed token is to be right. Free text and code
lie on both sides of these; some tens of guesses replace them."""
_KINDS = tuple(_PRIORS)
_DRAFT = 0
"""In place of a match: a draft guessed."""
_MEMORY = 0.9
"""What a token's outcome counts for after another one."""
_FORGET = 0.01
"""How far the estimate returns to the prior with each guess that is not tried, so that it is tried again."""
_HORIZON = 128
"""Tokens that an answer is taken to go on for, at least, where nothing ends it before: what reading it once may cost
a draft. An answer that is longer already is taken to become twice as long."""


@dataclass(slots=True)
class Balance:
    """Forwards won with one kind of guesses, less those lost."""

    forwards: float = 0.0

    def add(self, forwards: float) -> None:
        """So many were won."""
        self.forwards = min(self.forwards + forwards, _MOST_SAVED)

    def is_spent(self, num_made: int) -> bool:
        """Whether no more may be lost by an answer of so many tokens."""
        return self.forwards < -(FREE_LOSS + LOSS_SHARE * num_made)


class Pace:
    """Of one request: what to guess next. Not thread safe."""

    def __init__(self, lane: LaneSpeculation) -> None:
        self.lane = lane
        self.num_proposed = 0
        self.num_accepted = 0
        self._lookup = Lookup()
        self._priors = dict(_PRIORS)
        self._rates = dict(_PRIORS)
        self._looked_up = Balance()
        self._drafted = Balance()
        self._made: tuple[int, int, tuple[int, ...]] = (0, 0, ())
        """The last guess, for how many tokens of sequence and of room, and itself: the scheduler asks repeatedly."""
        self._worth = 1.0
        """Tokens a second with it, as a multiple of those without."""
        self._match = 0
        self._kind = 2
        """Of what was proposed last."""

    def take(self, drafted: tuple[int, ...], most: int) -> tuple[int, ...]:
        """At most `most` of the tokens that a draft guessed."""
        self._kind = _DRAFT
        return drafted[: max(min(most, self.lane.room()), 0)]

    def propose(self, tokens: Sequence[int], num_made: int, most: int) -> tuple[int, ...]:
        """At most `most` tokens that may follow `tokens`, of which `num_made` were generated. May be none."""
        most = min(most, self.lane.room(), MAX_LENGTH)
        if most < 1 or self._looked_up.is_spent(num_made):
            self._worth = 1.0
            return ()
        if self._made[:2] != (len(tokens), most):
            self._made = (len(tokens), most, self._guess(tokens, most))
        self._kind = _kind(self._match)
        return self._made[2]

    def draft_length(
        self, tokens: Sequence[int], num_made: int, most: int, *, pending: int, costs: DraftCosts, left: int
    ) -> int:
        """How many tokens a draft is to guess that has to read `pending` ones first; 0: none, or those that were looked
        up are worth more. `most`: see `propose`; `left`: how long the answer may become yet."""
        if _DRAFT not in self._rates:
            self._rates[_DRAFT] = self._priors[_DRAFT] = self.lane.first_draft_rate()
        self.propose(tokens, num_made, most)
        most = min(most, self.lane.room(), MAX_LENGTH)
        if most < 1 or self.has_given_drafts_up(num_made):
            return 0
        each, rate = costs.of(1), self._rates[_DRAFT]
        reading = costs.of(pending) - each
        once = reading / max(min(left, max(num_made, _HORIZON)), 1) if pending > 2 else 0.0
        best, best_worth = 0, max(_WORTH, self._worth)
        for length in {min(length, most) for length in DRAFT_LENGTHS}:
            spent = 1 + self.lane.extra(length) + length * each + (reading if pending <= 2 else 0.0)
            worth = 1 / (spent / _tokens(rate, length) + once)
            if worth > best_worth:
                best, best_worth = length, worth
        if best == 0:
            self._rates[_DRAFT] += _FORGET * (self._priors[_DRAFT] - rate)
        return best

    def has_given_drafts_up(self, num_made: int) -> bool:
        """Whether drafts have cost an answer of so many tokens as much as they may."""
        return self._drafted.is_spent(num_made)

    def drafted(self, forwards: float) -> None:
        """A draft's forward cost as much time as so many plain ones."""
        self._drafted.add(-forwards)

    def checked(self, proposed: int, accepted: int) -> None:
        """What was proposed last has been checked: so many of so many tokens were right."""
        self.num_proposed += proposed
        self.num_accepted += accepted
        kind = self._kind
        self.lane.checked(proposed, accepted, drafted=kind == _DRAFT)
        for outcome in [1.0] * accepted + [0.0] * (accepted < proposed):
            self._rates[kind] += (1 - _MEMORY) * (outcome - self._rates[kind])
        balance = self._drafted if kind == _DRAFT else self._looked_up
        balance.add(accepted - self.lane.extra(proposed))

    def _guess(self, tokens: Sequence[int], most: int) -> tuple[int, ...]:
        self._worth = 1.0
        guess = self._lookup.guess(tokens, most)
        if not guess.tokens:
            return ()
        self._match = guess.match
        kind = _kind(guess.match)
        length, self._worth = self._best_length(self._rates[kind], most)
        if length == 0:
            self._rates[kind] += _FORGET * (_PRIORS[kind] - self._rates[kind])
        return guess.tokens[:length]

    def _best_length(self, rate: float, most: int) -> tuple[int, float]:
        """The number of guesses that brings the most tokens a second, and how many times those of plain steps; 0 where
        none brings more than these."""
        best, best_worth = 0, _WORTH
        for length in {min(length, most) for length in LENGTHS}:
            worth = _tokens(rate, length) / (1 + self.lane.extra(length))
            if worth > best_worth:
                best, best_worth = length, worth
        return best, best_worth if best else 1.0


def _tokens(rate: float, length: int) -> float:
    """That a forward makes, where each of so many guesses is right with this probability if those before it are."""
    return sum(rate**i for i in range(length + 1))


def _kind(match: int) -> int:
    return _KINDS[max(bisect_right(_KINDS, match) - 1, 0)]
