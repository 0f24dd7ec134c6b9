"""Paired measurements: two sides in turns, and what can be said of their ratio.

On a machine that others use too, a speed by itself says little: what disturbs comes and goes. Two sides that run one
right after the other are disturbed nearly alike, so their ratio is steadier than either. Of the ratios of all pairs the
median is taken, and the interval in which it lies with 95 % certainty, whatever they are distributed like.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

Measure = Callable[[int], float]
"""Of a repetition's number: what was measured of it, larger is better (tokens a second)."""
SETTLE_S = 0.05
"""Before each turn: threads of the side that has just run wait for more work in a loop, for some milliseconds."""


def in_turns(ours: Measure, theirs: Measure, reps: int, *, settle_s: float = SETTLE_S) -> list[tuple[float, float]]:
    """(ours, theirs) of each repetition, 1 to `reps`, after one (number 0) that does not count. Who comes first
    alternates."""
    pairs = []
    for repetition in range(reps + 1):
        found = {}
        for side in (ours, theirs) if repetition % 2 else (theirs, ours):
            time.sleep(settle_s)
            found[side] = side(repetition)
        if repetition:
            pairs.append((found[ours], found[theirs]))
    return pairs


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Two of the values, between which the median of what they are drawn from lies at least that surely: each value is
    on either side of it like a coin. With fewer than six values nothing is that sure, and these are the least and the
    greatest."""
    ordered = sorted(values)
    number, outside, place = len(ordered), 0.0, 1
    for candidate in range(1, (number + 1) // 2 + 1):
        outside += 2 * math.comb(number, candidate - 1) / 2**number
        if outside > 1 - confidence:
            break
        place = candidate
    return ordered[place - 1], ordered[-place]


def verdict(ratio: float, high: float, goal: float) -> str:
    """Whether a goal for a ratio is met: `met`, `missed`, or `within noise` where it lies in the interval above the
    median."""
    if ratio >= goal:
        return "met"
    return "within noise" if high >= goal else "missed"


def summary(pairs: Sequence[tuple[float, float]], *, goal: float, unit: str = "tokens_per_s") -> dict[str, Any]:
    """What a result says: medians of both sides, the ratio ours / theirs, and the goal."""
    ratios = [ours / theirs for ours, theirs in pairs]
    ratio = statistics.median(ratios)
    low, high = median_interval(ratios)
    return {
        f"ours_{unit}": rounded(statistics.median(ours for ours, _ in pairs)),
        f"theirs_{unit}": rounded(statistics.median(theirs for _, theirs in pairs)),
        "ratio": rounded(ratio),
        "ratio_low": rounded(low),
        "ratio_high": rounded(high),
        "goal": goal,
        "verdict": verdict(ratio, high, goal),
        "ratios": [rounded(value) for value in ratios],
    }


def line(row: dict[str, Any], unit: str = "tokens_per_s") -> str:
    """A row of `summary` for people; `test` is its name, `ours` and `theirs` the sides'."""
    return (
        f"{row['test']:<22} {row['ours']:<20} {row[f'ours_{unit}']:>8.4g}   {row['theirs']:<20} "
        f"{row[f'theirs_{unit}']:>8.4g}   ratio {row['ratio']:.3f} ({row['ratio_low']:.3f} to {row['ratio_high']:.3f} "
        f"of {len(row['ratios'])})   goal {row['goal']:g}: {row['verdict']}"
    )


def rounded(value: float) -> float:
    """Digits beyond the fourth are noise."""
    return float(f"{value:.4g}")
