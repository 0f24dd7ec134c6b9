"""Finding out by a few small forwards how the rows of a model may share one, and what their state weighs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from kamado.errors import UnsupportedCheckpoint
from kamado.memory.shortage import is_shortage

from . import rows_cache
from .positions import fields_of, shifting_positions
from .rows_memory import RowMode, RowShape
from .rows_model import RowInputs, RowModel

_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}
"""Of the largest logit: what may come of adding numbers up in another order."""
_SHORT, _LONG = 7, 12
_STEPS = 4
_WINDOW = 8
"""Sliding windows are shortened to this in the probes' caches, so that rows grow beyond them."""
_REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError)
"""What models raise for a form that they cannot take."""


class StateSize(NamedTuple):
    """Bytes of state. Upper bounds where a sliding window ends a layer's growth."""

    per_token: int
    per_sequence: int
    per_source_token: int = 0


class _Track(NamedTuple):
    """A made-up sequence."""

    tokens: list[int]
    num_prompt: int
    source: list[int]

    def inputs(self, start: int, end: int) -> RowInputs:
        return RowInputs(tokens=self.tokens[start:end], past=start, source=self.source)

    def prompt(self) -> RowInputs:
        return self.inputs(0, self.num_prompt)

    def step(self, number: int) -> RowInputs:
        """The `number`-th token after the prompt."""
        return self.inputs(self.num_prompt + number, self.num_prompt + number + 1)

    def shape(self, num_steps: int) -> RowShape:
        return RowShape(self.num_prompt + num_steps, len(self.source))


def probe(model: Any, config: PreTrainedConfig, vocab_size: int, tolerance: float | None = None) -> RowMode:
    """The widest mode in which logits agree with those of rows computed alone.

    Raises UnsupportedCheckpoint for a model that has no cache, and whatever the model raises when it cannot even
    compute one row. `tolerance` is relative to the largest logit; None takes the dtype's. It leaves nothing behind."""
    padded = _state_grows(model, config)
    rows = RowModel(model, config, padded=padded)
    generator = torch.Generator().manual_seed(20_011)
    pad = getattr(config, "pad_token_id", None)

    def track(num_prompt: int, num_source: int) -> _Track:
        length = num_prompt + _STEPS
        ids = torch.randint(0, vocab_size, (length + num_source,), generator=generator).tolist()
        ids = [token if token != pad else (token + 1) % vocab_size for token in ids]
        return _Track(ids[:length], num_prompt, ids[length:] if rows.encoder_decoder else [])

    short, long, other, twin = track(_SHORT, 9), track(_LONG, 5), track(_LONG, 9), track(_LONG, 9)
    with torch.inference_mode():
        whole = _alone(rows, long, window=None)
        scale = float(whole.abs().max())
        allowed = scale * (_TOLERANCE.get(model.dtype, 1e-4) if tolerance is None else tolerance)

        def refused(attempt: Callable[[], Tensor], wanted: Callable[[], Tensor]) -> str | None:
            """What is wrong with it, or None."""
            try:
                difference = float((attempt() - wanted()).abs().max())
            except _REFUSALS as error:
                if is_shortage(error):
                    raise  # says nothing of the model
                return f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0]:.120}"
            return None if difference <= allowed else f"logits up to {scale:.2g} differ by {difference:.2g}"

        def apart(first: _Track, second: _Track, *, joint: bool = False) -> str | None:
            return refused(
                lambda: _together(rows, first, second, joint=joint),
                lambda: torch.stack([_alone(rows, first), _alone(rows, second)]),
            )

        shifting = shifting_positions(fields_of(config))
        equal = apart(other, twin, joint=True) or apart(long, other)
        ragged = equal or shifting or apart(short, long)
        prompts = ragged or (None if rows.encoder_decoder else apart(short, long, joint=True))
        pieces = shifting or refused(lambda: _in_pieces(rows, long), lambda: whole)
        at_once = shifting or refused(lambda: _at_once(rows, long), lambda: whole[-1:])
    findings = {
        "rows of equal length in one forward": equal,
        "rows of different length in one forward": ragged,
        "prompts of different length in one forward": prompts,
        "a prompt in pieces": pieces,
        "an answer computed again at once": at_once,
    }
    return RowMode(
        stackable=equal is None,
        ragged=ragged is None,
        ragged_prompts=prompts is None and not rows.encoder_decoder,
        chunked=pieces is None,
        resumable=at_once is None,
        padded=padded,
        notes=tuple({why: f"not possible: {what} ({why})" for what, why in reversed(findings.items()) if why}.values()),
    )


def _state_grows(model: Any, config: PreTrainedConfig) -> bool:
    """Whether a sequence's state grows with its length. Raises UnsupportedCheckpoint where there is none at all."""
    size = measure_state(model, config)
    if size.per_token <= 0 and size.per_sequence <= 0:
        raise UnsupportedCheckpoint(
            f"{type(model).__name__} keeps no state between tokens, so every token would cost the whole text again; "
            "take a model that has a cache"
        )
    return size.per_token > 0


def _alone(rows: RowModel, track: _Track, window: int | None = _WINDOW) -> Tensor:
    """Logits [steps + 1, vocabulary] after the prompt and after each of the further tokens."""
    logits, state = rows.forward([track.prompt()], None, window=window)
    made = [logits]
    for number in range(_STEPS):
        logits, state = rows.forward([track.step(number)], rows_cache.fork(state))
        made.append(logits)
    return torch.cat(made).float()


def _together(rows: RowModel, first: _Track, second: _Track, *, joint: bool) -> Tensor:
    """The same as `_alone` for two sequences [2, steps + 1, vocabulary] that decode in one batch, and one by one again
    at the end. `joint`: their prompts are computed in one forward, too."""
    tracks = (first, second)
    if joint:
        logits, state = rows.forward([track.prompt() for track in tracks], None, window=_WINDOW)
    else:
        parts = [rows.forward([track.prompt()], None, window=_WINDOW) for track in tracks]
        logits = torch.cat([part[0] for part in parts])
        state = rows_cache.stack([part[1] for part in parts], [track.shape(0) for track in tracks])
    made = [logits]
    for number in range(_STEPS - 1):
        logits, state = rows.forward([track.step(number) for track in tracks], rows_cache.fork(state))
        made.append(logits)
    shapes = [track.shape(_STEPS - 1) for track in tracks]
    own = [rows_cache.select(state, [index], shapes) for index in range(2)]
    made.append(
        torch.cat([rows.forward([track.step(_STEPS - 1)], row)[0] for track, row in zip(tracks, own, strict=True)])
    )
    return torch.stack(made, dim=1).float()


def _in_pieces(rows: RowModel, track: _Track) -> Tensor:
    """The same as `_alone`, with the prompt computed in pieces, one of them a single token."""
    _, state = rows.forward([track.inputs(0, 5)], None)
    for start, end in ((5, 8), (8, 9)):
        _, state = rows.forward([track.inputs(start, end)], rows_cache.fork(state))
    logits, state = rows.forward([track.inputs(9, track.num_prompt)], rows_cache.fork(state))
    made = [logits]
    for number in range(_STEPS):
        logits, state = rows.forward([track.step(number)], rows_cache.fork(state))
        made.append(logits)
    return torch.cat(made).float()


def _at_once(rows: RowModel, track: _Track) -> Tensor:
    """Logits [1, vocabulary] after the last token, all of them computed in one forward."""
    return rows.forward([track.inputs(0, len(track.tokens))], None)[0].float()


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
