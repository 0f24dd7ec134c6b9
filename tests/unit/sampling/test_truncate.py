"""Which tokens may be drawn: the same as with transformers' processors, and never any other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from kamado.requests import Sampling
from kamado.sampling.truncate import draw, settings_of, token_weights
from unit.sampling.rows import SAMPLINGS, random_logits


def by_transformers(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities after transformers' own chain, in the order of its `generate`."""
    chain: list[Any] = [TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_k:
        chain.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        chain.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0.0:
        chain.append(MinPLogitsWarper(sampling.min_p))
    if sampling.typical_p < 1.0:
        chain.append(TypicalLogitsWarper(sampling.typical_p))
    scores = logits
    for warper in chain:
        scores = warper(None, scores)
    return scores.softmax(dim=-1)


def weights(logits: Tensor, *samplings: Sampling) -> Tensor:
    return token_weights(logits, settings_of(samplings, logits.device))


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    weight = weights(logits, *[sampling] * len(logits)).double()
    return weight / weight.sum(dim=1, keepdim=True)


CASES = [
    {"temperature": 0.5},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 5000},
    {"top_p": 0.1},
    {"top_p": 0.9},
    {"top_p": 0.9999},
    {"top_p": 1e-9},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"typical_p": 0.2},
    {"typical_p": 0.9},
    {"typical_p": 0.2, "temperature": 3.0},
    {"temperature": 1.7, "top_k": 50, "top_p": 0.8},
    {"temperature": 100.0, "top_p": 0.5},
    {"temperature": 0.8, "top_k": 30, "top_p": 0.95, "min_p": 0.02, "typical_p": 0.7},
]


@pytest.mark.parametrize("values", CASES, ids=str)
@pytest.mark.parametrize("vocab_size", [11, 3000])
def test_same_tokens_and_probabilities_as_transformers(values: dict[str, Any], vocab_size: int) -> None:
    sampling = Sampling(**{"temperature": 1.0} | values)
    logits = random_logits(8, vocab_size, seed=vocab_size)
    expected = by_transformers(logits, sampling)
    actual = probabilities(logits, sampling)
    # Less than 2**-44 of the best token counts as nothing.
    assert torch.equal(actual > 0, expected > expected.amax(dim=1, keepdim=True) * 2.0**-44)
    torch.testing.assert_close(actual.float(), expected, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("scale", [0.01, 10.0])
def test_top_p_is_the_same_whether_few_or_all_tokens_must_be_sorted(scale: float) -> None:
    """0.01 makes the distribution so flat that a thousand candidates do not reach the mass."""
    sampling = Sampling(temperature=1.0, top_p=0.9)
    logits = random_logits(4, 5000, scale=scale)
    expected = by_transformers(logits, sampling)
    actual = probabilities(logits, sampling)
    # So flat a distribution sums 4,500 nearly equal float32 numbers in transformers: its border may lie one off.
    assert ((actual > 0) != (expected > 0)).sum() <= (4 if scale < 1 else 0)
    assert int((actual > 0).sum()) > 4000 if scale < 1 else int((actual > 0).sum()) < 4000


def test_rows_do_not_mix() -> None:
    samplings = [Sampling(**values) for values in SAMPLINGS if values.get("temperature")]
    logits = random_logits(len(samplings), 3000)
    together = weights(logits, *samplings)
    for row, sampling in enumerate(samplings):
        assert torch.equal(together[row], weights(logits[row : row + 1], sampling)[0])


def test_ties_are_cut_at_the_lowest_ids() -> None:
    flat = torch.zeros(1, 8)
    assert (weights(flat, Sampling(temperature=1.0, top_k=3))[0] > 0).tolist() == [True] * 3 + [False] * 5
    assert (weights(flat, Sampling(temperature=1.0, top_p=0.5))[0] > 0).tolist() == [True] * 4 + [False] * 4
    some = torch.tensor([[0.0, 1.0, 0.0, 2.0, 1.0, 1.0]])
    assert weights(some, Sampling(temperature=1.0, top_k=3))[0].nonzero().flatten().tolist() == [1, 3, 4]


def test_low_temperatures_leave_the_best_alone_and_high_ones_everything() -> None:
    logits = random_logits(4, 100)
    for temperature in (1e-6, 1e-45, 5e-324):
        assert torch.equal(probabilities(logits, Sampling(temperature=temperature)).argmax(1), logits.argmax(1))
        assert int((weights(logits, *[Sampling(temperature=temperature)] * 4) > 0).sum()) == 4
    hot = probabilities(logits, Sampling(temperature=100.0))
    assert float(hot.min()) > 0.008
    assert float(hot.max()) < 0.012


def test_infinities_and_huge_logits() -> None:
    logits = torch.tensor([[-torch.inf, 3e38, -3e38, -torch.inf], [-torch.inf, -torch.inf, -torch.inf, -1e38]])
    for values in CASES:
        weight = weights(logits, *[Sampling(**{"temperature": 1.0} | values)] * 2)
        assert (weight > 0).tolist() == [[False, True, False, False], [False, False, False, True]], values


@given(
    weight=st.lists(st.integers(0, 2**44), min_size=1, max_size=20).filter(any),
    number=st.floats(0.0, 1.0, exclude_max=True) | st.just(1 - 2.0**-53),
)
def test_draws_by_inverse_cdf_and_never_a_filtered_token(weight: list[int], number: float) -> None:
    drawn = int(draw(torch.tensor([weight]), torch.tensor([number], dtype=torch.float64))[0])
    assert weight[drawn] > 0
    below, total = sum(weight[:drawn]), sum(weight)
    slack = total * 2.0**-52
    assert below - slack <= number * total <= below + weight[drawn] + slack


def test_the_last_kept_token_is_drawn_at_the_upper_end() -> None:
    almost_one = torch.tensor([1 - 2.0**-53], dtype=torch.float64)
    for weight in ([2**44, 0, 2**44, 0, 0], [2**44] * 250_000 + [0], [0, 1, 0]):
        last = max(i for i, value in enumerate(weight) if value)
        assert int(draw(torch.tensor([weight]), almost_one)[0]) == last


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_vocabulary_of_a_million_does_not_overflow(dtype: torch.dtype) -> None:
    flat = torch.zeros(1, 2**20, dtype=dtype).float()
    weight = weights(flat, Sampling(temperature=1.0))
    assert int(weight.sum()) == sum(weight[0, :1].tolist()) * 2**20
    assert int(draw(weight, torch.tensor([0.5], dtype=torch.float64))[0]) == 2**19
