"""Memory that runs out all the same: who leaves then."""

from __future__ import annotations

import pytest

from kamado.errors import DoesNotFit

from .house import FakeLoaded, House, make_plan


def test_memory_that_runs_out_while_one_is_read_is_made_by_the_idle() -> None:
    house = House(budget=40)
    for name in ("a", "b", "c"):
        house.load(name, 10, pinned=name == "b")
        house.now += 1
    shortages = [MemoryError(), DoesNotFit("more than planned", needed_bytes=1, available_bytes=0)]
    seen: list[list[str]] = []

    def read() -> None:
        seen.append(house.here_by_ledger())
        if shortages:
            raise shortages.pop()

    house.while_reading = read
    house.load("d", 10)
    assert house.here() == ["b", "d"] and seen == [["a", "b", "c", "d"], ["b", "c", "d"], ["b", "d"]]
    house.keeper.unload(house.tenants["d"])
    house.ask("c")
    house.keeper.use(house.tenants["c"])
    shortages += [MemoryError()] * 5
    with pytest.raises(MemoryError):
        house.load("e", 10)
    assert len(shortages) == 4 and house.here() == ["b", "c"]  # b is pinned, c is busy
    shortages[:] = [MemoryError()]
    house.keeper.done(house.tenants["c"])
    house.ask("a")  # comes back in the same way
    assert house.here() == ["a", "b"]


def give_idle(house: House, name: str, size: int) -> None:
    """Let a model have something that nobody uses: adapters, say."""
    loaded = house.tenants[name].loaded
    assert isinstance(loaded, FakeLoaded)
    house.ledger.enter("cpu", name, "adapters", size)
    loaded.idle, loaded.let_go = size, lambda size: house.ledger.leave("cpu", name, "adapters", size)


def idle_bytes(house: House) -> dict[str, int]:
    return {name: tenant.loaded.idle_bytes() for name, tenant in house.tenants.items() if tenant.loaded is not None}


def test_what_is_idle_inside_models_goes_before_a_model_does() -> None:
    house = House(budget=60)
    for name in ("a", "b", "c"):
        house.load(name, 10)
        house.now += 1
        give_idle(house, name, 5)
    house.keeper.use(house.tenants["a"])  # what a busy one does not use goes, too
    house.load("d", 15)  # fits
    assert idle_bytes(house) == {"a": 5, "b": 5, "c": 5, "d": 0}
    house.keeper.unload(house.tenants["d"])
    house.load("e", 24)
    assert idle_bytes(house) == {"a": 5, "b": 0, "c": 0, "e": 0}  # no more than were needed, b's and c's first
    house.keeper.unload(house.tenants["e"])
    give_idle(house, "c", 5)
    plan = house.keeper.plan_of(lambda room: make_plan("f", 31, available=room))
    assert plan.available_bytes == 40  # b would leave, and a and c let go of 5 each
    house.load("f", 31)
    assert house.here_by_ledger() == ["a", "c", "f"] and idle_bytes(house) == {"a": 5, "c": 0, "f": 0}


def test_nothing_is_let_go_of_for_state_alone() -> None:
    house = House(budget=40)
    house.load("a", 10)
    give_idle(house, "a", 10)
    house.load("b", 10, kv=20)
    assert house.tenants["b"].plan.kv_bytes == 10 and idle_bytes(house) == {"a": 10, "b": 0}


def test_a_step_or_a_load_that_runs_out_of_memory_first_gets_what_is_idle_inside() -> None:
    house = House(budget=60)
    house.load("a", 10)
    house.load("b", 10, pinned=True)
    give_idle(house, "a", 5)
    give_idle(house, "b", 5)
    assert house.residency.reclaim("b/lm") and house.here() == ["a", "b"] and idle_bytes(house) == {"a": 0, "b": 0}
    assert house.residency.reclaim("b/lm") and house.here() == ["b"]
    assert not house.residency.reclaim("b/lm")
    give_idle(house, "b", 5)
    shortages = [MemoryError()]

    def read() -> None:
        if shortages:
            raise shortages.pop()

    house.while_reading = read
    house.load("c", 10)
    assert house.here() == ["b", "c"] and idle_bytes(house) == {"b": 0, "c": 0}


def test_only_a_shortage_has_others_leave() -> None:
    house = House(budget=20)
    house.load("a", 10)
    house.broken["b"] = OSError("the disk is gone")
    with pytest.raises(OSError, match="disk"):
        house.load("b", 10)
    assert house.here() == ["a"] and house.reads == ["a", "b"]
