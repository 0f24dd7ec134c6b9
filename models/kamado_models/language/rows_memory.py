"""State memory for models that keep one library cache a sequence: reservations in bytes, and what holds the state.

Plain integers, no tensors and no torch: the lane (`rows.RowLane`) puts the state in, this module counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kamado.sequence import TokenSequence

ROUND_TOKENS = 64
"""Reservations grow by this many tokens at a time, as the cache layers' buffers do."""
WORKSPACE_FACTOR = 2
"""Joining rows into a new batch holds the old states until the new ones are final: that many times the budget at most,
and padding. Plan for it beside the activations."""
_SHORT_PAST = 512
_SHORT_PROMPT = 32
_UNBOUNDED = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RowMode:
    """How the rows of one model may share a forward. `rows_probe.probe` finds it out."""

    stackable: bool
    """Rows that have computed equally many tokens may."""
    ragged: bool
    """Rows that have computed different numbers of tokens may, padded on the left."""
    ragged_prompts: bool = False
    """Prompts of different length may be computed in one forward, padded on the left."""
    chunked: bool
    """Going on from a state with several tokens at once gives what computing all at once gives."""
    resumable: bool = True
    """Computing prompt and answer at once gives the state that making the answer token by token gave. Where not, a
    sequence that was released half-way goes on, but may go on otherwise than undisturbed."""
    padded: bool = True
    """Whether ragged rows are padded and told so by an attention mask: False where state does not grow with length."""
    notes: tuple[str, ...] = ()
    """Why something is not possible, as sentences."""


@dataclass(frozen=True, slots=True)
class RowShape:
    """What a row of a cache holds."""

    past: int
    """Tokens of the sequence (of an encoder-decoder model: of the decoder) that are in it."""
    source: int = 0
    """Encoder tokens that are in it."""


@dataclass(slots=True, kw_only=True, eq=False)
class RowBatch:
    """State of the rows that went through their last forward together. It stays joined as long as they do."""

    cache: Any
    shapes: list[RowShape]
    rows: list[RowState | None]
    """Whose state each row is; None once it is released or has moved to another batch."""


@dataclass(slots=True, kw_only=True, eq=False)
class RowState:
    """`TokenSequence.state` of a sequence: its reservation, and where its state is."""

    reserved_bytes: int
    batch: RowBatch | None = None
    """None while nothing is computed."""
    index: int = 0

    @property
    def past(self) -> int:
        return 0 if self.batch is None else self.batch.shapes[self.index].past

    def move(self, batch: RowBatch | None, index: int = 0) -> None:
        """Belong to another batch, or to none."""
        if self.batch is not None:
            self.batch.rows[self.index] = None
        self.batch, self.index = batch, index


def _keep(_: RowBatch) -> None:
    """Leave it as it is."""


@dataclass(slots=True, kw_only=True)
class RowMemory:
    """`kamado.sequence.SequenceMemory` by reservation: what a sequence may come to hold is set aside first."""

    mode: RowMode
    budget_bytes: int
    bytes_per_token: int
    bytes_per_sequence: int
    bytes_per_source_token: int = 0
    """Encoder states and cross attention of an encoder-decoder model."""
    max_sequences: int
    restart_tokens: int | None = None
    shrink: Callable[[RowBatch], None] = _keep
    """Lets go of the memory of a batch's rows that left, if it can."""
    used_bytes: int = field(default=0, init=False)
    _held: set[RowState] = field(default_factory=set, init=False)

    @property
    def chunked(self) -> bool:
        return self.mode.chunked

    @property
    def free_bytes(self) -> int:
        return self.budget_bytes - self.used_bytes

    @property
    def num_sequences(self) -> int:
        return len(self._held)

    def key(self, sequence: TokenSequence, num_new: int) -> Hashable:
        """Equal for works that may share a forward (`RowMode`)."""
        if not self.mode.stackable:
            return ("alone", sequence.id, sequence.index)
        past = sequence.num_computed
        if past == 0:
            size = _size_class(num_new) if self.mode.ragged_prompts else num_new
            return ("prefill", size, len(sequence.source))
        if num_new > 1:
            return ("extend", num_new, past)
        if not self.mode.ragged:
            return ("decode", past)
        # Rows within a factor of two of each other: padding then costs less than the longest row itself.
        return ("decode", past.bit_length() if self.mode.padded and past >= _SHORT_PAST else 0)

    def attach(self, sequence: TokenSequence) -> int:
        """Nothing is shared between sequences."""
        return 0

    def acquire(self, sequence: TokenSequence, num_tokens: int) -> bool:
        """Reserve for the first `num_tokens` tokens in all. False: no room, and nothing was changed."""
        state: RowState | None = sequence.state
        more = self._missing_bytes(sequence, num_tokens)
        if state is not None and more <= 0:
            return True
        if more > self.free_bytes or (state is None and self.num_sequences >= self.max_sequences):
            return False
        if state is None:
            self._make_room()
            state = sequence.state = RowState(reserved_bytes=0)
            self._held.add(state)
        state.reserved_bytes += more
        self.used_bytes += more
        return True

    def victims_needed(self, sequence: TokenSequence, num_tokens: int, others: Sequence[TokenSequence]) -> int | None:
        """How many of `others`, in order, would have to be released for `acquire` to succeed; None: not even all."""
        more = self._missing_bytes(sequence, num_tokens) - self.free_bytes
        surplus = self.num_sequences + (sequence.state is None) - self.max_sequences
        for count, other in enumerate(others):
            if more <= 0 and surplus <= 0:
                return count
            if other.state is not None:
                more -= other.state.reserved_bytes
                surplus -= 1
        return len(others) if more <= 0 and surplus <= 0 else None

    def committed(self, sequence: TokenSequence) -> None:
        """Nothing to do: states are not shared."""

    def release(self, sequence: TokenSequence) -> None:
        """Give back the reservation and the state."""
        state: RowState | None = sequence.state
        if state is None:
            return
        self._held.remove(state)
        self.used_bytes -= state.reserved_bytes
        state.move(None)
        sequence.state = None

    def fits(self, num_tokens: int, num_source: int) -> bool:
        """Whether a sequence of that many tokens, with that many encoder tokens, could ever be held, alone."""
        return self.max_sequences > 0 and self._needed_bytes(num_tokens, num_source) <= self.budget_bytes

    def capacity_tokens(self) -> int:
        """The longest sequence (without encoder tokens) that fits alone."""
        room = self.budget_bytes - self.bytes_per_sequence
        if room < 0 or self.max_sequences < 1:
            return 0
        if self.bytes_per_token == 0:
            return _UNBOUNDED
        return room // (self.bytes_per_token * ROUND_TOKENS) * ROUND_TOKENS

    def usage(self) -> dict[str, int]:
        """Figures for `Runtime.stats`."""
        return {
            "state_bytes_total": self.budget_bytes,
            "state_bytes_free": self.free_bytes,
            "sequences": self.num_sequences,
        }

    def check_integrity(self) -> None:
        """Assert that the counters agree with what is held."""
        assert self.used_bytes == sum(state.reserved_bytes for state in self._held), "reservations do not add up"
        assert 0 <= self.used_bytes <= self.budget_bytes, f"{self.used_bytes} of {self.budget_bytes} bytes in use"
        assert len(self._held) <= self.max_sequences, f"{len(self._held)} sequences, {self.max_sequences} allowed"
        for state in self._held:
            assert state.batch is None or state.batch.rows[state.index] is state, "a batch has lost one of its rows"

    def _make_room(self) -> None:
        """What rows that left had reserved is given to others: so it must be free, too."""
        batches = {id(state.batch): state.batch for state in self._held if state.batch is not None}
        for batch in batches.values():
            if None in batch.rows:
                self.shrink(batch)

    def _missing_bytes(self, sequence: TokenSequence, num_tokens: int) -> int:
        """What its first `num_tokens` tokens need beyond its reservation; below 0 where that is larger."""
        reserved = sequence.state.reserved_bytes if sequence.state is not None else 0
        return self._needed_bytes(num_tokens, len(sequence.source)) - reserved

    def _needed_bytes(self, num_tokens: int, num_source: int) -> int:
        rounded = -(-num_tokens // ROUND_TOKENS) * ROUND_TOKENS
        return self.bytes_per_sequence + rounded * self.bytes_per_token + num_source * self.bytes_per_source_token


def _size_class(num_tokens: int) -> int:
    """Equal for prompts that may be padded to the same length: a short one costs as much as its overhead, and of longer
    ones at most a fifth is padding."""
    return 0 if num_tokens <= _SHORT_PROMPT else int(4 * math.log2(num_tokens))
