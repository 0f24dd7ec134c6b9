"""Which models stay in memory: order, pinning, requests, time, and what goes wrong."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from typing import Any

import pytest

from kamado.errors import DoesNotFit, GenerationFailed, InvalidRequest, ModelNotFound

from .house import House, make_plan


def test_the_one_that_was_not_used_for_longest_leaves() -> None:
    house = House(budget=20)
    for name in ("a", "b"):
        house.load(name, 10)
        house.now += 1
    house.ask("a")
    house.load("c", 10)
    assert house.here() == ["a", "c"]
    house.now += 1
    house.ask("b")
    assert house.here() == ["b", "c"]
    assert house.reads == ["a", "b", "c", "b"]
    assert house.tenants["b"].num_returns == 1


def test_only_as_many_leave_as_must() -> None:
    house = House(budget=30)
    for name, size in (("a", 4), ("b", 10), ("c", 10)):
        house.load(name, size)
        house.now += 1
    house.load("d", 6)  # just fits
    assert house.here() == ["a", "b", "c", "d"]
    house.load("e", 12)
    assert house.here() == ["c", "d", "e"]


def test_a_small_one_does_not_leave_beside_a_large_one_in_vain() -> None:
    house = House(budget=22)
    for name, size in (("small", 2), ("large", 18)):
        house.load(name, size)
        house.now += 1
    house.load("other", 18)
    assert house.here() == ["other", "small"]


def test_the_busy_and_the_pinned_stay_and_the_error_says_so() -> None:
    house = House(budget=20)
    house.load("a", 8, pinned=True)
    house.load("b", 10)
    house.keeper.use(house.tenants["b"])
    with pytest.raises(DoesNotFit) as caught:
        house.load("c", 10)
    assert (caught.value.needed_bytes, caught.value.available_bytes) == (10, 2)
    assert "a holds 8 B (pinned), b holds 10 B (busy with 1 request)" in str(caught.value)
    assert caught.value.options == ("Unpin a: it holds 8 B.", "Wait for b: it holds 10 B.", "Take a smaller one.")
    assert house.here() == ["a", "b"]
    house.keeper.done(house.tenants["b"])
    house.load("c", 10)
    assert house.here() == ["a", "c"]
    house.keeper.unpin(house.tenants["a"])
    house.ask("b")
    assert house.here() == ["b", "c"]


def test_nobody_leaves_in_vain() -> None:
    house = House(budget=20)
    house.load("a", 5)
    house.load("b", 5, pinned=True)
    with pytest.raises(DoesNotFit) as caught:
        house.load("c", 16)
    assert caught.value.available_bytes == 15
    with pytest.raises(DoesNotFit, match="needs at least 21 B"):
        House(budget=20).load("d", 21)
    assert house.here() == ["a", "b"]


def test_a_request_that_comes_for_the_chosen_one_in_the_last_moment() -> None:
    house = House(budget=20)
    house.load("a", 10)
    house.now += 1
    house.load("b", 10)
    calls = iter(range(10))

    def request() -> None:
        if next(calls) == 1:  # the first call waits for what has ended, the second one would take a out
            house.keeper.use(house.tenants["a"])

    house.thread.before_call = request
    house.load("c", 10)
    assert house.here() == ["a", "c"]


def test_pinning_brings_back() -> None:
    house = House(budget=10)
    house.load("a", 10)
    house.load("b", 10)
    house.keeper.pin(house.tenants["a"])
    assert house.here() == ["a"]
    with pytest.raises(DoesNotFit, match="pinned"):
        house.keeper.use(house.tenants["b"])
    assert house.here() == ["a"]


def test_the_largest_peak_is_shared_also_where_it_is_another_models() -> None:
    house = House(budget=30)
    house.load("a", 10, peak=10)
    house.load("b", 10, peak=2)
    assert house.here() == ["a", "b"]
    house.load("c", 1, peak=1)  # 21 of weights and 10 for steps would be one too many
    assert house.here() == ["b", "c"]
    assert house.ledger.held(owner="steps") == 2


def test_room_for_state_is_worth_an_eviction_only_where_hardly_any_is_left() -> None:
    house = House(budget=100)
    house.load("a", 50)
    house.load("b", 10, kv=160)
    assert house.here() == ["a", "b"]
    assert house.tenants["b"].plan.kv_bytes == 40
    house = House(budget=100)
    house.load("a", 85)
    house.load("b", 10, kv=160)
    assert house.here() == ["b"]
    assert house.tenants["b"].plan.kv_bytes == 90


def test_it_comes_back_as_it_was() -> None:
    house = House(budget=100)
    first = house.load("a", 10, kv=60)
    house.load("b", 50)
    assert house.here() == ["b"]  # 40 bytes are free, but a's state has its size for good
    house.ask("a")
    assert house.here() == ["a"] and first.plan.kv_bytes == 60


def test_a_plan_counts_what_load_would_take() -> None:
    house = House(budget=20)
    house.load("a", 10)
    house.load("b", 10, pinned=True)

    plan = house.keeper.plan_of(lambda room: make_plan("c", 8, available=room))
    assert plan.available_bytes == 10
    assert house.here() == ["a", "b"]


def test_idle_for_too_long() -> None:
    house = House(budget=20)
    house.load("a", 5, keep_alive_s=10)
    house.load("b", 5)
    house.advance(6)
    house.ask("a")
    house.advance(6)
    assert house.here() == ["a", "b"]
    house.advance(4)
    assert house.here() == ["b"]
    house.advance(1000)
    assert house.here() == ["b"] and house.thread.timers == []
    house.ask("a")
    assert house.here() == ["a", "b"]
    house.keeper.use(house.tenants["a"])
    house.advance(50)
    assert house.here() == ["a", "b"]
    house.keeper.done(house.tenants["a"])
    house.keeper.pin(house.tenants["a"])
    house.advance(50)
    assert house.here() == ["a", "b"]
    house.keeper.unpin(house.tenants["a"])
    house.advance(10)
    assert house.here() == ["b"]


def test_many_requests_need_one_timer() -> None:
    house = House(budget=20)
    house.load("a", 5, keep_alive_s=100)
    for _ in range(50):
        house.ask("a")
    assert len(house.thread.timers) == 1


def test_one_that_must_not_stay_waits_for_its_first_request() -> None:
    house = House(budget=20)
    house.load("a", 5, keep_alive_s=0, watch=False)
    house.advance(5)
    assert house.here() == ["a"]
    house.ask("a")
    house.advance(0)
    assert house.here() == []


def test_unloading_wherever_it_is() -> None:
    house = House(budget=10)
    house.load("a", 10)
    house.load("b", 10)
    for name in ("a", "b"):
        house.keeper.unload(house.tenants[name])
        house.keeper.unload(house.tenants[name])
        with pytest.raises(InvalidRequest, match=f"{name} is unloaded"):
            house.keeper.use(house.tenants[name])
    assert house.here() == [] and house.ledger.held() == 0 and house.keeper.stats() == {}


@pytest.mark.parametrize("own", [False, True])
def test_unloading_one_that_is_being_brought_back(own: bool) -> None:
    house = House(budget=10)
    house.load("a", 10)
    house.load("b", 10)
    reading, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        reading.set()
        assert go_on.wait(10)

    house.while_reading = wait
    errors: list[Exception] = []

    def ask() -> None:
        try:
            house.ask("a")
        except InvalidRequest as error:
            errors.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    assert reading.wait(10)
    house.thread.own = own
    unloading = threading.Thread(target=house.keeper.unload, args=(house.tenants["a"],))
    unloading.start()
    if own:  # the loop's thread must not wait for who waits for it
        unloading.join(10)
        assert not unloading.is_alive()
    go_on.set()
    asking.join(10)
    unloading.join(10)
    assert not asking.is_alive() and not unloading.is_alive()
    assert len(errors) == 1 and house.here() == [] and house.ledger.held() == 0
    assert list(house.keeper.stats()) == ["b"]


def test_the_loops_thread_does_not_wait_for_a_load() -> None:
    house = House(budget=10)
    house.load("a", 5)
    held, go_on = threading.Event(), threading.Event()

    def load() -> None:
        with house.keeper.moving():
            held.set()
            go_on.wait(10)

    loading = threading.Thread(target=load)
    loading.start()
    assert held.wait(10)
    house.thread.own = True
    house.ask("a")  # is there
    with pytest.raises(InvalidRequest, match="callback"):
        house.load("b", 5)
    go_on.set()
    loading.join(10)


@pytest.mark.parametrize(
    ("error", "raised", "says"),
    [
        (OSError("the disk is gone"), GenerationFailed, "a could not be brought back into memory: OSError: the disk"),
        (ModelNotFound("no such file"), ModelNotFound, "no such file"),
        (KeyboardInterrupt("^C"), KeyboardInterrupt, "C"),
    ],
)
def test_one_that_cannot_be_read_again(error: Any, raised: type[BaseException], says: str) -> None:
    house = House(budget=20)
    for name in ("a", "b", "c"):
        house.load(name, 10)
        house.now += 1
    house.broken["a"] = error
    for _ in range(2):
        with pytest.raises(raised, match=says):
            house.ask("a")
    assert house.here() == ["c"]  # b had left for it
    house.ask("b")
    del house.broken["a"]
    house.now += 1
    house.ask("a")
    assert house.here() == ["a", "b"]


def test_one_that_fails_to_load_is_forgotten_with_what_it_had_read() -> None:
    house = House(budget=20)

    class Tensor:
        pass

    kept: list[weakref.ref[Tensor]] = []

    def read() -> Any:
        tensor = Tensor()
        kept.append(weakref.ref(tensor))
        raise OSError("the disk is gone")

    house.while_reading = read
    with pytest.raises(OSError, match="disk") as caught:
        house.load("a", 10)
    gc.collect()
    assert kept[0]() is None and caught.value.__traceback__ is not None
    assert house.ledger.held() == 0 and house.keeper.stats() == {}


@pytest.mark.parametrize("attached", [False, True])
def test_ctrl_c_while_it_is_attached(attached: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(budget=20)
    call, interrupted = house.thread.call, iter([True])
    late: list[Any] = []

    def interrupt(function: Any) -> Any:
        if not next(interrupted, False):
            return call(function)
        if attached:
            call(function)
        else:
            late.append(function)
        raise KeyboardInterrupt

    monkeypatch.setattr(house.thread, "call", interrupt)
    with pytest.raises(KeyboardInterrupt):
        house.load("a", 10)
    assert house.ledger.held() == 0 and not house.residency.has("a/lm") and house.keeper.stats() == {}
    for function in late:
        with pytest.raises(InvalidRequest):
            function()
    assert house.ledger.held() == 0 and not house.residency.has("a/lm")


@pytest.mark.parametrize(("which", "here"), [(0, ["b"]), (1, []), (2, [])])
def test_ctrl_c_while_it_comes_back(which: int, here: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(budget=10)
    house.load("a", 10)
    house.load("b", 10)
    call, calls = house.thread.call, itertools.count()

    def interrupt(function: Any) -> Any:
        result = call(function)
        if next(calls) == which:  # the wait for what has ended, b's leaving, a's coming in
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(house.thread, "call", interrupt)
    with pytest.raises(KeyboardInterrupt):
        house.ask("a")
    assert house.here() == here and house.keeper.stats()["a"]["requests"] == 0
    house.ask("a")
    house.ask("b")
    assert house.here() == ["b"]
    house.keeper.unload(house.tenants["a"])
    house.keeper.unload(house.tenants["b"])
    assert house.ledger.held() == 0


def test_stats_say_where_everything_is() -> None:
    house = House(budget=10)
    house.load("a", 10)
    house.now = 5
    house.load("b", 10, pinned=True)
    house.keeper.use(house.tenants["b"])
    house.now = 12
    stats = house.keeper.stats()
    assert stats["a"] == {
        "place": "out", "pinned": False, "requests": 0, "idle_s": 12, "returns": 0, "return_s": 0.0,
    }  # fmt: skip
    assert stats["b"]["place"] == "memory" and stats["b"]["requests"] == 1 and stats["b"]["idle_s"] == 0
    assert stats["b"]["pages"] == 7 and house.keeper.usage(house.tenants["a"]) == {}


def test_closing_empties_everything() -> None:
    house = House(budget=20)
    house.load("a", 10)
    house.load("b", 10)
    house.load("c", 10)
    stopped: list[bool] = []
    house.keeper.close(lambda: stopped.append(True))
    assert stopped == [True] and house.ledger.held() == 0 and house.keeper.stats() == {}
    with pytest.raises(InvalidRequest):
        house.ask("a")
