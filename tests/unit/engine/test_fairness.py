"""Who gets the next forward, and how much of the time each model gets in the end."""

from __future__ import annotations

import pytest

from kamado.engine.loop import Loop
from kamado.engine.scheduler import MOST_AHEAD_S
from kamado.events import Progress
from kamado.memory.residency import Residency

from .toys import CountLane, CountTask


def test_lanes_take_turns_by_the_time_they_use() -> None:
    """A picture of 50 long steps and a chat of short ones: each gets half of the time."""
    now = [0.0]
    residency = Residency()
    slow, quick = CountLane("slow"), CountLane("quick")
    costs = {"slow": 1.0, "quick": 0.1}
    for lane in (slow, quick):
        run = lane.run

        def timed(works, run=run, lane=lane):  # type: ignore[no-untyped-def]
            now[0] += costs[lane.name]
            return run(works)

        lane.run = timed  # type: ignore[method-assign]
        residency.add(lane)
    loop = Loop(residency, clock=lambda: now[0])
    loop.add(CountTask("picture", 50, lane="slow"))
    for _ in range(10):
        loop.step()
    loop.add(CountTask("chat", 200, lane="quick"))
    order = []
    while len(loop.scheduler):
        order += [e.request_id for e in loop.step() if isinstance(e, Progress)]
    both = order[: len(order) - order[::-1].index("chat")]
    assert 8 <= both.count("chat") / both.count("picture") <= 12
    longest = max(len(run) for run in "".join("p" if o == "picture" else "c" for o in both).split("c"))
    assert longest <= 2, "the chat stalled behind the picture"


@pytest.mark.parametrize("others", [["picture"], ["picture", "encoder"]])
@pytest.mark.parametrize(("chat_s", "other_s"), [(3, 1), (1, 1), (1, 5), (0.003, 0.001), (0.001, 0.005)])
def test_what_somebody_watches_comes_first_and_takes_no_more_than_its_share(
    chat_s: float, other_s: float, others: list[str]
) -> None:
    """Also where its own steps are the longer ones: it waits for one step of each other while it is not far ahead, and
    gets as much time as each of them in the end."""
    residency = Residency()
    lanes = {name: CountLane(name) for name in ("chat", *others)}
    loop = Loop(residency, clock=lambda: 0.0)  # the time of a step is charged below
    for name, lane in lanes.items():
        lane.interactive = name == "chat"
        residency.add(lane)
        loop.add(CountTask(name, 5000, lane=name))
    used = dict.fromkeys(lanes, 0.0)
    since: list[str] = []
    num_early = 0
    for _ in range(1000):
        is_far_ahead = used["chat"] - min(used.values()) > MOST_AHEAD_S
        (name,) = [event.request_id for event in loop.step() if isinstance(event, Progress)]
        seconds = chat_s if name == "chat" else other_s
        loop.scheduler.charge(name, seconds)
        used[name] += seconds
        since = [] if name == "chat" or is_far_ahead else [*since, name]
        assert len(since) == len(set(since)), "a token waited for two steps of one model"
        num_early += not is_far_ahead
    assert num_early >= 100
    assert max(used.values()) - min(used.values()) <= MOST_AHEAD_S + 2 * max(chat_s, other_s)


def test_a_model_of_many_lanes_gets_the_share_of_one() -> None:
    """A pipeline of three components beside a model of one; and none of the three is left to wait."""
    residency = Residency()
    loop = Loop(residency, clock=lambda: 0.0)
    for name in ("pipeline/encoder", "pipeline/unet", "pipeline/vae", "other/network"):
        residency.add(CountLane(name), name.partition("/")[0])
        loop.add(CountTask(name, 100, lane=name))
    order = []
    while len(order) < 120:
        order += [event.request_id for event in loop.step() if isinstance(event, Progress)]
        loop.scheduler.charge(order[-1], 1.0)
    assert order.count("other/network") == 60
    assert {order.count(name) for name in set(order) - {"other/network"}} == {20}


def test_what_was_used_while_nobody_else_wanted_anything_is_not_owed() -> None:
    residency = Residency()
    loop = Loop(residency, clock=lambda: 0.0)
    for name in ("chat", "picture"):
        residency.add(CountLane(name))
    loop.add(CountTask("alone", 100, lane="chat"))
    while len(loop.scheduler):
        loop.step()
        loop.scheduler.charge("chat", 1.0)
    loop.add(CountTask("picture", 100, lane="picture"))
    loop.add(CountTask("chat", 100, lane="chat"))
    order = []
    while len(order) < 20:
        order += [event.request_id for event in loop.step() if isinstance(event, Progress)]
        loop.scheduler.charge(order[-1], 1.0)
    assert order.count("chat") == order.count("picture") == 10
