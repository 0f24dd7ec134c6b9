"""Which models are in memory, and which one leaves when another comes.

    out --comes in--> loading --> in --leaves--> leaving --> out         gone: unloaded, for good

Models come in one at a time, in the thread that wants one, first come first served; lanes appear and vanish on the
loop's thread. A model with requests in flight, or pinned, stays; the first in line waits for busy ones. The ledger is
entered by families before they allocate, and left here once a model has let go of its memory, so it is never below what
is held.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from ..contracts import LoadedModel
from ..errors import Cancelled, GenerationFailed, InvalidRequest, KamadoError
from .frames import forget_locals
from .keep_alive import KeepAlive
from .ledger import Ledger
from .line import Line, Waiter
from .parking import Parking
from .plan import Plan
from .residency import Residency
from .room import STEPS, Room
from .shortage import is_shortage, release_cached
from .tenant import LoopThread, Tenant
from .vacancy import TURN, Vacancy


class Keeper:
    """Thread safe."""

    def __init__(
        self,
        ledger: Ledger,
        device: str,
        residency: Residency,
        thread: LoopThread,
        clock: Callable[[], float] = time.monotonic,
        *,
        max_wait_s: float = 0.0,
    ) -> None:
        """`max_wait_s`: how long somebody waits for busy models to become idle, at most."""
        self._ledger = ledger
        self._device = device
        self._room = Room(ledger, device)
        self._residency = residency
        self._thread = thread
        self._clock = clock
        self._tenants: dict[str, Tenant] = {}
        self._parking = Parking(ledger, lambda: list(self._tenants.values()))
        self._line = Line(thread.is_own_thread, clock)
        """Never waited in on the loop's thread, which the first in line waits for."""
        self._changed = threading.Condition(self._line.lock)
        """Guards all tenants; held for moments only."""
        self._vacancy = Vacancy(self._line, self._room, thread, clock, max_wait_s)
        self._keep_alive = KeepAlive(thread, clock, self._line.lock, self._evict)
        residency.reclaimers.append(lambda lane: self.reclaim())

    # ---- requests ----

    def waiter(self, deadline: float | None = None) -> Waiter:
        """Somebody who will `use` a model. `deadline`: a reading of the clock, see Waiter."""
        return self._line.waiter(deadline)

    def use(self, tenant: Tenant, waiter: Waiter | None = None) -> LoadedModel:
        """The model, in memory until `done`; brought back first if it is out, which may take others' place.

        Raises InvalidRequest once it is unloaded; what bringing it back raises: DoesNotFit, GenerationFailed; and what
        `Waiter.wait` raises."""
        if (loaded := self._line.turn(waiter or self.waiter(), lambda: self._taken(tenant))) is not None:
            return loaded
        try:
            with self._changed:
                self._changed.wait_for(lambda: tenant.place != "leaving")
                loaded = self._taken(tenant)
            return loaded or self._bring_back(tenant)
        finally:
            self._line.end()

    def use_now(self, tenant: Tenant) -> LoadedModel | None:
        """`use`; None where that would have to wait. Raises InvalidRequest once it is unloaded."""
        with self._changed:
            return self._taken(tenant)

    def done(self, tenant: Tenant, *, watch: bool = True) -> None:
        """One request less. `watch`: from now on it may have been without one for too long."""
        with self._changed:
            tenant.users -= 1
            tenant.last_used = self._clock()
            if not tenant.users:
                self._vacancy.note_change()
            if watch:
                self._keep_alive.watch(tenant)

    def pin(self, tenant: Tenant) -> None:
        """From now on it stays in memory. Raises as `use` does."""
        self.use(tenant)
        with self._changed:
            tenant.pinned = True
            self._vacancy.note_change()
        self.done(tenant)

    def unpin(self, tenant: Tenant) -> None:
        """It may leave again."""
        with self._changed:
            tenant.pinned = False
            self._vacancy.note_change()
            self._keep_alive.watch(tenant)

    # ---- in ----

    @contextmanager
    def moving(self) -> Iterator[None]:
        """While inside, no other thread brings a model in. Raises what `Line.turn` raises."""
        self._line.turn(self.waiter(), lambda: None)
        try:
            yield
        finally:
            self._line.end()

    def plan_of(self, planned: Callable[[int], Plan]) -> Plan:
        """The plan that `make_room` would give, whether it fits or not; nobody leaves. `planned(available_bytes)` makes
        a plan."""
        here, idle = self._here_and_idle()
        return self._room.choose(planned, here, idle)[0]

    def most_room(self) -> int:
        """Bytes that one model could have if all others left that are not pinned."""
        with self._changed:
            pinned = [tenant.owner for tenant in self._here() if tenant.pinned]
        return self._ledger.budget(self._device) - sum(self._ledger.held(self._device, owner) for owner in pinned)

    def make_room(self, planned: Callable[[int], Plan], check: Callable[[Plan], None] = lambda plan: None) -> Plan:
        """A plan that there is room for now. As far as need be, models let go of what is idle inside them, idle ones
        leave, least recently used first, and busy ones are waited for. Within `moving`. `check(plan)` may raise: it is
        called before any of that, perhaps more than once, and not where nobody else is concerned.

        Raises DoesNotFit, and then nobody has left, and what `Waiter.wait` raises."""
        if self._tenants:
            self._thread.call(lambda: None)  # requests that ended before are known to have ended
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: not any(t.place == "leaving" for t in self._tenants.values()))
                    num_changes = self._vacancy.num_changes
                here, idle = self._here_and_idle()
                plan, leaving = self._room.choose(planned, here, idle)
                is_old = self._vacancy.wait(planned, plan, here, idle, num_changes, check)
                if not is_old and leaving:
                    check(plan)
                if not is_old and all(map(self._evict, leaving)):  # a new request may have come for one of them
                    self._trim([tenant for tenant in here if tenant not in leaving], plan)
                    return plan
        finally:
            with self._changed:
                self._vacancy.end()

    def bring_in(self, tenant: Tenant, load: Callable[[], LoadedModel]) -> LoadedModel:
        """Have `load` read it, and attach it; `done` is to follow. Within `moving`, after `make_room`.

        Where memory runs out all the same, one idle model after another leaves, and it is read again.

        Raises what `load` raises, and InvalidRequest if it was unloaded meanwhile; then it holds nothing."""
        with self._changed:
            self._tenants[tenant.owner] = tenant
            is_first = tenant.needed_bytes is None
            tenant.place = "loading"
            self._share_steps()
        loaded: LoadedModel | None = None
        begin = self._clock()
        try:
            loaded = new = self._read(tenant, load)
            tenant.turn_until = self._clock() + TURN * (self._clock() - begin)
            self._thread.call(lambda: self._attach(tenant, new))
        except BaseException as error:
            forget_locals(error)  # they hold what was read so far
            with self._changed:
                tenant.gone = tenant.gone or is_first
                was_attached, tenant.place = tenant.loaded is not None, "leaving"
            if was_attached:  # Ctrl-C, while this thread waited for the loop's thread
                self._thread.call(lambda: self._end_and_detach(tenant))
                self.done(tenant)
            self._empty(tenant, loaded)
            raise
        return loaded

    # ---- out ----

    def unload(self, tenant: Tenant) -> None:
        """End its requests and give back every byte, for good. On the loop's thread, a model that somebody is bringing
        back is only told; it is dropped as soon as it is there."""

        def leave() -> LoadedModel | None:
            with self._changed:
                tenant.gone = True
                self._vacancy.note_change()
                self._line.wake()
                if tenant.place != "in":
                    return None
                tenant.place = "leaving"
            return self._end_and_detach(tenant)

        if tenant.gone and tenant.owner not in self._tenants:
            return
        with suppress(Cancelled):  # the runtime is closed, and that unloads everything
            self._have_leave(tenant, leave)
            with self._changed:
                if not self._thread.is_own_thread():
                    self._changed.wait_for(lambda: tenant.place == "out")
                self._forget(tenant)

    def reclaim(self) -> bool:
        """Memory ran out: models let go of what is idle inside them, or, if there is nothing, the idle model that was
        not used for longest leaves. False: there is none."""
        here, idle = self._here_and_idle()
        return self._trim(here) or any(self._evict(tenant) for tenant in idle)

    def close(self, stop: Callable[[], None]) -> None:
        """Unload every model; `stop` ends the loop's thread first. Nobody waits for busy ones any more."""
        self._line.close()
        with self.moving():
            stop()
            for tenant in list(self._tenants.values()):
                with self._changed:
                    tenant.gone = True
                    self._changed.wait_for(lambda tenant=tenant: tenant.place != "leaving")  # type: ignore[misc]
                    loaded = self._detach(tenant) if tenant.place == "in" else None
                if loaded is not None:
                    self._empty(tenant, loaded)
                with self._changed:
                    self._forget(tenant)

    # ---- figures ----

    def num_waiting(self) -> int:
        """Requests and loads that wait for a model to come in."""
        return self._line.num_waiting()

    def stats(self) -> dict[str, dict[str, Any]]:
        """By owner; with the figures of its state memory where it is in memory."""
        with self._changed:
            now = self._clock()
            return {owner: tenant.figures(now) for owner, tenant in self._tenants.items() if not tenant.gone}

    def usage(self, tenant: Tenant) -> dict[str, Any]:
        """Figures of its state memory; none while it is out."""
        with self._changed:
            return dict(tenant.loaded.usage()) if tenant.loaded is not None else {}

    # ---- with `_changed` held ----

    def _taken(self, tenant: Tenant) -> LoadedModel | None:
        tenant.check_not_gone()
        if tenant.place != "in" or self._vacancy.is_wanted(tenant):
            return None
        tenant.users += 1
        tenant.last_used = self._clock()
        return tenant.loaded

    def _forget(self, tenant: Tenant) -> None:
        if tenant.gone and tenant.place == "out":
            self._parking.take(tenant)
            self._tenants.pop(tenant.owner, None)

    def _share_steps(self) -> None:
        """While a model is read, the room for steps is its to use; at the end it gets what is left."""
        self._room.share_steps([] if any(t.place == "loading" for t in self._tenants.values()) else self._here())

    def _here(self) -> list[Tenant]:
        return [tenant for tenant in self._tenants.values() if tenant.place == "in"]

    # ---- without it ----

    def _here_and_idle(self) -> tuple[list[Tenant], list[Tenant]]:
        """Who is in memory, and who of them may leave, least recently used first."""
        with self._changed:
            here = self._here()
            for tenant in here:
                tenant.idle_bytes = tenant.loaded.idle_bytes() if tenant.loaded is not None else 0
            idle = [tenant for tenant in here if tenant.why_it_stays() is None]
            return here, sorted(idle, key=lambda tenant: tenant.last_used)

    def _bring_back(self, tenant: Tenant) -> LoadedModel:
        begin, plan, needed = self._clock(), tenant.plan, tenant.needed_bytes or 0

        def planned(available: int) -> Plan:
            tenant.check_not_gone()  # it may have waited
            return replace(plan, available_bytes=available, minimum_bytes=needed)

        try:
            self.make_room(planned)
            loaded = self.bring_in(tenant, lambda: tenant.load(self._parking.take(tenant)))
        except KamadoError:
            raise
        except Exception as error:
            raise GenerationFailed(
                f"{plan.reference} could not be brought back into memory: {type(error).__name__}: {error}"
            ) from error
        tenant.num_returns += 1
        tenant.return_s += self._clock() - begin
        return loaded

    def _read(self, tenant: Tenant, load: Callable[[], LoadedModel]) -> LoadedModel:
        while True:
            self._parking.make_room(tenant)
            try:
                return load()
            except Exception as error:
                if not is_shortage(error, self._device):
                    raise
                forget_locals(error)
                self._ledger.drop(tenant.owner)
                here, idle = self._here_and_idle()
                trimmed = self._trim(here)
                if not any(self._evict(other) for other in idle) and not trimmed:
                    raise
                release_cached(self._device)

    def _attach(self, tenant: Tenant, loaded: LoadedModel) -> None:
        """On the loop's thread."""
        with self._changed:
            if tenant.gone or tenant.place != "loading":
                raise InvalidRequest(f"{tenant.plan.reference} was unloaded while it was read")
            for lane in loaded.lanes:
                self._residency.add(lane, tenant.owner)
            tenant.loaded, tenant.place = loaded, "in"
            tenant.users = 1
            tenant.last_used = self._clock()
            self._share_steps()
            steps = min(tenant.plan.activation_bytes, self._ledger.held(self._device, STEPS))
            tenant.needed_bytes = self._ledger.held(self._device, tenant.owner) + steps
            self._changed.notify_all()

    def _end_and_detach(self, tenant: Tenant) -> LoadedModel:
        """On the loop's thread."""
        tenant.end_requests()
        return self._detach(tenant)

    def _detach(self, tenant: Tenant) -> LoadedModel:
        """On the loop's thread."""
        with self._changed:  # who has it asks `loaded` only while it is not closed
            loaded, tenant.loaded = tenant.loaded, None
        assert loaded is not None
        for lane in loaded.lanes:
            self._residency.remove(lane.name)
        return loaded

    def _empty(self, tenant: Tenant, loaded: LoadedModel | None) -> None:
        """Have it let go of the device's memory; then it is out."""
        try:
            self._parking.empty(tenant, loaded, may_park=not self._thread.is_own_thread())
        finally:
            with self._changed:
                self._ledger.drop(tenant.owner, self._device)
                tenant.place = "out"
                self._forget(tenant)
                self._share_steps()
                self._vacancy.note_change()
                self._changed.notify_all()

    def _trim(self, here: Sequence[Tenant], plan: Plan | None = None) -> bool:
        """Have models let go of what is idle inside them, or of as much as `plan` needs. False: there was nothing."""
        trimmed = False
        for tenant in sorted(here, key=lambda tenant: tenant.last_used):
            if tenant.idle_bytes and (plan is None or self._room.lacks(plan, here)):
                trimmed |= self._thread.call(tenant.trim) > 0
        return trimmed

    def _evict(self, tenant: Tenant, due: Callable[[], bool] = lambda: True) -> bool:
        """Have an idle model leave; it comes back when it is asked for. False: it stays."""

        def leave() -> LoadedModel | None:
            with self._changed:
                if tenant.place != "in" or tenant.why_it_stays() or not due():
                    return None
                tenant.place = "leaving"
                return self._detach(tenant)

        return self._have_leave(tenant, leave)

    def _have_leave(self, tenant: Tenant, leave: Callable[[], LoadedModel | None]) -> bool:
        """Call `leave` on the loop's thread; what it returns is let go of. False: it returned nothing."""
        taken: list[LoadedModel | None] = []
        try:
            self._thread.call(lambda: taken.append(leave()))
        except BaseException:  # Ctrl-C, while this thread waited: nobody else would empty it
            with suppress(Cancelled):
                self._thread.call(lambda: None)  # by now it has been called
            if taken and taken[0] is not None:
                self._empty(tenant, taken[0])
            raise
        if taken[0] is not None:
            self._empty(tenant, taken[0])
        return taken[0] is not None
