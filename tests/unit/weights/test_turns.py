"""Tensors are read one at a time, and free memory goes back now and then."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from kamado.weights import turns
from kamado.weights.turns import BYTES, Turns


def test_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    returned: list[int] = []
    monkeypatch.setattr(turns, "give_back", lambda: returned.append(1))
    each = Turns()
    for _ in range(10):
        with each.one():
            each.add(BYTES // 4)
    assert len(returned) == 2
    with each.one():
        each.add(5 * BYTES)
    assert len(returned) == 3


def test_nobody_else_is_inside_and_failures_leave_it_open() -> None:
    each, inside, most = Turns(), 0, 0

    def read(_: int) -> None:
        nonlocal inside, most
        with each.one():
            inside += 1
            most = max(most, inside)
            threading.Event().wait(0.002)
            inside -= 1

    with pytest.raises(ZeroDivisionError), each.one():
        _ = 1 // 0
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(12)))
    assert most == 1
