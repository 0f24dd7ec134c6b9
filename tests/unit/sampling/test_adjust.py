"""Bias and penalties against transformers' processor and against plain counting."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from kamado.sampling.adjust import adjust_
from kamado.sampling.counts import token_counts
from unit.sampling.rows import random_logits, sequence

TOKENS = st.lists(st.integers(0, 19), max_size=30)


@pytest.mark.parametrize("penalty", [0.5, 1.3, 100.0])
def test_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    logits = random_logits(2, 50)
    rows = [sequence(prompt=[1, 2, 3, 2], made=[7, 7, 1], repetition_penalty=penalty), sequence(prompt=[4] * 7)]
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([rows[0].tokens]), logits[:1])
    actual = logits.clone()
    adjust_(actual, rows)
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], logits[1])


@given(
    prompt=TOKENS,
    made=TOKENS,
    repetition=st.floats(0.1, 10.0),
    presence=st.floats(-100, 100),
    frequency=st.floats(-100, 100),
    bias=st.dictionaries(st.integers(0, 19), st.floats(-100, 100), max_size=5),
)
def test_against_plain_counting(
    prompt: list[int], made: list[int], repetition: float, presence: float, frequency: float, bias: dict[int, float]
) -> None:
    logits = random_logits(1, 20)
    row = sequence(
        prompt=prompt,
        made=made,
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
        logit_bias=bias,
    )
    expected = []
    for token, logit in enumerate(logits[0].tolist()):
        value = logit + bias.get(token, 0.0)
        if token in prompt + made:
            value = value * repetition if value < 0 else value / repetition
        times = made.count(token)
        expected.append(value - times * frequency - (presence if times else 0.0))
    adjust_(logits, [row])
    assert logits[0].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-3)


@given(prompt=TOKENS, steps=st.lists(TOKENS, max_size=5))
def test_counts_grow_with_the_sequence(prompt: list[int], steps: list[list[int]]) -> None:
    row = sequence(prompt=prompt)
    for added in steps:
        row.tokens += added
        counts = token_counts(row)
        made = row.tokens[row.num_prompt :]
        assert list(counts.ids) == list(dict.fromkeys(row.tokens))
        assert list(counts.made) == [made.count(token) for token in counts.ids]


def test_counts_are_made_again_when_tokens_were_taken_back() -> None:
    row = sequence(made=[5, 6, 7])
    token_counts(row)
    del row.tokens[-2:]
    assert list(token_counts(row).ids) == [1, 2, 3, 5]
    row.private.clear()
    assert list(token_counts(row).made) == [0, 0, 0, 1]


def test_only_new_tokens_are_looked_at() -> None:
    class Tokens(list[int]):
        looked_at = 0

        def __getitem__(self, position: object) -> int:  # type: ignore[override]
            Tokens.looked_at += 1
            return super().__getitem__(position)  # type: ignore[index, no-any-return]

    row = sequence()
    row.tokens = Tokens(range(1000))
    token_counts(row)
    row.tokens.append(3)
    token_counts(row)
    assert Tokens.looked_at == 1001


def test_token_ids_beyond_the_logits_touch_no_other_row() -> None:
    """A prompt may hold ids (of pictures, say) for which the model has no logit."""
    logits = random_logits(2, 20)
    before = logits.clone()
    adjust_(logits, [sequence(prompt=[20, 25, 39, 3], repetition_penalty=2.0), sequence()])
    assert torch.equal(logits[1], before[1])
    assert (logits[0] != before[0]).nonzero().flatten().tolist() == [3]


def test_extreme_penalties_leave_a_row_that_can_be_drawn_from() -> None:
    logits = random_logits(2, 20).abs()
    logits[:, 5] = 0.0
    adjust_(logits, [sequence(made=[4, 5], repetition_penalty=5e-324), sequence(made=[4, 5], repetition_penalty=100.0)])
    assert bool(logits.isfinite().all())
