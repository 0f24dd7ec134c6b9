"""When one request guesses, and how far: where what is accepted pays for what checking costs. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from .costs import LaneSpeculation
from .lookup import Lookup

LENGTHS = (16, 8, 4, 2, 1)
MAX_LENGTH = LENGTHS[0]
FREE_LOSS = 1.0
LOSS_SHARE = 0.02
"""A request loses at most the time of FREE_LOSS forwards, and this part of its own, with guesses that come to
nothing, as far as costs are known."""
_MOST_SAVED = 2.0
"""Forwards that were won long ago pay for no more losses than this."""
_WORTH = 1.05
"""Tokens a second with guesses, as a multiple of those without, that are worth trying for."""
_PRIORS = {2: 0.3, 3: 0.45, 4: 0.6, 8: 0.8}
"""By the length of the match, from so many tokens on: how probable a guessed token is to be right. Free text and code
lie on both sides of these; some tens of guesses replace them."""
_MEMORY = 0.9
"""What a token's outcome counts for after another one."""
_FORGET = 0.01
"""How far the estimate returns to the prior with each guess that is not tried, so that it is tried again."""


class Pace:
    """Of one request: what to guess next. Not thread safe."""

    def __init__(self, lane: LaneSpeculation) -> None:
        self.lane = lane
        self.num_proposed = 0
        self.num_accepted = 0
        self._lookup = Lookup()
        self._rates = dict(_PRIORS)
        self._balance = 0.0
        """Forwards won, less those lost."""
        self._made: tuple[int, int, tuple[int, ...]] = (0, 0, ())
        """The last guess, for how many tokens of sequence and of room, and itself: the scheduler asks repeatedly."""
        self._match = 0

    def propose(self, tokens: Sequence[int], num_made: int, most: int) -> tuple[int, ...]:
        """At most `most` tokens that may follow `tokens`, of which `num_made` were generated. May be none."""
        most = min(most, self.lane.room(), MAX_LENGTH)
        if most < 1 or self._balance < -(FREE_LOSS + LOSS_SHARE * num_made):
            return ()
        if self._made[:2] != (len(tokens), most):
            self._made = (len(tokens), most, self._guess(tokens, most))
        return self._made[2]

    def checked(self, proposed: int, accepted: int) -> None:
        """What was proposed last has been checked: so many of so many tokens were right."""
        self.num_proposed += proposed
        self.num_accepted += accepted
        self.lane.checked(proposed, accepted)
        kind = _kind(self._match)
        for outcome in [1.0] * accepted + [0.0] * (accepted < proposed):
            self._rates[kind] += (1 - _MEMORY) * (outcome - self._rates[kind])
        self._balance = min(self._balance + accepted - self.lane.extra(proposed), _MOST_SAVED)

    def _guess(self, tokens: Sequence[int], most: int) -> tuple[int, ...]:
        guess = self._lookup.guess(tokens, most)
        if not guess.tokens:
            return ()
        self._match = guess.match
        kind = _kind(guess.match)
        length = self._best_length(self._rates[kind], most)
        if length == 0:
            self._rates[kind] += _FORGET * (_PRIORS[kind] - self._rates[kind])
        return guess.tokens[:length]

    def _best_length(self, rate: float, most: int) -> int:
        """The number of guesses that brings the most tokens a second; 0 where none brings more than plain steps."""
        best, best_worth = 0, _WORTH
        for length in {min(length, most) for length in LENGTHS}:
            tokens = sum(rate**i for i in range(length + 1))
            worth = tokens / (1 + self.lane.extra(length))
            if worth > best_worth:
                best, best_worth = length, worth
        return best


def _kind(match: int) -> int:
    return max(kind for kind in _PRIORS if kind <= max(match, 2))
