"""Forwards of a loaded text model's lane, without a request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import kamado
from kamado.requests import Sampling
from kamado.sequence import TextStep, TokenSequence


def logits(model: kamado.Model, tokens: list[int], pieces: Sequence[int]) -> Tensor:
    """Logits (pieces, vocab) behind each of the pieces into which the tokens' forwards are cut."""
    lane: Any = model.loaded.lanes[0]
    memory: Any = model.loaded.execution.memory  # type: ignore[attr-defined]
    sequence = TokenSequence(id="s", tokens=tokens, num_prompt=1, sampling=Sampling(), seed=0)
    memory.attach(sequence)
    sequence.num_computed = 0
    sequence.state.blocks.clear()
    sequence.state.names.clear()
    assert memory.acquire(sequence, len(tokens))
    found = []
    with torch.inference_mode():
        for piece in pieces:
            found.append(lane.forward([TextStep(sequence, piece, True)])[0])
            sequence.num_computed += piece
    memory.release(sequence)
    assert sequence.num_computed == len(tokens)
    return torch.stack(found)
