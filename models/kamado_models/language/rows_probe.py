"""Finding out by a few small forwards how the rows of a model may share one, and what their state weighs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from . import rows_cache
from .rows_memory import RowMode, RowShape
from .rows_model import RowInputs, RowModel

_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}
"""Of the largest logit: what may come of adding numbers up in another order."""
_SHORT, _LONG = 7, 12
_STEPS = 4
_WINDOW = 8
"""Sliding windows are shortened to this in the probes' caches, so that rows grow beyond them."""
_REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError)


class StateSize(NamedTuple):
    """Bytes of state. Upper bounds where a sliding window ends a layer's growth."""

    per_token: int
    per_sequence: int
    per_source_token: int = 0


class _Track(NamedTuple):
    """A made-up sequence."""

    tokens: list[int]
    source: list[int]

    def inputs(self, start: int, end: int) -> RowInputs:
        return RowInputs(tokens=self.tokens[start:end], past=start, source=self.source)

    def shape(self, past: int) -> RowShape:
        return RowShape(past, len(self.source))


def probe(model: Any, config: PreTrainedConfig, vocab_size: int, tolerance: float | None = None) -> RowMode:
    """The widest mode in which logits agree with those of rows computed alone.

    Raises whatever the model raises when it cannot even compute one row. `tolerance` is relative to the largest logit;
    None takes the dtype's. Nothing is left behind in the model."""
    size = measure_state(model, config)
    rows = RowModel(model, config, padded=size.per_token > 0)
    generator = torch.Generator().manual_seed(20_011)
    pad = getattr(config, "pad_token_id", None)

    def track(length: int, num_source: int) -> _Track:
        ids = torch.randint(0, vocab_size, (length + num_source,), generator=generator).tolist()
        ids = [token if token != pad else (token + 1) % vocab_size for token in ids]
        return _Track(ids[:length], ids[length:] if rows.encoder_decoder else [])

    short, long, other = track(_SHORT + _STEPS, 9), track(_LONG + _STEPS, 5), track(_LONG + _STEPS, 9)
    with torch.inference_mode():
        expected = [_alone(rows, short, _SHORT), _alone(rows, long, _LONG), _alone(rows, other, _LONG)]
        scale = max(float(logits.abs().max()) for logits in expected)
        dtype = expected[0].dtype if getattr(model, "dtype", None) is None else model.dtype
        allowed = (_TOLERANCE.get(dtype, 1e-4) if tolerance is None else tolerance) * scale

        def agrees(attempt: Callable[[], Sequence[Tensor]], wanted: Sequence[Tensor]) -> str | None:
            """None, or what is wrong."""
            try:
                worst = max(float((got - want).abs().max()) for got, want in zip(attempt(), wanted, strict=True))
            except _REFUSALS as error:
                return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:160]
            return None if worst <= allowed else f"logits differ by {worst:.2g} of {scale:.2g}"

        equal = agrees(lambda: _together(rows, [(long, _LONG), (other, _LONG)]), expected[1:])
        ragged = equal or agrees(lambda: _together(rows, [(short, _SHORT), (long, _LONG)]), expected[:2])
        whole = _alone(rows, long, _LONG, window=None)
        chunked = agrees(lambda: [_in_pieces(rows, long)], [whole])
        end = len(long.tokens)
        resumed = agrees(lambda: [rows.forward([long.inputs(0, end)], None)[0].float()], [whole[-1:]])
    refused = (
        ("rows of equal length in one forward", equal),
        ("rows of different length in one forward", ragged),
        ("a prompt in pieces", chunked),
        ("an answer computed again at once", resumed),
    )
    return RowMode(
        stackable=equal is None,
        ragged=ragged is None,
        chunked=chunked is None,
        resumable=resumed is None,
        padded=size.per_token > 0,
        notes=tuple(f"{what}: not the model's own result; {why}" for what, why in refused if why is not None),
    )


def _alone(rows: RowModel, track: _Track, prompt: int, window: int | None = _WINDOW) -> Tensor:
    """Logits [steps + 1, vocabulary] after the prompt and after each of the further tokens."""
    logits, state = rows.forward([track.inputs(0, prompt)], None, window=window)
    all_logits = [logits]
    for past in range(prompt, len(track.tokens)):
        logits, state = rows.forward([track.inputs(past, past + 1)], rows_cache.fork(state))
        all_logits.append(logits)
    return torch.cat(all_logits).float()


def _together(rows: RowModel, tracks: Sequence[tuple[_Track, int]]) -> list[Tensor]:
    """The same as `_alone` for two sequences that decode in one batch, and one by one again at the end."""
    made: list[list[Tensor]] = [[], []]
    (first, first_prompt), (second, second_prompt) = tracks
    if first_prompt == second_prompt and len(first.source) == len(second.source):
        logits, state = rows.forward([t.inputs(0, p) for t, p in tracks], None, window=_WINDOW)
        for index in range(2):
            made[index].append(logits[index : index + 1])
    else:
        states = []
        for index, (track, prompt) in enumerate(tracks):
            logits, row = rows.forward([track.inputs(0, prompt)], None, window=_WINDOW)
            made[index].append(logits)
            states.append(row)
        state = rows_cache.stack(states, [t.shape(p) for t, p in tracks])
    for step in range(_STEPS - 1):
        inputs = [t.inputs(p + step, p + step + 1) for t, p in tracks]
        logits, state = rows.forward(inputs, rows_cache.fork(state))
        for index in range(2):
            made[index].append(logits[index : index + 1])
    shapes = [t.shape(p + _STEPS - 1) for t, p in tracks]
    for index, (track, prompt) in enumerate(tracks):
        row = rows_cache.select(state, [index], shapes)
        past = prompt + _STEPS - 1
        made[index].append(rows.forward([track.inputs(past, past + 1)], row)[0])
    return [torch.cat(logits).float() for logits in made]


def _in_pieces(rows: RowModel, track: _Track) -> Tensor:
    """The same as `_alone`, with the prompt computed in pieces, one of them a single token."""
    _, state = rows.forward([track.inputs(0, 5)], None)
    for start, end in ((5, 8), (8, 9)):
        _, state = rows.forward([track.inputs(start, end)], rows_cache.fork(state))
    logits, state = rows.forward([track.inputs(9, _LONG)], rows_cache.fork(state))
    all_logits = [logits]
    for past in range(_LONG, len(track.tokens)):
        logits, state = rows.forward([track.inputs(past, past + 1)], rows_cache.fork(state))
        all_logits.append(logits)
    return torch.cat(all_logits).float()


def measure_state(model: Any, config: PreTrainedConfig) -> StateSize:
    """Bytes of state by token and by sequence, from the states of short sequences."""
    rows = RowModel(model, config)

    def held(num_tokens: int, num_source: int) -> int:
        source = [3] * num_source if rows.encoder_decoder else []
        inputs = RowInputs(tokens=[3] * num_tokens, past=0, source=source)
        return rows_cache.num_bytes(rows.forward([inputs], None)[1])

    with torch.inference_mode():
        base, longer = held(6, 6), held(12, 6)
        per_source = (held(6, 12) - base) // 6 if rows.encoder_decoder else 0
    per_token = -((base - longer) // 6)
    return StateSize(per_token, max(0, base - 6 * per_token - 6 * per_source), per_source)
