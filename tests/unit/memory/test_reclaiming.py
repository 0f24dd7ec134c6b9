"""Memory that runs out all the same: who leaves then."""

from __future__ import annotations

import pytest

from kamado.errors import DoesNotFit

from .house import House


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


def test_only_a_shortage_has_others_leave() -> None:
    house = House(budget=20)
    house.load("a", 10)
    house.broken["b"] = OSError("the disk is gone")
    with pytest.raises(OSError, match="disk"):
        house.load("b", 10)
    assert house.here() == ["a"] and house.reads == ["a", "b"]
