"""Which tokens a sequence holds and how often its answer does, kept up to date one token at a time. No torch."""

from __future__ import annotations

from array import array

from ..sequence import TokenSequence

_KEY = "token_counts"


class TokenCounts:
    """Distinct tokens of prompt and answer, in order of appearance, and how often each is in the answer."""

    __slots__ = ("_slots", "ids", "made", "num_prompt", "num_seen")

    def __init__(self, num_prompt: int) -> None:
        self.ids = array("q")
        self.made = array("q")
        """How often `ids[i]` is in the answer; 0 for tokens of the prompt alone."""
        self.num_prompt = num_prompt
        self.num_seen = 0
        self._slots: dict[int, int] = {}

    def update(self, tokens: list[int]) -> None:
        """Count what was added to `tokens` since the last call. Cost: the number of added tokens."""
        slots, ids, made = self._slots, self.ids, self.made
        for position in range(self.num_seen, len(tokens)):
            token_id = tokens[position]
            slot = slots.get(token_id)
            if slot is None:
                slot = slots[token_id] = len(ids)
                ids.append(token_id)
                made.append(0)
            if position >= self.num_prompt:
                made[slot] += 1
        self.num_seen = len(tokens)


def token_counts(sequence: TokenSequence) -> TokenCounts:
    """The counts of `sequence`, up to date. They live in its `private`, and are made again when missing or stale."""
    counts = sequence.private.get(_KEY)
    stale = (
        not isinstance(counts, TokenCounts)
        or counts.num_prompt != sequence.num_prompt
        or counts.num_seen > len(sequence.tokens)
    )
    if stale:
        counts = sequence.private[_KEY] = TokenCounts(sequence.num_prompt)
    assert isinstance(counts, TokenCounts)
    counts.update(sequence.tokens)
    return counts
