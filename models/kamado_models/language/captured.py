"""Steps of answers as one launch each: forwards of a few fixed sizes, recorded once as graphs and run again.

    tokens of a step   padded to 1, 2, 4, 8, ...     one row for each token: of an answer the next one, or a proposal
    pages of a row     padded to 16, 64, 256, ...    how far attention reads at most; lengths are on the device

What changes from step to step (tokens, positions, pages, lengths) goes into fixed tensors in one copy. Rows that only
pad write to a page of their own. Whatever cannot be run so goes through the modules as ever.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor

from kamado.errors import DoesNotFit
from kamado.kernels.gpu.graphs import Recorder
from kamado.memory.shortage import is_shortage
from kamado.sequence import TextStep, drawn_places

from .waits import launched_bytes

LEAST_PAGES = 16
_PAGES_STEP = 4
_PATIENCE = 3
"""Steps of a size that go through the modules before it is recorded: recording takes as long as some of them."""


@dataclass(frozen=True, slots=True)
class FixedRows:
    """What a recorded forward reads, B tokens with up to P pages each; all int64, on the device."""

    tokens: Tensor
    """(B,)"""
    positions: Tensor
    """(B,)"""
    slots: Tensor
    """(B,) where keys and values go: page * page tokens + offset."""
    lengths: Tensor
    """(B,) keys, the token's own included, from the first page that the row holds."""
    tables: Tensor
    """(B, P) pages; behind a row's own ones, its last one again."""


Way = Callable[[FixedRows], Tensor]
"""A forward: logits (B, vocab). It launches the same, whatever its rows hold."""


@dataclass(frozen=True, slots=True)
class Row:
    """One token of a step; two equal rows are the same work."""

    token: int
    position: int
    length: int
    """Keys, the token's own included, from the first page that its sequence holds."""
    pages: list[int]
    """That hold them, in order."""

    def slot(self, block_tokens: int) -> int:
        """Where its keys and values go."""
        page, offset = divmod(self.length - 1, block_tokens)
        return self.pages[page] * block_tokens + offset


class _NotNow(Exception):
    """These rows are no good to compare by."""


class _Recording:
    """One forward of a fixed size."""

    def __init__(self, num_rows: int, num_pages: int, device: torch.device) -> None:
        pinned = device.type == "cuda"
        self._device = device
        self._staged = torch.zeros(num_rows * (4 + num_pages), dtype=torch.int64, pin_memory=pinned)
        self._fixed = torch.zeros_like(self._staged, device=device, pin_memory=False)
        self._sent: torch.cuda.Event | None = torch.cuda.Event() if pinned else None
        self._held: list[list[int]] = [[]] * num_rows
        shape = (4, num_rows)
        split = 4 * num_rows
        self._numbers: Any = self._staged[:split].view(shape).numpy()
        self._tables: Any = self._staged[split:].view(num_rows, num_pages).numpy()
        tokens, positions, slots, lengths = self._fixed[:split].view(shape).unbind()
        self.rows = FixedRows(tokens, positions, slots, lengths, self._fixed[split:].view(num_rows, num_pages))
        self.logits = torch.zeros((0, 0), device=device)
        """(rows, vocab), once that is known."""
        self.run: Callable[[], None] = lambda: None

    @property
    def nbytes(self) -> int:
        return self._fixed.nbytes + self.logits.nbytes

    def stage(self, rows: Sequence[Row], block_tokens: int, spare: int) -> None:
        """Send what this step computes. `spare`: the page of rows that only pad."""
        if self._sent is not None:
            self._sent.synchronize()  # what was staged last has long been read, but for a step that failed
        padding = [Row(0, 0, 1, [spare])] * (len(self._held) - len(rows))
        numbers: list[list[int]] = [[], [], [], []]
        for index, row in enumerate((*rows, *padding)):
            line = row.token, row.position, row.slot(block_tokens), row.length
            for column, number in zip(numbers, line, strict=True):
                column.append(number)
            if self._held[index] != row.pages:  # a page in as many steps as it has tokens
                self._held[index] = row.pages
                self._tables[index, : len(row.pages)] = row.pages
                self._tables[index, len(row.pages) :] = row.pages[-1]
        self._numbers[:] = numpy.array(numbers, dtype=numpy.int64)
        self._fixed.copy_(self._staged, non_blocking=True)
        if self._sent is not None:
            self._sent.record(torch.cuda.current_stream(self._device))


class CapturedSteps:
    """The recorded forwards of one lane. Not thread safe: the loop's thread owns it."""

    def __init__(
        self,
        ways: Sequence[Way],
        recorder: Recorder,
        *,
        max_error: float,
        device: torch.device,
        block_tokens: int,
        spare_page: int,
        max_rows: int,
        is_hooked: Callable[[], bool],
        account: Callable[[int], None],
    ) -> None:
        """`ways`: forwards that compute the same, the best first; the last one is what the others are compared with:
        their logits are further off by `max_error` of these at most.
        `spare_page`: one that no sequence is given. `is_hooked`: whether somebody now looks into the model, who would
        see nothing of recorded forwards. `account(bytes)`: told what is held, before it is; raises DoesNotFit."""
        self._ways = list(ways)
        self._reference = ways[-1]
        self._recorder = recorder
        self._max_error = max_error
        self._device = device
        self._block_tokens = block_tokens
        self._spare_page = spare_page
        self._max_rows = max_rows
        self._is_hooked = is_hooked
        self._account = account
        self._recordings: dict[tuple[int, int], _Recording] = {}
        self._asked: Counter[tuple[int, int]] = Counter()
        self._refused: set[tuple[int, int]] = set()
        self.seconds = 0.0
        """What recording took."""
        self.note = ""
        """Why a way was given up, if one was."""
        self.has_recorded = False
        """Whether the last forward was recorded on the way."""
        self.bytes = 0
        """What `clear` would give back. Any thread may read it."""

    def figures(self) -> dict[str, Any]:
        """For `Runtime.stats`: rows and pages of what is recorded, its bytes, and why a way was given up."""
        sizes = [list(size) for size in sorted(self._recordings)]
        return {"sizes": sizes, "bytes": self.bytes, **({"note": self.note} if self.note else {})}

    def forward(self, steps: Sequence[TextStep]) -> Tensor | None:
        """Logits (R, vocab), in order, of the last new token of each step and of its proposals, until the next call.
        None where these steps are to go through the modules; then nothing has been computed."""
        self.has_recorded = False
        if not self.may_run(steps):
            return None
        rows = rows_of(steps, self._block_tokens)
        if len(rows) > self._max_rows:
            return None
        size = _size(rows)
        recording = self._recordings.get(size)
        if recording is not None:
            recording.stage(rows, self._block_tokens, self._spare_page)
        else:
            self._asked[size] += 1
            if self._asked[size] <= _PATIENCE or size in self._refused:
                return None
            recording = self._recorded(size, rows)
            if recording is None:
                return None
        recording.run()
        logits, drawn = recording.logits[: len(rows)], drawn_places(steps)
        return logits if len(drawn) == len(rows) else logits[torch.tensor(drawn, device=logits.device)]

    def may_run(self, steps: Sequence[TextStep]) -> bool:
        """Whether steps of this kind are run from recordings now."""
        return bool(self._ways) and all(step.is_answering for step in steps) and not self._is_hooked()

    def launch(self, rows: Sequence[Row], tokens: Tensor) -> tuple[int, int] | None:
        """Run the recorded forward of these rows with `tokens` (R,), which lie on the device, in place of theirs.
        Returns what `logits` is asked with, until anything else is run; None: there is no recording of this size, and
        nothing was done."""
        size = _size(rows)
        recording = self._recordings.get(size)
        if recording is None:
            return None
        recording.stage(rows, self._block_tokens, self._spare_page)
        recording.rows.tokens[: len(rows)].copy_(tokens)
        recording.run()
        return size

    def logits(self, size: tuple[int, int], num_rows: int) -> Tensor | None:
        """What was launched computes (R, vocab); None where its recording is gone."""
        recording = self._recordings.get(size)
        return recording.logits[:num_rows] if recording is not None else None

    def clear(self) -> int:
        """Let go of all recordings, which are made again when they are asked for. Returns their bytes."""
        freed = self.bytes
        self._recordings.clear()
        self._recorder.clear()
        self._refused.clear()
        self._asked.clear()
        self._hold(0)
        return freed

    def _recorded(self, size: tuple[int, int], rows: Sequence[Row]) -> _Recording | None:
        """A new recording, ready for these rows. None: it cannot be had, and nothing was changed but pages of the
        rows, which hold what a forward of them puts there."""
        begin = time.perf_counter()
        try:
            while self._ways:
                try:
                    return self._made(self._ways[0], size, rows)
                except _NotNow:
                    self._settle()
                    return None
                except Exception as error:  # noqa: BLE001 - whatever models and compilers raise; the modules are there
                    if is_shortage(error):
                        self._refused.add(size)
                        self._settle()
                        return None
                    self.note = f"{type(error).__name__}: {error}"
                    self._ways.pop(0)
            self.clear()
            return None
        finally:
            self.seconds += time.perf_counter() - begin

    def _made(self, way: Way, size: tuple[int, int], rows: Sequence[Row]) -> _Recording:
        made = _Recording(*size, self._device)
        made.stage(rows, self._block_tokens, self._spare_page)
        whole = self._reference(made.rows)
        self._hold(self._held_bytes() + made.nbytes + whole.nbytes)
        made.logits = torch.zeros_like(whole)
        wanted = whole[: len(rows)].float()

        def run() -> None:
            made.logits.copy_(way(made.rows))

        way(made.rows)  # kernels are built, tables laid out
        self._hold(self._held_bytes() + made.nbytes + launched_bytes(run, self._device))
        _compare(made.logits[: len(rows)], wanted, self._max_error)
        made.logits.zero_()
        made.run = self._recorder.record(run)
        made.run()
        _compare(made.logits[: len(rows)], wanted, self._max_error)
        self._recordings[size] = made
        self.has_recorded = True
        try:
            self._settle()
        except DoesNotFit:
            del self._recordings[size]
            raise
        return made

    def _settle(self) -> None:
        self._hold(self._held_bytes())

    def _held_bytes(self) -> int:
        return self._recorder.held_bytes() + sum(each.nbytes for each in self._recordings.values())

    def _hold(self, size: int) -> None:
        self._account(size)
        self.bytes = size


def rows_size(num_rows: int) -> int:
    """The rows that a forward is padded to."""
    return 1 << (num_rows - 1).bit_length()


def pages_size(num_pages: int) -> int:
    """The pages that its rows are padded to."""
    size = LEAST_PAGES
    while size < num_pages:
        size *= _PAGES_STEP
    return size


def _size(rows: Sequence[Row]) -> tuple[int, int]:
    return rows_size(len(rows)), pages_size(max(len(row.pages) for row in rows))


def rows_of(steps: Sequence[TextStep], block_tokens: int) -> list[Row]:
    """Their new tokens, in order."""
    rows = []
    for step in steps:
        sequence, table = step.sequence, step.sequence.state
        start, held = sequence.num_computed, table.held
        for offset, token in enumerate(step.new_tokens):
            # Without the pages that nothing looks back to a sequence is as a shorter one: windows count from the query.
            length = start + offset + 1 - table.num_past * block_tokens
            rows.append(Row(token, start + offset, length, held[: -(-length // block_tokens)]))
    return rows


def _compare(found: Tensor, wanted: Tensor, max_error: float) -> None:
    """Raise ValueError unless the logits are the same but for rounding, and _NotNow where they say nothing."""
    if bool(wanted.isnan().any()):
        raise _NotNow
    counted = wanted.isfinite()
    wanted = wanted[counted]
    error = float((found.float()[counted] - wanted).norm() / wanted.norm().clamp(min=1e-6))
    if not error <= max_error:
        raise ValueError(f"recorded forwards give other logits (relative error {error:.1g})")
