"""Which models' weights wait in RAM after they left a GPU."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ..contracts import LoadedModel, Parked
from ..errors import DoesNotFit
from .ledger import RAM, Ledger
from .tenant import Tenant

_KIND = "parked"


class Parking:
    """Thread safe. The ledger's budget for RAM is the room; without one, nothing waits there. Weights that a model in
    memory has in RAM go before."""

    def __init__(self, ledger: Ledger, tenants: Callable[[], list[Tenant]]) -> None:
        """`tenants`: all models, wherever they are."""
        self._ledger = ledger
        self._tenants = tenants
        self._lock = threading.Lock()

    def empty(self, tenant: Tenant, loaded: LoadedModel | None, *, may_park: bool) -> None:
        """Have the model let go of its device's memory. If there is room, and it `may_park`, its weights then wait in
        RAM: others that wait there make some, least recently used first."""
        parked: Parked | None = None
        reserved = 0
        try:
            if loaded is not None and may_park and not tenant.gone and not tenant.plan.outside_bytes:
                reserved = self._reserve(tenant)
            if loaded is not None and reserved:
                parked = loaded.park()
            elif loaded is not None:
                loaded.close()
        finally:
            with self._lock:
                self._ledger.drop(tenant.owner, RAM)
                if parked is not None and parked.nbytes <= self._ledger.free(RAM):
                    self._ledger.enter(RAM, tenant.owner, _KIND, parked.nbytes)
                    tenant.parked = parked

    def take(self, tenant: Tenant) -> Parked | None:
        """Its weights, which wait there no longer; None where they do not."""
        with self._lock:
            return self._taken(tenant)

    def make_room(self, tenant: Tenant) -> None:
        """For weights that the model will have in RAM while it is in memory."""
        if tenant.plan.tier == RAM:
            with self._lock:
                self._drop_others(tenant.plan.outside_bytes)

    def _reserve(self, tenant: Tenant) -> int:
        """Room for its weights, entered in the ledger. Returns the bytes; 0: there is none."""
        needed = tenant.plan.weight_bytes
        with self._lock:
            if not self._ledger.budget(RAM) or not self._drop_others(needed):
                return 0
            try:
                self._ledger.enter(RAM, tenant.owner, _KIND, needed)
            except DoesNotFit:  # somebody was quicker
                return 0
        return needed

    def _drop_others(self, needed: int) -> bool:
        """Have as many go as make room, unless all were too few."""
        parked = [other for other in self._tenants() if other.parked is not None]
        waiting = sorted(parked, key=lambda other: other.last_used)
        if needed > self._ledger.free(RAM) + sum(self._ledger.held(RAM, other.owner) for other in waiting):
            return False
        for other in waiting:
            if needed <= self._ledger.free(RAM):
                break
            self._taken(other)
        return True

    def _taken(self, tenant: Tenant) -> Parked | None:
        parked, tenant.parked = tenant.parked, None
        if parked is not None:
            self._ledger.leave(RAM, tenant.owner, _KIND, parked.nbytes)
        return parked
