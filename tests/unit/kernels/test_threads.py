"""With how many threads a short call runs, on machines that others use too."""

from __future__ import annotations

from collections.abc import Callable

from kamado.kernels.threads import AGAIN, SOON, ThreadCount


def played(count: ThreadCount, calls: int, seconds: Callable[[int], float], kind: int = 1, most: int = 4) -> list[int]:
    """The numbers that were chosen for calls that take so long with so many threads."""
    chosen = []
    for _ in range(calls):
        threads = count.choose(kind, most)
        count.took(kind, threads, most, seconds(threads))
        chosen.append(threads)
    return chosen


def quiet(threads: int) -> float:
    return 1 / threads


def full(threads: int) -> float:
    return 1.5 if threads == 1 else 7.0


def test_all_threads_where_the_machine_is_quiet() -> None:
    chosen = played(ThreadCount(), 1000, quiet)
    assert chosen[: SOON + 1] == [4] * (SOON + 1) and chosen[SOON + 1] == 1
    assert chosen.count(1) <= 1 + 1000 // AGAIN


def test_one_thread_where_others_have_the_cores() -> None:
    count = ThreadCount()
    assert played(count, SOON + 20, full).count(4) == SOON + 1
    assert played(count, 1000, full).count(4) <= 1000 // AGAIN


def test_it_follows_when_the_machine_fills_and_empties() -> None:
    count = ThreadCount()
    played(count, 300, quiet)
    assert played(count, 40, full)[-20:] == [1] * 20
    assert played(count, AGAIN + 40, quiet)[-20:] == [4] * 20


def test_a_single_slow_call_changes_nothing() -> None:
    count = ThreadCount()
    played(count, 40, quiet)
    for _ in range(6):
        assert played(count, 1, full) == [4]
        assert played(count, 10, quiet) == [4] * 10


def test_kinds_are_apart_and_one_thread_is_one() -> None:
    count = ThreadCount()
    played(count, 50, full, kind=1)
    assert count.choose(2, 4) == 4
    assert played(count, 50, quiet, kind=3, most=1) == [1] * 50
