"""Who brings a model into memory: one at a time, first come first served."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from ..errors import Cancelled, DeadlineExceeded, InvalidRequest, KamadoError

T = TypeVar("T")


class Waiter:
    """Somebody who wants a model in memory, and how long that may take. Thread safe."""

    def __init__(self, lock: threading.RLock, clock: Callable[[], float], deadline: float | None) -> None:
        """`deadline`: a reading of the clock after which waiting is of no use."""
        self.since = clock()
        self._clock = clock
        self._deadline = deadline
        self.waits = False
        """Whether it waits now."""
        self._woken = threading.Condition(lock)
        self._reason: KamadoError | None = None

    def give_up(self, reason: KamadoError | None = None) -> None:
        """It need not wait any more: `wait` raises `reason`. What it is doing already goes on."""
        with self._woken:
            self._reason = reason or Cancelled("the request was cancelled")
            self._woken.notify()

    def wake(self) -> None:
        """Something has changed. With the lock held."""
        self._woken.notify()

    def wait(self, until: float = float("inf")) -> None:
        """Wait to be woken, until the clock shows `until`. With the lock held, which others have meanwhile.

        Raises Cancelled after `give_up`, and DeadlineExceeded."""
        end = until if self._deadline is None else min(until, self._deadline)
        if self._reason is None:
            self.waits = True
            try:
                self._woken.wait(max(min(end - self._clock(), threading.TIMEOUT_MAX), 0))
            finally:
                self.waits = False
        if self._reason is not None:
            raise self._reason
        if self._deadline is not None and self._clock() >= self._deadline:
            raise DeadlineExceeded("the request's deadline passed while it waited for its model to come into memory")


class Line:
    """A lock that is given to those who wait for it in order, and that a thread may take again while it has it."""

    def __init__(self, is_loop_thread: Callable[[], bool], clock: Callable[[], float]) -> None:
        """`is_loop_thread`: whether the caller is the loop's thread, which never waits."""
        self.lock = threading.RLock()
        """Guards the line, and whatever else its owner wants; held for moments only."""
        self.closed = False
        self._is_loop_thread = is_loop_thread
        self._clock = clock
        self._waiting: list[Waiter] = []
        self._holding: list[Waiter] = []
        """Of one thread; more than one where it took the lock again."""
        self._thread: int | None = None

    def num_waiting(self) -> int:
        """How many wait, for their turn or in it."""
        with self.lock:
            return sum(waiter.waits for waiter in (*self._holding, *self._waiting))

    @property
    def first(self) -> Waiter:
        """Whose turn it is."""
        return self._holding[-1]

    def waiter(self, deadline: float | None = None) -> Waiter:
        """Somebody who comes now. `deadline`: see Waiter."""
        return Waiter(self.lock, self._clock, deadline)

    def turn(self, waiter: Waiter, unless: Callable[[], T | None]) -> T | None:
        """Wait for one's turn, which lasts until `end`. What `unless` returns, with the lock held, is returned instead
        if it is not None; it is asked at once, and again whenever those in line are woken.

        Raises what `unless` and `Waiter.wait` raise, and InvalidRequest on the loop's thread if it would have to wait.
        """
        me = threading.get_ident()
        with self.lock:
            if (found := unless()) is not None:
                return found
            if (self._holding or self._waiting) and self._thread != me:
                if self._is_loop_thread():
                    raise InvalidRequest(
                        "another model is being loaded, and a callback on the loop's thread cannot wait for that; ask "
                        "from a thread of your own"
                    )
                self._waiting.append(waiter)
                try:
                    while self._holding or self._waiting[0] is not waiter:
                        waiter.wait()
                        if (found := unless()) is not None:
                            return found
                finally:
                    self._waiting.remove(waiter)
                    self._wake_next()
            self._holding.append(waiter)
            self._thread = me
            return None

    def end(self) -> None:
        """The turn is over."""
        with self.lock:
            self._holding.pop()
            if not self._holding:
                self._thread = None
                self.wake()

    def wake(self) -> None:
        """Have all in line ask again. With the lock held."""
        for waiter in self._waiting:
            waiter.wake()

    def close(self) -> None:
        """Nobody waits any more."""
        with self.lock:
            self.closed = True
            for waiter in (*self._holding, *self._waiting):
                waiter.give_up(Cancelled("the runtime is closed"))

    def _wake_next(self) -> None:
        if self._waiting and not self._holding:
            self._waiting[0].wake()
