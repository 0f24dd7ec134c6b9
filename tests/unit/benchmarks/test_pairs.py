"""Paired ratios, the interval of their median, and how times grow."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Program = Callable[[str], ModuleType]


def test_sides_take_turns_and_the_first_ones_do_not_count(program: Program) -> None:
    calls: list[tuple[str, int]] = []

    def side(name: str, rate: float) -> Callable[[int], float]:
        def run(repetition: int) -> float:
            calls.append((name, repetition))
            return rate + repetition

        return run

    pairs = program("pairs").in_turns(side("a", 10), side("b", 20), 3, settle_s=0)
    assert pairs == [(11, 21), (12, 22), (13, 23)]
    assert calls == [("b", 0), ("a", 0), ("a", 1), ("b", 1), ("b", 2), ("a", 2), ("a", 3), ("b", 3)]


def test_the_ratio_is_the_median_of_ratios(program: Program) -> None:
    """Not the ratio of medians: here one side is always twice as fast, and a disturbed pair changes nothing."""
    pairs = [(2.0, 1.0), (20.0, 10.0), (8.0, 4.0), (1.0, 10.0), (6.0, 3.0)]
    found = program("pairs").summary(pairs, goal=2.5)
    assert found["ratio"] == 2.0 and found["ratios"] == [2.0, 2.0, 2.0, 0.1, 2.0]
    assert (found["ours_tokens_per_s"], found["theirs_tokens_per_s"]) == (6.0, 4.0)
    assert (found["ratio_low"], found["ratio_high"], found["goal"]) == (0.1, 2.0, 2.5)
    assert found["verdict"] == "missed"
    line = program("pairs").line({"test": "t", "ours": "a", "theirs": "b", **found})
    assert "ratio 2.000 (0.100 to 2.000 of 5)" in line and "goal 2.5: missed" in line


@pytest.mark.parametrize(
    ("number", "place"),
    # Of the table that every book on statistics has: the interval from the n-th least to the n-th greatest.
    [(1, 1), (2, 1), (5, 1), (6, 1), (8, 1), (9, 2), (12, 3), (15, 4), (20, 6), (25, 8), (30, 10)],
)
def test_the_interval_is_that_of_the_sign_test(number: int, place: int, program: Program) -> None:
    values = list(range(1, number + 1))
    random.Random(number).shuffle(values)
    assert program("pairs").median_interval(values) == (place, number + 1 - place)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(st.floats(min_value=1e-3, max_value=1e3), min_size=1, max_size=60))
def test_the_interval_holds_the_median(values: list[float], program: Program) -> None:
    low, high = program("pairs").median_interval(values)
    assert min(values) <= low <= statistics.median(values) <= high <= max(values)


@pytest.mark.parametrize(
    ("ratio", "high", "goal", "said"),
    [(1.0, 1.1, 1.0, "met"), (0.99, 1.02, 1.0, "within noise"), (0.9, 0.95, 1.0, "missed"), (7.1, 7.2, 7, "met")],
)
def test_verdicts(ratio: float, high: float, goal: float, said: str, program: Program) -> None:
    assert program("pairs").verdict(ratio, high, goal) == said


def rows(series: str, sizes: list[int], step: Callable[[int], float], read: Callable[[int], float]) -> list[Any]:
    return [{"series": series, "size": size, "decode_ms": step(size), "prefill_s": read(size)} for size in sizes]


def test_what_grows_as_it_may_and_what_does_not(program: Program) -> None:
    growth = program("growth")
    assert growth.exponents([1, 2, 4, 8], [3, 6, 12, 24]) == pytest.approx([1, 1])
    assert growth.exponents([128, 256], [1, 4]) == pytest.approx([2])
    fine = rows("streams", [1, 2, 4, 8], lambda n: 5 + 0.5 * n, lambda n: 0.1 * n)
    fine += rows("context", [128, 256, 512], lambda n: 5 + 0.001 * n, lambda n: n + n * n / 1e4)
    found = {(row["series"], row["test"]): row for row in growth.growths(fine)}
    assert len(found) == 4 and all(row["verdict"] == "met" for row in found.values())
    assert found["context", "prefill"]["bound"] == 2.0 and found["streams", "decode"]["greatest_exponent"] < 0.5
    # A step that reads the whole context of all streams for each of them.
    wrong = rows("streams", [1, 2, 4, 8], lambda n: n * n, lambda n: 0.1 * n)
    decode, prefill = growth.growths(wrong)
    assert (decode["verdict"], decode["greatest_exponent"]) == ("missed", 2.0) and prefill["verdict"] == "met"
    assert growth.growths(wrong[:1]) == []
