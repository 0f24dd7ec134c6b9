"""What a language model has learned of its temporary tensors: its plans and its lane share this. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable

from kamado.checkpoint.types import Checkpoint
from kamado.memory.learned import Learning, PeakKeys, fingerprint
from kamado.quant import Quant

from .shape import DTYPE_BYTES, TextShape

LANE = "lm"
Shape = tuple[int, int, int, int, int, int]
"""Tokens, rows, context, held_tokens as of `TextShape.activation_bytes`; the tokens that are computed, with padding;
and its `masked_tokens`."""
_ASKED = 4
"""Numbers of a shape that say what was asked for."""


def learning(
    checkpoint: Checkpoint, shape: TextShape, *, dtype: str, quant: Quant | None, kv_dtype: str, device: str
) -> Learning:
    """Of the model that `shape` describes. `checkpoint` is as `config.as_stored` returns it."""
    form = json.dumps([None if quant is None else quant.as_json(), kv_dtype], sort_keys=True)
    keys = PeakKeys(
        fingerprint=fingerprint(checkpoint.config, checkpoint.tensors.values()),
        lane=LANE,
        dtype=dtype,
        quant=form,
        device=device,
    )
    return Learning(keys, forward_estimate(shape, dtype, kv_dtype), _ASKED)


def forward_estimate(shape: TextShape, dtype: str, kv_dtype: str) -> Callable[[int, int, int, int, int, int], int]:
    """Bytes that a forward lays out for a while, by its shape."""

    def estimate(tokens: int, rows: int, context: int, held: int, computed: int, masked: int) -> int:
        return shape.activation_bytes(
            tokens=computed,
            rows=rows,
            context=context,
            dtype_bytes=DTYPE_BYTES[dtype],
            held_tokens=held,
            masked_tokens=masked,
            kv_dtype=kv_dtype,
        )

    return estimate
