"""Waiting for busy models to become idle, so that another one can have their room.

A model that is waited for gets no further requests: they stand in line behind who waits, or a busy one would never be
idle. But for a while after it came in itself it takes all that come, or two busy models would spend their time leaving
for each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..errors import Cancelled
from .line import Line
from .plan import Plan
from .room import Room
from .tenant import LoopThread, Tenant

TURN = 2.0
"""A model takes new requests for at least so many times what reading it took."""


class Vacancy:
    """What the first in line waits for. Its methods are called with the line's lock held, but for `wait`."""

    def __init__(
        self, line: Line, room: Room, thread: LoopThread, clock: Callable[[], float], max_wait_s: float
    ) -> None:
        self.num_changes = 0
        """How often somebody could leave, or stays, who did not before."""
        self._line = line
        self._room = room
        self._thread = thread
        self._clock = clock
        self._max_wait_s = max_wait_s
        self._wanted: set[Tenant] = set()

    def note_change(self) -> None:
        """Whoever waits is to look again."""
        self.num_changes += 1
        if self._wanted:
            self._line.first.wake()

    def is_wanted(self, tenant: Tenant) -> bool:
        """Whether a new request for it has to stand in line. One of the loop's thread never does: it cannot wait."""
        return tenant in self._wanted and self._clock() >= tenant.turn_until and not self._thread.is_own_thread()

    def end(self) -> None:
        """The first in line waits no more."""
        if self._wanted:
            self._wanted.clear()
            self._line.wake()

    def wait(
        self,
        planned: Callable[[int], Plan],
        plan: Plan,
        here: Sequence[Tenant],
        idle: Sequence[Tenant],
        num_changes: int,
        check: Callable[[Plan], None],
    ) -> bool:
        """The first in line waits for a change since there were `num_changes`, if `plan` does not fit even if all idle
        ones leave, or fits only with weights that do not lie on the device, which once busy ones have left would.
        `planned`, `here`, `idle`: see `Room.choose`, which chose it. `check` is called first, with the plan of later.
        False: it is to be taken as it is.

        Raises DoesNotFit where it does not fit and waiting would not help or has taken too long, and what `Waiter.wait`
        raises."""
        fits = plan.minimum_bytes <= plan.available_bytes
        if fits and not plan.outside_bytes:
            return False
        waiter, staying = self._line.first, [tenant for tenant in here if tenant not in idle]
        busy = sorted((tenant for tenant in staying if not tenant.pinned), key=lambda tenant: tenant.last_used)
        later, leaving = self._room.choose(planned, here, [*idle, *busy])
        helps = later.minimum_bytes <= later.available_bytes and (not fits or later.outside_bytes < plan.outside_bytes)
        until = waiter.since + self._max_wait_s
        if not helps or self._clock() >= until or self._thread.is_own_thread():
            self._room.check(plan, staying, waited_s=self._clock() - waiter.since if helps else 0.0)
            return False
        check(later)
        with self._line.lock:
            if self._line.closed:
                raise Cancelled("the runtime is closed")
            self._wanted.update(tenant for tenant in leaving if tenant in busy)
            while self.num_changes == num_changes and self._clock() < until:
                waiter.wait(until)
        return True
