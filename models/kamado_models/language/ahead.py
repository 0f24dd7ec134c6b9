"""Recorded steps that are launched before anybody asks for them, so that a GPU computes while its host works.

    device   forward n | draw n | forward n+1         | draw n+1 | forward n+2
    host              launches  | waits, takes tokens in, writes texts, schedules: step n+1 is asked for

As soon as the tokens of a step are being drawn, the next step is launched with these tokens, which are still on the
device. Where the step that is asked for then is that very one (the same rows: tokens, positions, pages), its logits are
there or on their way; drawing from them begins only then, with what the host knows. Otherwise they are not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from kamado.kernels.gpu import upload
from kamado.memory.blocks import BlockTable, PagedMemory
from kamado.sampling.sampler import Drawing
from kamado.sequence import TextStep, TokenSequence

from .captured import Row, rows_of

_PRICE = 8
"""Guesses that have to hold for one that does not: that one costs the device a step, the others save the host's part
of one."""
_MOST_CREDIT = 64
_FIRST_REST = 32
_LONGEST_REST = 4096


class Recorded(Protocol):
    """What runs recorded steps: `captured.CapturedSteps`, where it is described."""

    def forward(self, steps: Sequence[TextStep]) -> Tensor | None: ...

    def may_run(self, steps: Sequence[TextStep]) -> bool: ...

    def launch(self, rows: Sequence[Row], tokens: Tensor) -> tuple[int, int] | None: ...

    def logits(self, size: tuple[int, int], num_rows: int) -> Tensor | None: ...


class Credit:
    """Whether guessing pays: each guess that does not hold costs what several others brought. Where that is not
    there, nothing is guessed for a while, twice as long each time."""

    def __init__(self) -> None:
        self._balance = _PRICE
        self._rest = 0
        self._next_rest = _FIRST_REST

    @property
    def is_resting(self) -> bool:
        return self._rest > 0

    def may_guess(self) -> bool:
        """Asked once for each step behind which something could be guessed."""
        if self._rest == 0:
            return True
        self._rest -= 1
        return False

    def settle(self, *, held: bool) -> None:
        """A guess came to this."""
        self._balance = min(self._balance + 1, _MOST_CREDIT) if held else self._balance - _PRICE
        if self._balance < 0:
            self._balance, self._rest = 0, self._next_rest
            self._next_rest = min(2 * self._next_rest, _LONGEST_REST)
        elif self._balance == _MOST_CREDIT:
            self._next_rest = _FIRST_REST


@dataclass(slots=True)
class _Guess:
    """The step that is taken to come next."""

    sequences: list[TokenSequence]
    rows: list[Row]
    """Of each sequence one; their tokens are drawn at this moment."""
    places: list[int]
    """Of the rows in the step before."""
    size: tuple[int, int] | None = None
    """What its logits are found by. None: it may have been launched or not, and is not to be used."""
    drawn: Sequence[int] = ()
    """All tokens of the step before, as the device had them; empty as long as nobody knows."""

    def is_for(self, steps: Sequence[TextStep], block_tokens: int) -> bool:
        """Whether it computes just that."""
        if len(steps) != len(self.rows) or not self.drawn:
            return False
        if not all(step.sequence is sequence for step, sequence in zip(steps, self.sequences, strict=True)):
            return False
        guessed = [replace(row, token=self.drawn[place]) for row, place in zip(self.rows, self.places, strict=True)]
        return rows_of(steps, block_tokens) == guessed

    def left_behind(self, steps: Sequence[TextStep], block_tokens: int) -> list[int]:
        """Slots that it wrote to and `steps` will not."""
        coming = {id(step.sequence): step for step in steps}
        return [
            row.slot(block_tokens)
            for sequence, row in zip(self.sequences, self.rows, strict=True)
            if not _writes(coming.get(id(sequence)), row, block_tokens)
        ]


class Ahead:
    """The steps of one lane, in place of its `CapturedSteps.forward`. Not thread safe: the loop's thread owns it;
    figures may be read by others. Whatever goes wrong with a guess ends guessing, and nothing else."""

    def __init__(self, recorded: Recorded, memory: PagedMemory, clear_slots: Callable[[Sequence[int]], None]) -> None:
        """`memory` has the pages; `clear_slots` zeroes single tokens in them, see `PageStore`."""
        self.taken = 0
        """Steps that had been launched ahead."""
        self.thrown = 0
        """Steps that nobody asked for."""
        self.note = ""
        """Why guessing ended, if it did."""
        self.was_taken = False
        """Whether the last forward had been launched ahead,"""
        self.was_wrong = False
        """or had to wait for one that nobody asked for."""
        self._recorded = recorded
        self._memory = memory
        self._clear_slots = clear_slots
        self._credit = Credit()
        self._guess: _Guess | None = None
        self._is_recorded = False
        """Whether the last forward was a recorded one."""

    def figures(self) -> dict[str, Any]:
        """For `Runtime.stats`."""
        note = {"note": self.note} if self.note else {}
        return {"taken": self.taken, "thrown": self.thrown, "resting": self._credit.is_resting, **note}

    def forward(self, steps: Sequence[TextStep]) -> Tensor | None:
        """See CapturedSteps."""
        guess, self._guess = self._guess, None
        self.was_taken = self.was_wrong = False
        logits = self._settled(guess, steps) if guess is not None else None
        if logits is None:
            logits = self._recorded.forward(steps)
        self._is_recorded = logits is not None
        return logits

    def launch(self, steps: Sequence[TextStep], drawing: Drawing) -> None:
        """The tokens of `steps`, whose logits `forward` gave last, are being drawn: launch the step behind them, where
        it can be told. The logits may be overwritten by that."""
        if self.note or not self._is_recorded or not all(_is_plain(step) for step in steps):
            return
        try:
            if self._credit.may_guess() and (guess := self._next(steps)) is not None:
                drawing.keep()
                tokens = drawing.tokens_r
                if len(guess.rows) < len(steps):
                    tokens = tokens.index_select(0, upload(torch.tensor(guess.places), tokens.device))
                self._guess = guess
                guess.size = self._recorded.launch(guess.rows, tokens)
                if guess.size is None:
                    self._guess = None
        except Exception as error:  # noqa: BLE001 - the step that was asked for is not touched by it
            self.stop(f"{type(error).__name__}: {error}")

    def drawn(self, tokens: Sequence[int]) -> None:
        """What the device had drawn when `launch` was called, of all rows."""
        if self._guess is not None:
            self._guess.drawn = tokens

    def stop(self, note: str) -> None:
        """Guess no more. `note`: why."""
        self.note = note

    def _next(self, steps: Sequence[TextStep]) -> _Guess | None:
        """The step behind these, without the sequences that are as long as they may get; None: it cannot be told."""
        block_tokens = self._memory.block_tokens
        guess = _Guess([], [], [])
        for place, step in enumerate(steps):
            sequence = step.sequence
            position = len(sequence.tokens)
            if sequence.most_tokens is not None and position + 1 >= sequence.most_tokens:
                continue
            # Everybody in the step still finds a page of its own.
            past = self._memory.acquire_ahead(sequence, spare_pages=len(steps))
            if past is None:
                return None
            table: BlockTable = sequence.state
            length = position + 1 - past * block_tokens
            pages = table.blocks[past : past + -(-length // block_tokens)]
            guess.sequences.append(sequence)
            guess.rows.append(Row(0, position, length, pages))
            guess.places.append(place)
        return guess if guess.rows else None

    def _settled(self, guess: _Guess, steps: Sequence[TextStep]) -> Tensor | None:
        """The logits of `steps`, if they are those guessed."""
        try:
            block_tokens = self._memory.block_tokens
            if guess.size is not None and self._recorded.may_run(steps) and guess.is_for(steps, block_tokens):
                logits = self._recorded.logits(guess.size, len(steps))
                if logits is not None:
                    self.taken += 1
                    self.was_taken = True
                    self._credit.settle(held=True)
                    return logits
            self.thrown += 1
            self.was_wrong = True
            self._credit.settle(held=False)
            # Should it be NaN, it would spread to whoever has the page next, through positions that are masked there.
            if slots := guess.left_behind(steps, block_tokens):
                self._clear_slots(slots)
        except Exception as error:  # noqa: BLE001 - the step that is asked for can be computed without it
            self.stop(f"{type(error).__name__}: {error}")
        return None


def _is_plain(step: TextStep) -> bool:
    """Whether one token behind it is drawn, and one token is what comes next."""
    return step.sample and step.num_new == 1 and not step.proposed and not step.is_guess


def _writes(step: TextStep | None, row: Row, block_tokens: int) -> bool:
    """Whether the step of the row's sequence writes where the row did."""
    if step is None or step.sequence.state is None:
        return False
    start = step.sequence.num_computed
    if not start <= row.position < start + step.num_new:
        return False
    page: int = step.sequence.state.blocks[row.position // block_tokens]
    return page == row.pages[-1]
