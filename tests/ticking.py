"""A loop for tests: its clock moves by one a reading."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from kamado.contracts import Lane
from kamado.engine.loop import Loop
from kamado.events import Event
from kamado.memory.residency import Residency


def ticking_loop(lanes: Iterable[Lane]) -> Loop:
    residency = Residency()
    for lane in lanes:
        residency.add(lane)
    ticks = itertools.count()
    return Loop(residency, clock=lambda: float(next(ticks)))


def run_to_end(loop: Loop, limit: int) -> list[Event]:
    """Steps until no task is left; the events of all. `limit`: the most steps."""
    events: list[Event] = []
    for _ in range(limit):
        if not len(loop.scheduler):
            return events
        events += loop.step()
    raise AssertionError(f"not finished after {limit} steps")
