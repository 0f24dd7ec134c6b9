"""Which models' weights wait in RAM after they left a GPU."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from ..contracts import LoadedModel, Parked
from .ledger import RAM, Ledger
from .tenant import Tenant


class Parking:
    """Thread safe. The ledger's budget for RAM is the room; without one, nothing waits there."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._lock = threading.Lock()

    def empty(self, tenant: Tenant, loaded: LoadedModel, others: Iterable[Tenant]) -> None:
        """Have the model let go of its device's memory. Then its weights wait in RAM, if there is room: `others`
        that wait there make some, least recently used first."""
        parked: Parked | None = None
        try:
            if not tenant.gone and self._has_room(tenant, others):
                parked = loaded.park()
            else:
                loaded.close()
        finally:
            with self._lock:
                self._ledger.drop(tenant.owner, RAM)
                if parked is not None and parked.nbytes <= self._ledger.free(RAM):
                    self._ledger.enter(RAM, tenant.owner, "parked", parked.nbytes)
                    tenant.parked = parked

    def take(self, tenant: Tenant) -> Parked | None:
        """Its weights, which wait there no longer; None where they do not."""
        with self._lock:
            parked, tenant.parked = tenant.parked, None
            if parked is not None:
                self._ledger.leave(RAM, tenant.owner, "parked", parked.nbytes)
            return parked

    def _has_room(self, tenant: Tenant, others: Iterable[Tenant]) -> bool:
        if not self._ledger.budget(RAM):
            return False
        needed = tenant.plan.weight_bytes
        waiting = sorted((other for other in others if other.parked is not None), key=lambda other: other.last_used)
        if needed > self._ledger.free(RAM) + sum(self._ledger.held(RAM, other.owner) for other in waiting):
            return False
        for other in waiting:
            if needed <= self._ledger.free(RAM):
                break
            self.take(other)
        return True
