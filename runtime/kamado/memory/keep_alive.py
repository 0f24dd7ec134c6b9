"""Models that leave after a time without requests: one timer each, and no polling."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

from ..errors import Cancelled
from .tenant import LoopThread, Tenant


class KeepAlive:
    """Thread safe."""

    def __init__(
        self,
        thread: LoopThread,
        clock: Callable[[], float],
        lock: threading.RLock,
        evict: Callable[[Tenant, Callable[[], bool]], object],
    ) -> None:
        """`evict(tenant, due)` has an idle model leave if `due()` is still so."""
        self._thread = thread
        self._clock = clock
        self._lock = lock
        self._evict = evict

    def watch(self, tenant: Tenant) -> None:
        """See that it leaves when its time has come. With the lock held, after anything that may have made it idle."""
        if tenant.keep_alive_s is None or tenant.has_timer or tenant.place != "in" or tenant.why_it_stays():
            return
        tenant.has_timer = True
        self._thread.later(tenant.last_used + tenant.keep_alive_s, lambda: self._time_is_up(tenant))

    def _time_is_up(self, tenant: Tenant) -> None:
        """A timer's end, on the loop's thread; giving memory back takes a moment, and happens elsewhere."""
        with self._lock:
            tenant.has_timer = False
            if tenant.place != "in" or tenant.why_it_stays():
                return  # whoever makes it idle calls `watch`
            if not self._is_due(tenant):
                self.watch(tenant)
                return

        def evict() -> None:
            with suppress(Cancelled):  # the runtime was closed in between
                if self._evict(tenant, lambda: self._is_due(tenant)) and tenant.draft is not None and tenant.owns_draft:
                    self._evict(tenant.draft, lambda: tenant.place != "in")

        threading.Thread(target=evict, name="kamado-keeper", daemon=True).start()

    def _is_due(self, tenant: Tenant) -> bool:
        return tenant.keep_alive_s is not None and self._clock() >= tenant.last_used + tenant.keep_alive_s
