"""What changes logits before anything is drawn: bias and penalties. Shapes: r rows, v tokens of the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels.gpu import upload
from ..requests import Sampling
from ..sequence import TokenSequence
from .counts import token_counts

_SMALLEST_DIVISOR = 1e-30
"""Stays a normal float32 number; smaller divisors would turn 0 into NaN."""


def adjusts(sampling: Sampling) -> bool:
    """Whether `adjust_` would change anything for a row with this sampling."""
    return bool(sampling.logit_bias) or sampling.has_penalties


def adjust_(logits_rv: Tensor, sequences: Sequence[TokenSequence]) -> None:
    """Apply bias, then repetition, presence and frequency penalty to float32 `logits_rv`, in place.

    Token ids outside the vocabulary are passed over. Repetition (Keskar et al. 2019, as in transformers) looks at
    prompt and answer; presence and frequency look at the answer alone, as the OpenAI API defines them.
    """
    _bias_(logits_rv, sequences)
    if any(sequence.sampling.has_penalties for sequence in sequences):
        _penalize_(logits_rv, sequences)


def _bias_(logits_rv: Tensor, sequences: Sequence[TokenSequence]) -> None:
    vocab_size = logits_rv.shape[1]
    index: list[int] = []
    amount: list[float] = []
    for row, sequence in enumerate(sequences):
        for token_id, bias in sequence.sampling.logit_bias.items():
            if 0 <= token_id < vocab_size:
                index.append(row * vocab_size + token_id)
                amount.append(bias)
    if index:
        device = logits_rv.device
        biases = upload(torch.tensor(amount, dtype=torch.float32), device)
        logits_rv.view(-1).index_add_(0, upload(torch.tensor(index, dtype=torch.int64), device), biases)


def _penalize_(logits_rv: Tensor, sequences: Sequence[TokenSequence]) -> None:
    ids, made = bytearray(), bytearray()
    rows: list[int] = []
    lengths: list[int] = []
    for row, sequence in enumerate(sequences):
        if sequence.sampling.has_penalties and sequence.tokens:
            counts = token_counts(sequence)
            ids += memoryview(counts.ids).cast("B")
            made += memoryview(counts.made).cast("B")
            rows.append(row)
            lengths.append(len(counts.ids))
    if not rows:
        return
    # Everything up to the index is done on the host, whose lists these are; what is uploaded is as long as the
    # distinct tokens, not as the vocabulary.
    ids_n = torch.frombuffer(ids, dtype=torch.int64)
    made_n = torch.frombuffer(made, dtype=torch.int64)
    values = [sequences[row].sampling for row in rows]
    parameters = torch.tensor(
        [[max(s.repetition_penalty, _SMALLEST_DIVISOR), s.presence_penalty, s.frequency_penalty] for s in values],
        dtype=torch.float32,
    )
    lengths_r = torch.tensor(lengths)
    repetition_n, presence_n, frequency_n = parameters.repeat_interleave(lengths_r, dim=0).unbind(1)
    vocab_size = logits_rv.shape[1]
    index_n = torch.tensor(rows).repeat_interleave(lengths_r) * vocab_size + ids_n
    minus_n = made_n * frequency_n + (made_n > 0) * presence_n
    known_n = (ids_n >= 0) & (ids_n < vocab_size)
    device = logits_rv.device
    index, repetition, minus = (upload(t[known_n], device) for t in (index_n, repetition_n, minus_n))
    flat = logits_rv.view(-1)
    logit = flat[index]
    logit = torch.where(logit < 0, logit * repetition, logit / repetition) - minus
    # An extreme penalty may overflow upwards; the row must stay one that can be drawn from.
    flat[index] = logit.clamp_(max=torch.finfo(torch.float32).max)
