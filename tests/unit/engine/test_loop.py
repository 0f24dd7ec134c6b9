"""The loop and its scheduler, with models of integers."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kamado.engine.loop import Loop
from kamado.errors import Cancelled, DeadlineExceeded, GenerationFailed
from kamado.events import Event, Finished, Progress, Started, Token
from kamado.memory.residency import Residency

from .toys import CountLane, CountTask, ToyModel, ends_of, expected, tokens_of


def test_a_request_alone_says_what_the_model_says() -> None:
    model = ToyModel()
    model.loop.add(model.task("a", range(1, 40), max_tokens=20))
    events = model.run()
    assert tokens_of(events, "a") == expected(range(1, 40), 20)
    assert isinstance(events[0], Started)
    assert [type(e) for e in events].count(Started) == 1
    assert [e.reason for e in ends_of(events, "a")] in (["stop"], ["length"])
    assert isinstance(events[-1], Finished)


def test_a_long_prompt_is_computed_in_pieces_beside_decoding_ones() -> None:
    model = ToyModel(step_budget=16, num_blocks=64)
    for i in range(4):
        model.loop.add(model.task(f"d{i}", [i + 1, 5, 9], max_tokens=40))
    model.loop.step()
    model.loop.add(model.task("long", range(1, 49), max_tokens=5))
    gaps = 0
    events: list[Event] = []
    for _ in range(8):
        step = model.loop.step()
        events += step
        made = {e.request_id for e in step if isinstance(e, Token)}
        running = {e.task.id for e in model.loop.scheduler.entries()} - {"long"}
        gaps += len(running - made)
    assert gaps == 0, "a decode missed a step while a prompt was computed"
    assert tokens_of([*events, *model.run()], "long") == expected(range(1, 49), 5)


def test_pages_that_run_out_pre_empt_the_youngest_and_change_no_answer() -> None:
    model = ToyModel(num_blocks=12, max_rows=8)
    prompts = {f"r{i}": [i + 1] * (5 + i) for i in range(8)}
    for name, prompt in prompts.items():
        model.loop.add(model.task(name, prompt, max_tokens=25))
    events = model.run()
    for name, prompt in prompts.items():
        assert tokens_of(events, name) == expected(prompt, 25, context=48)
        assert len(ends_of(events, name)) == 1
    assert model.loop.scheduler.num_preemptions > 0
    assert model.memory.pool.num_free == 12
    model.memory.check_integrity()


def test_nobody_is_pre_empted_where_that_would_not_free_enough() -> None:
    """Of 10 pages the oldest holds 6 and the youngest 2; one in between asks for 5, which those 2 and the 2 free ones
    cannot make up."""
    model = ToyModel(num_blocks=10, block_tokens=4, step_budget=64)
    model.loop.add(model.task("old", [1] * 21, max_tokens=3, ignore_eos=True))
    model.loop.step()
    model.loop.add(model.task("middle", [2] * 18, max_tokens=2))
    model.loop.add(model.task("young", [3] * 5, max_tokens=3, ignore_eos=True))
    (young,) = (entry for entry in model.loop.scheduler.entries() if entry.task.id == "young")
    assert young.task.acquire(young.task.work(64)) is not None  # type: ignore[arg-type]
    events = model.loop.step()
    events += model.loop.step()  # the one in between has waited longest, and leads
    assert model.loop.scheduler.num_preemptions == 0
    assert young.task.holds()
    events += model.run()
    assert tokens_of(events, "middle") == expected([2] * 18, 2, context=40)


def test_answers_of_one_request_share_the_pages_of_its_prompt() -> None:
    model = ToyModel(num_blocks=16, block_tokens=4)
    prompt = list(range(1, 34))  # 9 pages, of which 8 are full
    model.loop.add(model.task("n", prompt, max_tokens=6, n=4))
    events: list[Event] = []
    most = 0
    while len(model.loop.scheduler):
        events += model.loop.step()
        most = max(most, 16 - model.memory.pool.num_free)
    for index in range(4):
        assert tokens_of(events, "n", index) == expected(prompt, 6, index=index)
    assert len(ends_of(events, "n")) == 4
    assert most <= 8 + 4 * 2, "the prompt's pages were not shared"
    assert model.loop.scheduler.num_preemptions == 0
    assert model.memory.pool.num_free == 16


def test_a_prefix_known_from_before_is_not_computed_again() -> None:
    model = ToyModel(num_blocks=32)
    prompt = list(range(1, 42))
    model.loop.add(model.task("a", prompt, max_tokens=3))
    first = ends_of(model.run(), "a")[0]
    model.loop.add(model.task("b", [*prompt, 7], max_tokens=3))
    events = model.run()
    second = ends_of(events, "b")[0]
    assert (first.cached_tokens, second.cached_tokens) == (0, 40)
    assert tokens_of(events, "b") == expected([*prompt, 7], 3)


def test_without_sharing_nothing_is_taken_over() -> None:
    model = ToyModel(num_blocks=32, share_prefixes=False)
    for name in ("a", "b"):
        model.loop.add(model.task(name, range(1, 42), max_tokens=3))
        assert ends_of(model.run(), name)[0].cached_tokens == 0


def test_cancelling_ends_a_request_at_once_and_gives_its_pages_back() -> None:
    model = ToyModel()
    model.loop.add(model.task("a", range(1, 20), max_tokens=50, n=3))
    model.loop.add(model.task("b", range(1, 10), max_tokens=5))
    before = [event for _ in range(4) for event in model.loop.step()]
    ends = model.loop.cancel("a")
    assert ends
    assert all(isinstance(e, Finished) and e.reason == "cancelled" and isinstance(e.error, Cancelled) for e in ends)
    assert model.loop.cancel("a") == []
    events = model.run()
    assert not [e for e in events if e.request_id == "a"]
    assert tokens_of([*before, *events], "b") == expected(range(1, 10), 5)
    assert model.memory.pool.num_free == 32


def test_a_deadline_ends_a_request_between_steps() -> None:
    model = ToyModel()
    model.loop.add(model.task("late", [1, 2], max_tokens=90, deadline=6.0, ignore_eos=True))
    end = ends_of(model.run(), "late")[0]
    assert end.reason == "deadline"
    assert isinstance(end.error, DeadlineExceeded)
    assert model.memory.pool.num_free == 32


def test_a_batch_that_runs_out_of_memory_is_split_until_it_fits() -> None:
    model = ToyModel()
    model.lane.fail_when = lambda steps: MemoryError("no room") if len(steps) > 2 else None
    prompts = {f"r{i}": [i + 1, 2, 3] for i in range(6)}
    for name, prompt in prompts.items():
        model.loop.add(model.task(name, prompt, max_tokens=8))
    events = model.run()
    assert all(tokens_of(events, name) == expected(prompt, 8) for name, prompt in prompts.items())
    assert max(model.lane.batches) == 2
    assert model.loop.forwards.splits > 0


def test_a_fault_of_one_request_ends_that_request_alone() -> None:
    model = ToyModel()
    bad = ValueError("bad row")
    model.lane.fail_when = lambda steps: bad if any(s.sequence.id.startswith("bad") for s in steps) else None
    for name in ("x", "bad", "y"):
        model.loop.add(model.task(name, [len(name), 4], max_tokens=6))
    events = model.run()
    end = ends_of(events, "bad")[0]
    assert end.reason == "failed"
    assert isinstance(end.error, GenerationFailed)
    assert end.error.__cause__ is bad
    assert tokens_of(events, "x") == expected([1, 4], 6)
    assert tokens_of(events, "y") == expected([1, 4], 6)
    assert model.memory.pool.num_free == 32


def test_a_request_that_can_never_get_its_memory_fails_and_does_not_hang() -> None:
    model = ToyModel(num_blocks=3, block_tokens=4)
    model.loop.add(model.task("big", range(1, 20), max_tokens=2))
    model.loop.add(model.task("small", [1, 2], max_tokens=2))
    events = model.run(200)
    assert ends_of(events, "big")[0].reason == "failed"
    assert tokens_of(events, "small") == expected([1, 2], 2)


def test_stop_strings_end_an_answer_and_are_not_part_of_it() -> None:
    model = ToyModel()
    whole = expected([3, 4], 30)
    text = "".join(chr(64 + t) for t in whole if t)
    stop = text[4:6]
    model.loop.add(model.task("s", [3, 4], max_tokens=30, stop=[stop]))
    events = model.run()
    end = ends_of(events, "s")[0]
    said = "".join(e.text for e in events if isinstance(e, Token)) + end.text
    assert (end.reason, end.stop) == ("stop", stop)
    assert said == text[: text.index(stop)]


def test_models_that_came_and_left_make_no_step_longer() -> None:
    residency = Residency()
    loop = Loop(residency)
    for number in range(20):
        residency.add(CountLane(f"model#{number}"))
        loop.add(CountTask(f"r{number}", 3, lane=f"model#{number}"))
        while len(loop.scheduler):
            loop.step()
        residency.remove(f"model#{number}")
    assert len(loop.scheduler._queues) <= 1


def test_keys_of_one_lane_take_turns() -> None:
    residency = Residency()
    lane = CountLane()
    residency.add(lane)
    loop = Loop(residency)
    for i in range(3):
        loop.add(CountTask(f"small{i}", 6, key="64x64"))
    loop.add(CountTask("large", 6, key="512x512"))
    order = []
    while len(loop.scheduler):
        events = [e for e in loop.step() if isinstance(e, Progress)]
        order.append("large" if events[0].request_id == "large" else "small")
        assert len({e.request_id.rstrip("012") for e in events}) == 1
    assert order == ["small", "large"] * 6


def test_a_large_request_is_not_overtaken_for_ever() -> None:
    model = ToyModel(num_blocks=10, block_tokens=4, max_rows=4)
    rng = random.Random(0)
    model.loop.add(model.task("first", [1, 2, 3], max_tokens=10))
    model.loop.add(model.task("large", range(1, 33), max_tokens=4))
    finished_after = 0
    for i in range(200):
        model.loop.add(model.task(f"s{i}", [rng.randrange(1, 40)] * 3, max_tokens=4))
        if any(isinstance(e, Finished) and e.request_id == "large" for e in model.loop.step()):
            finished_after = i
            break
    assert 0 < finished_after < 60


@settings(max_examples=120)
@given(
    seed=st.integers(0, 2**32),
    num_blocks=st.integers(6, 40),
    step_budget=st.integers(1, 24),
    max_rows=st.integers(1, 9),
    share=st.booleans(),
    failing=st.booleans(),
    window=st.none() | st.integers(1, 30),
)
def test_any_schedule_gives_each_request_its_own_answer_once(
    seed: int, num_blocks: int, step_budget: int, max_rows: int, share: bool, failing: bool, window: int | None
) -> None:
    """Random arrivals, cancellations, faults and too little memory: answers as alone, one end each, nothing kept."""
    rng = random.Random(seed)
    memory = {"share_prefixes": share, "window_tokens": window}
    model = ToyModel(num_blocks=num_blocks, step_budget=step_budget, max_rows=max_rows, **memory)
    if failing:
        model.lane.fail_when = lambda steps: MemoryError() if rng.random() < 0.1 and len(steps) > 1 else None
    capacity = min(100, num_blocks * 4)
    wanted: dict[str, tuple[list[int], int, int]] = {}
    cancelled: set[str] = set()
    events: list[Event] = []
    for number in range(rng.randrange(1, 14)):
        base = [1, 2, 3, 4, 5, 6, 7, 8] if rng.random() < 0.5 else []
        prompt = base + [rng.randrange(1, 40) for _ in range(rng.randrange(1, capacity - len(base) - 1))]
        n, most = rng.choice([1, 1, 2, 3]), rng.randrange(1, 30)
        wanted[f"r{number}"] = (prompt, most, n)
        model.loop.add(model.task(f"r{number}", prompt, max_tokens=most, n=n))
        for _ in range(rng.randrange(4)):
            events += model.loop.step()
            model.memory.check_integrity()
        if rng.random() < 0.2:
            victim = f"r{rng.randrange(number + 1)}"
            ended = model.loop.cancel(victim)
            cancelled |= {victim} if ended else set()
            events += ended
    events += model.run()
    for name, (prompt, most, n) in wanted.items():
        ends = ends_of(events, name)
        assert len({end.index for end in ends}) == len(ends)
        if name in cancelled:
            continue
        assert len(ends) == n
        for index in range(n):
            assert tokens_of(events, name, index) == expected(prompt, most, index=index, context=capacity)
    assert model.memory.pool.num_free == num_blocks
    model.memory.check_integrity()


@pytest.mark.parametrize("index", range(3))
def test_no_event_follows_the_end_of_an_answer(index: int) -> None:
    model = ToyModel(num_blocks=10)
    for i in range(5):
        model.loop.add(model.task(f"r{i}", [i + 1 + index] * 9, max_tokens=12, n=2))
    ended: set[tuple[str, int]] = set()
    for event in model.run():
        if isinstance(event, (Token, Finished)):
            assert (event.request_id, event.index) not in ended
        if isinstance(event, Finished):
            ended.add((event.request_id, event.index))
    assert len(ended) == 10


def test_an_answer_computed_again_goes_step_by_step_where_bits_count() -> None:
    """With `stepwise`, pre-emption changes neither the pieces of a prompt nor those of an answer."""
    pieces: dict[str, list[tuple[int, int]]] = {}
    for name, num_blocks in (("room", 64), ("tight", 12)):
        model = ToyModel(num_blocks=num_blocks, max_rows=1, share_prefixes=False)
        model.text_model = replace(model.text_model, stepwise=True)
        seen: set[tuple[str, int, int]] = set()
        run = model.lane.run

        def watched(works, run=run, seen=seen):  # type: ignore[no-untyped-def]
            for work in works:
                step = work.payload
                seen.add((step.sequence.id, step.sequence.num_computed, step.num_new))
            return run(works)

        model.lane.run = watched  # type: ignore[method-assign]
        for i in range(4):
            model.loop.add(model.task(f"r{i}", [i + 1] * 20, max_tokens=20, ignore_eos=True))
        model.run()
        assert (model.loop.scheduler.num_preemptions > 0) == (name == "tight")
        pieces[name] = sorted(seen)  # type: ignore[assignment]
    assert pieces["tight"] == pieces["room"]


def test_a_task_whose_lane_has_gone_ends_at_once() -> None:
    model = ToyModel()
    model.loop.residency.remove("toy")
    (end,) = model.loop.add(model.task("late", [1, 2], max_tokens=5))
    assert isinstance(end, Finished)
    assert end.reason == "cancelled"
    assert len(model.loop.scheduler) == 0
