"""Sequences and logits for the sampler's tests."""

from __future__ import annotations

from typing import Any

import torch

from kamado.requests import Sampling
from kamado.sequence import Drawn, TokenSequence

SAMPLINGS = (
    {},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 1.3, "min_p": 0.1},
    {"temperature": 1.0, "typical_p": 0.6},
    {"temperature": 0.9, "top_k": 40, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.95},
    {"repetition_penalty": 1.5},
    {"temperature": 1.0, "presence_penalty": 1.0, "frequency_penalty": 0.5},
    {"logit_bias": {3: 100.0}},
    {"temperature": 1.0, "logit_bias": {3: -100.0, 4: 2.0}, "repetition_penalty": 1.2, "top_p": 0.9},
    {"temperature": 100.0},
    {"temperature": 1e-6},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_k": 10**9, "top_p": 0.999},
    {"temperature": 1.0, "top_p": 1e-9},
)
"""Sixteen samplings that have as little as possible in common."""


def sequence(
    *,
    prompt: list[int] | None = None,
    made: list[int] | None = None,
    seed: int = 0,
    index: int = 0,
    logprobs: int | None = None,
    **sampling: Any,
) -> TokenSequence:
    given = [1, 2, 3] if prompt is None else prompt
    return TokenSequence(
        id=f"{seed}/{index}",
        tokens=given + (made or []),
        num_prompt=len(given),
        sampling=Sampling(**sampling),
        seed=seed,
        index=index,
        logprobs=logprobs,
    )


def random_logits(num_rows: int, vocab_size: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, vocab_size, generator=generator) * scale


def token(drawn: object) -> int:
    assert isinstance(drawn, Drawn), drawn
    return drawn.token_id
