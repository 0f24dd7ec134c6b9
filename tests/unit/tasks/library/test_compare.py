"""When results count as the same, and when that proves something."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kamado.tasks.library.compare import close, rows_differ, same, tensors

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("dtype", "little", "much"),
    [
        (torch.float64, 1e-12, 1e-6),
        (torch.float32, 1e-6, 1e-2),
        (torch.bfloat16, 1e-2, 0.3),
        (torch.float16, 1e-2, 0.3),
        (torch.complex64, 1e-6, 1e-2),
    ],
)
def test_rounding_is_no_difference(dtype: torch.dtype, little: float, much: float) -> None:
    value = torch.tensor([1.0, -2.0, 0.0], dtype=dtype)
    shift = torch.tensor([0.0, 1.0, 1.0], dtype=dtype)
    assert close(value, value)
    assert close(value + shift * little, value)
    assert not close(value + shift * much, value)


def test_differences_count_in_relation_to_the_largest_value() -> None:
    assert close(torch.tensor([1000.01, 0.01]), torch.tensor([1000.0, 0.0]))
    assert not close(torch.tensor([1.01, 0.01]), torch.tensor([1.0, 0.0]))
    assert close(torch.tensor([1e-9]), torch.tensor([0.0]))


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ([NAN, 1.0], [NAN, 1.0], True),
        ([INF, 1.0], [INF, 1.0], True),
        ([-INF, 1.0], [INF, 1.0], False),
        ([NAN, 1.0], [0.0, 1.0], False),
        ([0.0, 1.0], [NAN, 1.0], False),
        ([NAN, 1.0], [NAN, 2.0], False),
        ([NAN, NAN], [NAN, NAN], True),
        ([], [], True),
    ],
)
def test_values_that_are_not_finite_must_be_equal(one: list[float], other: list[float], alike: bool) -> None:
    assert close(torch.tensor(one), torch.tensor(other)) is alike


def test_whole_numbers_shapes_and_types_must_be_equal() -> None:
    assert close(torch.tensor([1, 2]), torch.tensor([1, 2]))
    assert not close(torch.tensor([1_000_000]), torch.tensor([1_000_001]))
    assert not close(torch.tensor([True]), torch.tensor([False]))
    assert not close(torch.zeros(2), torch.zeros(1, 2))
    assert not close(torch.zeros(2), torch.zeros(2, dtype=torch.float64))


def cache(value: Tensor) -> Any:
    """As transformers' caches are."""
    return SimpleNamespace(layers=[SimpleNamespace(keys=value, values=value + 1), SimpleNamespace(keys=None)])


def test_results_are_compared_whole() -> None:
    x = torch.ones(2, 2)
    distribution = SimpleNamespace(parameters=x)
    assert len(tensors((x, {"a": [x, None, 3]}, distribution, cache(x)))) == 5
    assert same((x, cache(x)), (x, cache(x)))
    assert not same((x, cache(x)), (x, cache(x + 1)))
    assert not same(distribution, SimpleNamespace(parameters=x * 2))
    assert not same((x, x), (x,))
    assert same(None, None)


def test_rows_that_are_all_alike_prove_nothing() -> None:
    row = torch.arange(3.0)
    assert not rows_differ([row[None], row[None].clone()])
    assert not rows_differ([row.expand(2, 3), row[None]])
    assert not rows_differ([(row.expand(4, 3) + 1e-7,)])
    assert rows_differ([row[None], row[None] + 1])
    assert rows_differ([torch.stack([row, row + 1]), row[None]])
    assert rows_differ([row[None], torch.zeros(1, 4)])
    assert not rows_differ([None, "x"])
