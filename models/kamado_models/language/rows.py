"""The lane of language models that keep one library cache a sequence: state-space, hybrid, ALiBi, encoder-decoder.

Rows stay joined between forwards as long as the same rows come together, so that steady decoding copies no state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from kamado.contracts import Work
from kamado.memory.learned import Learning
from kamado.memory.shortage import is_shortage
from kamado.sequence import Drawn, TextStep, TokenSequence

from . import rows_cache
from .rows_memory import RowBatch, RowMemory, RowMode, RowState
from .rows_model import RowInputs, RowModel
from .rows_probe import StateSize, measure_state, probe
from .watching import step_shape, watched

__all__ = [
    "RowLane",
    "RowMemory",
    "RowMode",
    "StateSize",
    "measure_state",
    "probe",
]


class TokenSampler(Protocol):
    """What the lane needs of a sampler: `kamado.sampling.sampler.Sampler`."""

    def draw(self, logits: Tensor, sequences: Sequence[TokenSequence]) -> Sequence[Drawn | Exception]:
        """The next token of each sequence from logits [rows, vocabulary]; an error for a row that has none."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Row:
    """One work of a forward, in the order in which the forward takes them."""

    position: int
    """Where its result goes."""
    step: TextStep
    state: RowState
    inputs: RowInputs


class RowLane:
    """One loaded model. Works must come with the state that `RowMemory` reserved for them, and share its key."""

    interactive = True

    def __init__(
        self,
        *,
        name: str,
        model: Any,
        config: PreTrainedConfig,
        mode: RowMode,
        sampler: TokenSampler,
        max_rows: int,
        step_budget: int,
        learning: Learning | None = None,
    ) -> None:
        """`learning`: what is told the peaks of forwards."""
        self.name = name
        self.max_rows = max_rows if mode.stackable else 1
        self.step_budget = step_budget
        self.mode = mode
        self._model = RowModel(model, config, padded=mode.padded)
        self._sampler = sampler
        self._learning = learning

    def run(self, works: Sequence[Work]) -> list[Drawn | Exception | None]:
        """One forward. A `Drawn` for each step that samples, or why nothing could be drawn; None for the others.

        When it raises, every sequence's state is what it was."""
        with torch.inference_mode():
            rows = _ordered([_row(position, work.payload) for position, work in enumerate(works)])
            steps = [row.step for row in rows]
            with watched(self._learning, step_shape(steps, padded=True), str(self._model.device)) as made:
                logits, cache = self._model.forward([row.inputs for row in rows], _joined(rows))
                made.append(logits)
            results = self._draw(rows, logits)
            batch = RowBatch(
                cache=cache, shapes=[row.inputs.shape_after for row in rows], rows=[row.state for row in rows]
            )
            left = {id(row.state.batch): row.state.batch for row in rows if row.state.batch is not None}
            for index, row in enumerate(rows):
                row.state.move(batch, index)
            for old in left.values():
                shrink(old)
        return results

    def ease(self, work: Work) -> Work | None:
        """See Lane. There is no other way; its task may cut it."""
        return None

    def _draw(self, rows: Sequence[_Row], logits: Tensor) -> list[Drawn | Exception | None]:
        results: list[Drawn | Exception | None] = [None] * len(rows)
        sampled = [index for index, row in enumerate(rows) if row.step.sample]
        if not sampled:
            return results
        chosen = logits if len(sampled) == len(rows) else logits[sampled]
        drawn = self._sampler.draw(chosen, [rows[index].step.sequence for index in sampled])
        for index, result in zip(sampled, drawn, strict=True):
            results[rows[index].position] = result
        return results


def _row(position: int, step: TextStep) -> _Row:
    sequence, state = step.sequence, step.sequence.state
    past = sequence.num_computed
    assert isinstance(state, RowState), f"sequence {sequence.id} holds no reservation"
    assert state.past == past, f"sequence {sequence.id}: {state.past} tokens in its state, {past} said to be"
    inputs = RowInputs(tokens=sequence.tokens[past : past + step.num_new], past=past, source=sequence.source)
    return _Row(position=position, step=step, state=state, inputs=inputs)


def _ordered(rows: list[_Row]) -> list[_Row]:
    """Rows of one batch in that batch's order, so that it can go on as it is."""
    return sorted(rows, key=lambda row: (id(row.state.batch), row.state.index))


def _joined(rows: Sequence[_Row]) -> Any:
    """The state of all rows in one cache that may be written into; None where nothing is computed yet."""
    if rows[0].inputs.past == 0:
        return None
    batches = [row.state.batch for row in rows]
    first = batches[0]
    if first is not None and all(batch is first for batch in batches) and len(first.rows) == len(rows):
        return rows_cache.fork(first.cache)
    parts = [rows_cache.split(b.cache, row.state.index, b.shapes) for b, row in zip(batches, rows, strict=True) if b]
    return rows_cache.stack(parts, [row.inputs.shape_before for row in rows])


def shrink(batch: RowBatch) -> None:
    """Let go of the memory of rows that left."""
    staying = [index for index, state in enumerate(batch.rows) if state is not None]
    if not staying or len(staying) == len(batch.rows):
        return
    try:
        batch.cache = rows_cache.select(batch.cache, staying, batch.shapes)
    except (MemoryError, RuntimeError) as error:
        if is_shortage(error):
            return  # saving memory is no reason to fail
        raise
    batch.shapes = [batch.shapes[index] for index in staying]
    batch.rows = [batch.rows[index] for index in staying]
    for index, state in enumerate(batch.rows):
        if state is not None:
            state.index = index
