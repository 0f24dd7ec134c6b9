"""The lane of models whose attention can go over pages: packed tokens, paged KV cache.

Prefill, chunked prefill and decode of any number of sequences are one forward over one packed row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor

from kamado.contracts import Work
from kamado.errors import GenerationFailed
from kamado.kernels.gpu import upload
from kamado.memory.blocks import BlockTable, PagedMemory
from kamado.memory.learned import Learning
from kamado.sampling.sampler import Sampler
from kamado.sampling.verify import accepted, drawn_rows
from kamado.sequence import Drawn, TextStep, TokenSequence, drawn_places
from kamado.speculation.costs import LaneSpeculation
from kamado.weights.outside.tensors import device_of

from .ahead import Ahead
from .attention import MAX_PADDING, PackedStep, Rows, Span
from .captured import CapturedSteps, FixedRows
from .decoder import Decoder, DecoderForward
from .media.decoder import Run, Seen, inner_decoder
from .native_step import NativeStep
from .pages import PageStore
from .watching import step_shape, watched


class PagesForward(Protocol):
    """A model whose attention is over the pages of a store, until it is closed."""

    def __call__(self, tokens: Tensor, positions: Tensor, step: PackedStep, keep: Tensor | None) -> Tensor:
        """Logits (R, vocab) of packed `tokens` (1, T), at `positions` (1, T): those that `keep` (R,) picks, or all."""

    def close(self) -> None:
        """Leave the model as it was."""


def pages_forward(model: Any, store: PageStore) -> PagesForward:
    """Of a stand-in, or of transformers' model."""
    if isinstance(model, Decoder):
        return DecoderForward(model, store)
    from .library_forward import LibraryForward

    if inner_decoder(model) is not None:
        from .media.forward import MediaForward

        return MediaForward(model, store)
    return LibraryForward(model, store)


class PagedLane:
    """See kamado.contracts.Lane. Not thread safe."""

    interactive = True

    def __init__(
        self,
        name: str,
        model: Any,
        store: PageStore,
        memory: PagedMemory,
        *,
        step_budget: int,
        max_rows: int,
        sampler: Sampler | None = None,
        learning: Learning | None = None,
        speculation: LaneSpeculation | None = None,
        native: NativeStep | None = None,
        captured: Callable[[PagedLane], CapturedSteps | None] = lambda lane: None,
    ) -> None:
        """`model` is switched to attention over the pages of `store`, which `memory` hands out; `close` undoes it.
        `learning`: what is told the peaks of forwards, `speculation`: their times. `native`: what computes in place of
        the model; `captured`: makes what runs the steps of answers again as they were recorded."""
        self.name = name
        self.step_budget = step_budget
        self.max_rows = max_rows
        self.store = store
        self._memory = memory
        self._model = model
        self._sampler = sampler or Sampler()
        self._learning = learning
        self._speculation = speculation
        self._native = native
        self.device = device_of(model)
        self._modules = pages_forward(model, store)
        self.see: Callable[[Sequence[int], Mapping[str, Any]], Seen] | None = getattr(self._modules, "see", None)
        """See MediaForward; None: the model takes text alone."""
        self.captured = captured(self)
        self.ahead = Ahead(self.captured, memory, store.clear_slots) if self.captured is not None else None
        self._ended = 0.0

    def close(self) -> None:
        """Give the model its former attention back."""
        self._native = None
        if self.captured is not None:
            self.captured.clear()
            self.captured = self.ahead = None
        self._modules.close()

    def run(self, works: Sequence[Work]) -> list[Any]:
        """See Lane. Pages beyond what a sequence has computed hold nothing that anybody reads, so a forward that
        raises has changed nothing."""
        begin = time.perf_counter()
        steps = self._bounded([work.payload for work in works])
        logits = self.ahead.forward(steps) if self.ahead is not None else None
        if logits is None:
            with watched(self._learning, step_shape(steps), str(self.device)) as kept:
                logits = self.forward(steps)
                kept.append(logits)
        results = self._results(steps, logits)
        for step, result in zip(steps, results, strict=True):
            if isinstance(result, Exception):
                # NaN in a page would spread to whoever has the page next, through positions that are masked there.
                self.store.clear(self._memory.spoil(step.sequence))
        self._timed(steps, begin)
        return results

    def _timed(self, steps: Sequence[TextStep], begin: float) -> None:
        """Tell how long the forward took that ends now, where that says something of the next one."""
        before, self._ended = self._ended, time.perf_counter()
        if self._speculation is None:
            return
        if self.ahead is not None and self.captured is not None:
            if self.ahead.was_taken:
                begin = before
            elif self.captured.has_recorded or self.ahead.was_wrong:
                return
        self._speculation.forward_done(
            rows=len(steps),
            tokens=sum(step.num_new for step in steps),
            proposed=sum(len(step.proposed) for step in steps),
            seconds=self._ended - begin,
        )

    def _bounded(self, steps: list[TextStep]) -> list[TextStep]:
        """Without the proposals that memory was not planned for: of more sequences than their tasks knew of."""
        left = self._speculation.max_rows - len(steps) if self._speculation is not None else 0
        bounded = []
        for step in steps:
            left -= len(step.proposed)
            if step.proposed and left < 0:
                bounded.append(replace(step, num_new=step.num_new - len(step.proposed), proposed=()))
            else:
                bounded.append(step)
        return bounded

    def _results(self, steps: Sequence[TextStep], logits: Tensor) -> list[Any]:
        """What each step comes to, from the rows of `forward`."""
        results: list[Any] = [None] * len(steps)
        sequences: list[TokenSequence] = []
        sampled: list[int] = []
        pieces: list[int] = []
        row = 0
        for step in steps:
            rows = range(row, row + 1 + len(step.proposed))
            row = rows.stop
            if step.sample:
                sampled += rows
                sequences += drawn_rows(step) if step.proposed else [step.sequence]
            else:
                pieces.append(rows.start)
        rows_sampled = logits if not pieces else logits[self._tensor(sampled)]
        drawn = iter(self._drawn(steps, rows_sampled, sequences) if sampled else ())
        # A NaN reaches every later position, so the last one of a prompt's piece tells.
        spoiled = iter(logits[self._tensor(pieces)].isnan().any(dim=-1).tolist() if pieces else ())
        for index, step in enumerate(steps):
            if not step.sample:
                if next(spoiled):
                    results[index] = GenerationFailed("the model produced NaN while it read the prompt")
            elif not step.proposed:
                results[index] = next(drawn)
            else:
                results[index] = accepted(step.proposed, list(islice(drawn, 1 + len(step.proposed))))
                if not results[index]:
                    self._clear_new(step)
        return results

    def _drawn(
        self, steps: Sequence[TextStep], logits: Tensor, sequences: Sequence[TokenSequence]
    ) -> list[Drawn | GenerationFailed]:
        """See Sampler. While the host waits for tokens, the device may go on to the next step already."""
        drawing = self._sampler.begin(logits, sequences)
        if self.ahead is None:
            return drawing.result()
        self.ahead.launch(steps, drawing)
        drawn = drawing.result()
        self.ahead.drawn(drawing.first)
        return drawn

    def _clear_new(self, step: TextStep) -> None:
        """What the forward wrote may be NaN, and is not to stay where nothing is computed yet."""
        table: BlockTable = step.sequence.state
        start = step.sequence.num_computed
        self.store.clear_slots([self._slot(table, position) for position in range(start, start + step.num_new)])

    def _slot(self, table: BlockTable, position: int) -> int:
        page, offset = divmod(position, self.store.block_tokens)
        return table.blocks[page] * self.store.block_tokens + offset

    def ease(self, work: Work) -> Work | None:
        """See Lane. There is no other way; its task may cut it."""
        return None

    def forward(self, steps: Sequence[TextStep]) -> Tensor:
        """Logits (R, vocab), in order: of the last token of each step, and of each of its proposals."""
        return self._through_modules(steps) if self._native is None else self._native.forward(steps)

    def fixed_forward(self, rows: FixedRows, *, in_place: bool) -> Tensor:
        """Logits (B, vocab) of single tokens, through the modules; see `captured.Way`. `in_place`: attention may read
        pages where they lie."""
        longest = rows.tables.shape[1] * self.store.block_tokens
        # Nothing may depend on how long the rows are now: every one counts as the longest, and lengths are a mask.
        read = Rows(None, rows.tables, rows.lengths, longest=longest, shortest=0, run=None, in_place=in_place)
        return self._modules(rows.tokens[None], rows.positions[None], PackedStep(rows.slots, [read], []), None)

    def _through_modules(self, steps: Sequence[TextStep]) -> Tensor:
        tokens: list[int] = []
        positions: list[int] = []
        for step in steps:
            start = step.sequence.num_computed
            tokens += step.new_tokens
            positions += range(start, start + step.num_new)
        return self._modules(
            self._tensor([tokens]),
            self._tensor([positions]),
            self._pack(steps),
            self._tensor(drawn_places(steps)),
        )

    def _pack(self, steps: Sequence[TextStep]) -> PackedStep:
        block_tokens = self.store.block_tokens
        slots: list[int] = []
        singles: list[tuple[list[int], int, int]] = []
        spans: list[Span] = []
        media: list[Run] = []
        for step in steps:
            table: BlockTable = step.sequence.state
            # Without the pages that nothing looks back to a sequence is as a shorter one: windows count from the query.
            start = step.sequence.num_computed - table.num_past * block_tokens
            length = start + step.num_new
            pages = table.held[: -(-length // block_tokens)]
            seen = step.sequence.seen
            if seen is not None:
                media.append(Run(len(slots), step.sequence.num_computed, step.num_new, seen))
            if step.num_new == 1:
                singles.append((pages, length, len(slots)))
            else:
                table_or_run = _run(pages) or self._tensor([pages])
                past = table.num_past * block_tokens
                spans.append(Span(len(slots), step.num_new, length, self.device, table_or_run, seen, past))
            slots += [pages[p // block_tokens] * block_tokens + p % block_tokens for p in range(start, length)]
        groups = _grouped(singles)
        whole = not spans and len(groups) == 1
        rows = [self._rows(group, whole) for group in groups]
        return PackedStep(_run(slots) or self._tensor(slots), rows, spans, tuple(media))

    def _rows(self, group: Sequence[tuple[list[int], int, int]], whole: bool) -> Rows:
        most = max(len(pages) for pages, _, _ in group)
        lengths = [length for _, length, _ in group]
        return Rows(
            packed=None if whole else self._tensor([index for _, _, index in group]),
            tables=self._tensor([pages + [pages[-1]] * (most - len(pages)) for pages, _, _ in group]),
            lengths=self._tensor(lengths),
            longest=max(lengths),
            shortest=min(lengths),
            run=_run(group[0][0]) if len(group) == 1 else None,
        )

    def _tensor(self, values: list[Any]) -> Tensor:
        return upload(torch.tensor(values, dtype=torch.long), self.device)


def _run(numbers: list[int]) -> range | None:
    """The numbers as a range, where each is one more than the one before."""
    run = range(numbers[0], numbers[0] + len(numbers))
    return run if numbers == list(run) else None


def _grouped(singles: list[tuple[list[int], int, int]]) -> list[list[tuple[list[int], int, int]]]:
    """Rows of similar length together, so that padding at most doubles what is read."""
    sizes = [len(pages) for pages, _, _ in singles]
    if singles and max(sizes) <= MAX_PADDING * min(sizes):
        return [singles]
    groups: list[list[tuple[list[int], int, int]]] = []
    for single in sorted(singles, key=lambda item: -len(item[0])):
        if groups and len(groups[-1][0][0]) <= MAX_PADDING * len(single[0]):
            groups[-1].append(single)
        else:
            groups.append([single])
    return groups
