"""Models that wait for busy ones: in order, not for ever, and not where that cannot help."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from kamado.errors import Cancelled, DeadlineExceeded, DoesNotFit, InvalidRequest
from kamado.memory.line import Waiter
from kamado.memory.vacancy import TURN

from .house import House


class Asking(threading.Thread):
    """A request that may have to wait: it begins in a thread of its own, and goes on until `done`."""

    def __init__(self, house: House, name: str, waiter: Waiter | None = None) -> None:
        super().__init__(daemon=True)
        self.house, self.name_of_model, self.waiter = house, name, waiter
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.house.keeper.use(self.house.tenants[self.name_of_model], self.waiter)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def came(self) -> None:
        self.join(10)
        assert not self.is_alive() and self.error is None, self.error

    def failed(self, kind: type[Exception], words: str) -> None:
        self.join(10)
        assert isinstance(self.error, kind) and words in str(self.error), self.error

    def waits(self, behind: int = 0) -> None:
        """See that it waits for busy ones, or behind so many others."""
        until(lambda: len(self.house.keeper._line._waiting) == behind)
        until(lambda: bool(self.house.keeper._vacancy._wanted))
        assert self.is_alive()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def full(*names: str, **settings: Any) -> House:
    """Each of 10 bytes, loaded one after the other, in a house for the last two of them."""
    house = House(budget=20, max_wait_s=1000)
    for name in names:
        house.load(name, 10, **settings)
        house.now += 1
    return house


def done(house: House, name: str) -> None:
    house.now += 1
    house.keeper.done(house.tenants[name])


def test_a_request_waits_until_enough_of_the_busy_ones_are_idle() -> None:
    house = full("a", "b", "c")
    for name in ("b", "c"):
        house.keeper.use(house.tenants[name])
    asking = Asking(house, "a")
    asking.waits()
    assert house.here() == ["b", "c"]
    done(house, "c")
    asking.came()
    assert house.here() == ["a", "b"] and house.tenants["a"].users == 1


def test_the_first_load_waits_too() -> None:
    house = full("a", "b", pinned=False)
    for name in ("a", "b"):
        house.keeper.use(house.tenants[name])
    loading = threading.Thread(target=house.load, args=("c", 10), daemon=True)
    loading.start()
    until(lambda: bool(house.keeper._vacancy._wanted))
    done(house, "a")
    loading.join(10)
    assert house.here() == ["b", "c"]


def test_where_waiting_cannot_help_nobody_waits() -> None:
    house = full("a", "b")
    house.keeper.pin(house.tenants["a"])
    house.keeper.use(house.tenants["b"])
    with pytest.raises(DoesNotFit, match=r"a holds 10 B \(pinned\), b holds 10 B \(busy with 1 request\)"):
        house.load("c", 11)
    with pytest.raises(DoesNotFit, match="needs at least 21 B"):
        House(budget=20, max_wait_s=1000).load("d", 21)
    house.keeper.use(house.tenants["a"])
    with pytest.raises(DoesNotFit, match="busy with 1 request"):  # and pinned, which no waiting changes
        house.load("c", 11)


def busy_house() -> House:
    """With b and c in memory, each with a request, and a out of it."""
    house = full("a", "b", "c")
    for name in ("b", "c"):
        house.keeper.use(house.tenants[name])
    return house


def look_again(house: House) -> None:
    """What any change does."""
    house.keeper.unpin(house.tenants["a"])


def test_nobody_waits_longer_than_allowed() -> None:
    house = busy_house()
    asking = Asking(house, "a")
    asking.waits()
    house.now += 1000
    look_again(house)
    asking.failed(DoesNotFit, "but, after waiting for 16 min 40 s, only 0 B may be used: b holds 10 B (busy with 1 req")
    assert house.here() == ["b", "c"]
    house.keeper.use(house.tenants["b"])  # nobody waits for its room any more


@pytest.mark.parametrize("behind", [False, True])
def test_a_deadline_and_giving_up_while_waiting(behind: bool) -> None:
    house = busy_house()
    if behind:
        first = Asking(house, "a")
        first.waits()
    late = Asking(house, "a", house.keeper.waiter(deadline=house.now + 0.05))
    late.waits(behind=behind)
    house.now += 0.1
    late.failed(DeadlineExceeded, "deadline passed while it waited")
    waiter = house.keeper.waiter()
    tired = Asking(house, "a", waiter)
    tired.waits(behind=behind)
    waiter.give_up()
    tired.failed(Cancelled, "cancelled")
    if behind:
        assert first.is_alive()
        done(house, "b")
        first.came()
    else:
        house.keeper.use(house.tenants["b"])


def test_given_up_before_it_waits() -> None:
    house = busy_house()
    waiter = house.keeper.waiter()
    waiter.give_up()
    with pytest.raises(Cancelled):
        house.keeper.use(house.tenants["a"], waiter)


def test_the_loops_thread_neither_waits_nor_stands_in_line() -> None:
    house = busy_house()
    house.thread.own = True
    with pytest.raises(DoesNotFit, match="busy"):
        house.keeper.use(house.tenants["a"])
    house.thread.own = False
    asking = Asking(house, "a")
    asking.waits()
    house.thread.own = True
    house.keeper.use(house.tenants["b"])  # a has to wait a little more
    assert house.keeper.use_now(house.tenants["c"]) is not None
    with pytest.raises(InvalidRequest, match="callback"):
        house.load("d", 1)
    house.thread.own = False
    for name in ("b", "b", "c", "c"):
        done(house, name)
    asking.came()


def small_house(*, read_s: float = 0.0) -> House:
    """With room for one of a, b, c and d, which is d, with a request."""
    house = House(budget=10, max_wait_s=1000)

    def read() -> None:
        house.now += read_s

    house.while_reading = read
    for name in ("a", "b", "c", "d"):
        house.load(name, 10)
    house.keeper.use(house.tenants["d"])
    house.reads.clear()
    return house


def test_first_come_first_served() -> None:
    house = small_house()
    asking = []
    for behind, name in enumerate(("b", "a", "c")):
        asking.append(Asking(house, name))
        asking[-1].waits(behind)
    for leaving, coming in zip(("d", "b", "a"), asking, strict=True):
        done(house, leaving)
        coming.came()
        assert house.here() == [coming.name_of_model]
    assert house.reads == ["b", "a", "c"]


def test_who_waits_for_the_same_model_comes_along() -> None:
    house = small_house(read_s=1)
    first = Asking(house, "a")
    first.waits()
    other = Asking(house, "b")
    other.waits(behind=1)
    second = Asking(house, "a")
    second.waits(behind=2)
    done(house, "d")
    first.came()
    second.came()
    other.waits()
    done(house, "a")
    assert house.here() == ["a"]
    done(house, "a")
    other.came()
    assert house.reads == ["a", "b"]


def test_a_busy_model_gets_no_new_requests_once_its_room_is_wanted_and_its_turn_is_over() -> None:
    house = small_house(read_s=5)
    asking = Asking(house, "a")
    asking.waits()
    house.now = house.tenants["d"].turn_until - 0.1
    house.keeper.use(house.tenants["d"])
    house.now += 0.1
    assert house.keeper.use_now(house.tenants["d"]) is None
    late = Asking(house, "d")
    late.waits(behind=1)
    done(house, "d")
    assert asking.is_alive()
    done(house, "d")
    asking.came()
    late.waits()
    assert house.here() == ["a"] and house.tenants["a"].turn_until == pytest.approx(house.now + TURN * 5, abs=1e-6)
    done(house, "a")
    late.came()


def test_only_those_that_would_leave_are_wanted() -> None:
    house = busy_house()
    asking = Asking(house, "a")
    asking.waits()
    assert house.keeper.use_now(house.tenants["c"]) is not None  # b was not used for longer
    assert house.keeper.use_now(house.tenants["b"]) is None
    done(house, "c")
    done(house, "c")
    asking.came()
    assert house.here() == ["a", "b"]
    assert house.keeper.use_now(house.tenants["b"]) is not None


def test_rather_than_with_weights_elsewhere_for_good_a_model_comes_in_later() -> None:
    house = full("a", "b")
    for name in ("a", "b"):
        house.keeper.use(house.tenants[name])
    done(house, "a")
    loading = threading.Thread(target=house.load, args=("c", 15), kwargs={"least": 2}, daemon=True)
    loading.start()
    until(lambda: bool(house.keeper._vacancy._wanted))
    assert house.here() == ["a", "b"]
    done(house, "b")
    loading.join(10)
    assert house.here() == ["c"] and house.tenants["c"].plan.outside_bytes == 0


def test_with_weights_elsewhere_where_waiting_does_not_help_or_took_too_long() -> None:
    house = full("a", "b")
    house.keeper.pin(house.tenants["a"])
    house.keeper.use(house.tenants["b"])
    loading = threading.Thread(target=house.load, args=("c", 15), kwargs={"least": 0}, daemon=True)
    loading.start()
    until(lambda: bool(house.keeper._vacancy._wanted))  # with b gone it would have 10 of 15 bytes here
    house.now += 1000
    house.keeper.unpin(house.tenants["a"])
    loading.join(10)
    assert house.here() == ["b", "c"] and house.tenants["c"].plan.outside_bytes == 5
    house = full("a", "b")
    house.keeper.pin(house.tenants["a"])
    house.keeper.pin(house.tenants["b"])
    house.load("c", 15, least=0)
    assert house.tenants["c"].plan.outside_bytes == 15


def test_unloading_the_one_that_waits_and_the_one_that_is_waited_for() -> None:
    house = busy_house()
    asking = Asking(house, "a")
    asking.waits()
    late = Asking(house, "b")
    late.waits(behind=1)
    house.keeper.unload(house.tenants["a"])
    asking.failed(InvalidRequest, "a is unloaded")
    late.came()
    house = busy_house()
    asking = Asking(house, "a")
    asking.waits()
    house.keeper.unload(house.tenants["b"])
    asking.came()
    assert house.here() == ["a", "c"]


def test_all_are_pinned_meanwhile() -> None:
    house = busy_house()
    asking = Asking(house, "a")
    asking.waits()
    house.thread.own = True
    for name in ("b", "c"):
        house.keeper.pin(house.tenants[name])
    asking.join(10)
    house.thread.own = False
    asking.failed(DoesNotFit, "only 0 B may be used")


def test_closing_sends_everybody_home() -> None:
    house = busy_house()
    asking = Asking(house, "a")
    asking.waits()
    behind = Asking(house, "a")
    behind.waits(behind=1)
    house.keeper.close(lambda: None)
    asking.failed(Cancelled, "closed")
    behind.failed(Cancelled, "closed")
    assert house.ledger.held() == 0
