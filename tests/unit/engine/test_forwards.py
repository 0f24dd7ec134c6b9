"""What is done, in which order, about a forward that runs out of memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from kamado.contracts import Work
from kamado.errors import DoesNotFit, GenerationFailed
from kamado.events import Event, Finished
from kamado.sequence import TextStep
from ticking import run_to_end, ticking_loop

from .toys import CountLane, CountTask, ToyModel, ends_of, expected, tokens_of


class TightLane(CountLane):
    """Runs out of memory until there is enough room; its works take `payload.size`, or half of it when eased."""

    def __init__(self, room: int, *, can_ease: bool = False) -> None:
        super().__init__()
        self.room = room
        self.can_ease = can_ease
        self.tries: list[list[int]] = []
        self.error: Exception = MemoryError("no room")

    def run(self, works: Sequence[Work]) -> list[Any]:
        self.tries.append([work.cost for work in works])
        if sum(work.cost for work in works) > self.room:
            raise self.error
        return super().run(works)

    def ease(self, work: Work) -> Work | None:
        return replace(work, cost=work.cost // 2) if self.can_ease and work.cost > 25 else None


def _end(events: list[Event], request_id: str) -> Finished:
    (end,) = (event for event in events if isinstance(event, Finished) and event.request_id == request_id)
    return end


def test_what_is_idle_goes_before_the_answer_changes() -> None:
    lane, order = TightLane(60, can_ease=True), []
    loop = ticking_loop([lane])

    def free(name: str) -> bool:
        assert name == lane.name
        order.append(len(lane.tries))
        lane.room += 25
        return len(order) < 3

    loop.residency.reclaimers.append(free)
    loop.add(CountTask("a", 1, cost=100))
    assert _end(run_to_end(loop, 10), "a").error is None
    assert lane.tries == [[100], [100], [100], [100]]
    assert order == [2, 3]
    assert loop.forwards.rescued == 1


def test_a_transient_shortage_is_tried_once_more_as_it_is() -> None:
    class Recovering(TightLane):
        def run(self, works: Sequence[Work]) -> list[Any]:
            self.room = 100 * len(self.tries)
            return super().run(works)

    lane, asked = Recovering(0, can_ease=True), []
    loop = ticking_loop([lane])
    loop.residency.reclaimers.append(lambda name: asked.append(name) or True)
    loop.add(CountTask("a", 1, cost=100))
    assert _end(run_to_end(loop, 10), "a").error is None
    assert lane.tries == [[100], [100]]
    assert asked == [], "nobody leaves for that"


def test_the_lanes_other_way_comes_last_and_may_be_asked_for_again() -> None:
    lane = TightLane(30, can_ease=True)
    loop = ticking_loop([lane])
    loop.add(CountTask("a", 1, cost=100))
    assert _end(run_to_end(loop, 10), "a").error is None
    assert lane.tries == [[100], [100], [50], [25]]


def test_who_cannot_be_helped_fails_alone() -> None:
    lane = TightLane(60)
    loop = ticking_loop([lane])
    for name, cost in (("small", 20), ("large", 100), ("other", 20)):
        loop.add(CountTask(name, 2, cost=cost))
    events = run_to_end(loop, 20)
    assert [_end(events, name).error is None for name in ("small", "large", "other")] == [True, False, True]
    error = _end(events, "large").error
    assert isinstance(error, GenerationFailed)
    assert str(error).startswith("out of memory on cpu: ")
    assert error.__cause__ is lane.error
    assert loop.forwards.splits


def test_errors_that_are_kamados_own_stay_as_they_are() -> None:
    lane = TightLane(10)
    lane.error = DoesNotFit(
        "adapters need 5 GiB, but only 1 GiB of the budget are free", needed_bytes=5, available_bytes=1
    )
    loop = ticking_loop([lane])
    loop.add(CountTask("a", 1, cost=100))
    assert _end(run_to_end(loop, 10), "a").error is lane.error
    assert lane.tries == [[100], [100]]


@pytest.mark.parametrize("error", [ValueError("bad"), RuntimeError("a kernel failed")])
def test_other_errors_are_not_tried_again(error: Exception) -> None:
    lane = TightLane(60, can_ease=True)
    lane.error = error
    loop = ticking_loop([lane])
    loop.add(CountTask("a", 1, cost=100))
    end = _end(run_to_end(loop, 10), "a")
    assert isinstance(end.error, GenerationFailed)
    assert lane.tries == [[100]]


def test_another_error_of_a_second_try_ends_the_trying() -> None:
    lane = TightLane(60, can_ease=True)
    loop = ticking_loop([lane])
    loop.residency.reclaimers.append(lambda name: setattr(lane, "error", ValueError("bad")) or True)
    loop.add(CountTask("a", 1, cost=100))
    end = _end(run_to_end(loop, 10), "a")
    assert isinstance(end.error, GenerationFailed)
    assert "ValueError: bad" in str(end.error)
    assert lane.tries == [[100], [100], [100]]


@pytest.mark.parametrize("most", [1, 3, 5, 9])
def test_prompts_are_cut_until_they_fit(most: int) -> None:
    """Whatever takes more than `most` tokens in one forward has no room."""
    model = ToyModel(num_blocks=64, step_budget=32)

    def fails(steps: Sequence[TextStep]) -> Exception | None:
        return MemoryError("no room") if sum(step.num_new for step in steps) > most else None

    model.lane.fail_when = fails
    prompts = {f"r{i}": list(range(1 + i, 30 + i)) for i in range(4)}
    for name, prompt in prompts.items():
        model.loop.add(model.task(name, prompt, max_tokens=6))
    events = model.run()
    for name, prompt in prompts.items():
        assert ends_of(events, name)[0].error is None
        assert tokens_of(events, name) == expected(prompt, 6)
    assert model.loop.forwards.rescued
    assert model.memory.pool.num_free == 64
    model.memory.check_integrity()
