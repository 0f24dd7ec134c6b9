"""Proposals hold while they are what would have been drawn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kamado.errors import GenerationFailed
from kamado.requests import Sampling
from kamado.sampling.sampler import Sampler
from kamado.sampling.verify import accepted, drawn_rows
from kamado.sequence import Drawn, TextStep, TokenSequence

VOCABULARY = 12
TABLE = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(0)) * 2


def sequence_of(tokens: list[int], num_prompt: int, sampling: Sampling, seed: int) -> TokenSequence:
    return TokenSequence(
        id="s", tokens=tokens, num_prompt=num_prompt, sampling=sampling, seed=seed, index=1, logprobs=2
    )


@settings(max_examples=150, deadline=None)
@given(
    prompt=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=6),
    seed=st.integers(0, 99),
    changes=st.fixed_dictionaries(
        {},
        optional={
            "temperature": st.sampled_from([0.3, 1.0, 2.0]),
            "top_k": st.integers(1, 5),
            "repetition_penalty": st.sampled_from([1.3, 2.0]),
            "presence_penalty": st.just(1.0),
            "frequency_penalty": st.just(0.7),
            "logit_bias": st.just({3: 2.0, 5: -100.0}),
        },
    ),
    errors=st.lists(st.booleans(), min_size=1, max_size=7),
)
def test_what_counts_is_what_is_drawn_one_by_one(
    prompt: list[int], seed: int, changes: dict[str, Any], errors: list[bool]
) -> None:
    """A model whose logits depend on the last token: one token a step, and all at once behind proposals."""
    sampling, sampler = Sampling(**changes), Sampler()
    plain = sequence_of(list(prompt), len(prompt), sampling, seed)
    one_by_one: list[Drawn] = []
    for _ in range(len(errors) + 1):
        (drawn,) = sampler.draw(TABLE[[plain.tokens[-1]]], [plain])
        assert isinstance(drawn, Drawn)
        one_by_one.append(drawn)
        plain.tokens.append(drawn.token_id)
    proposed = tuple((each.token_id + wrong) % VOCABULARY for each, wrong in zip(one_by_one, errors, strict=False))
    sequence = sequence_of(list(prompt), len(prompt), sampling, seed)
    step = TextStep(sequence, 1 + len(proposed), True, proposed)
    rows = sampler.draw(TABLE[[prompt[-1], *proposed]], drawn_rows(step))
    kept = accepted(proposed, rows)
    right = next((i for i, wrong in enumerate(errors) if wrong), len(errors))
    assert [each.token_id for each in kept] == [each.token_id for each in one_by_one[: right + 1]]
    for each, wanted in zip(kept, one_by_one, strict=False):
        assert each.logprob == pytest.approx(wanted.logprob, abs=1e-5)
        assert [token for token, _ in each.top] == [token for token, _ in wanted.top]
    # The next step starts from what was kept, whatever was counted for proposals that did not hold.
    sequence.tokens += [each.token_id for each in kept]
    fresh = sequence_of(list(sequence.tokens), len(prompt), sampling, seed)
    (after,) = sampler.draw(TABLE[[sequence.tokens[-1]]], [sequence])
    assert after == sampler.draw(TABLE[[fresh.tokens[-1]]], [fresh])[0]


def test_a_row_that_cannot_be_drawn_takes_all_with_it() -> None:
    assert accepted((1, 2), [Drawn(1), Drawn(2), GenerationFailed("NaN")]) == ()
    assert accepted((1, 2), [GenerationFailed("NaN"), Drawn(2), Drawn(3)]) == ()
    assert accepted((1, 2), [Drawn(1), Drawn(7), Drawn(3)]) == (Drawn(1), Drawn(7))
    assert accepted((1, 2), [Drawn(1), Drawn(2), Drawn(3)]) == (Drawn(1), Drawn(2), Drawn(3))
