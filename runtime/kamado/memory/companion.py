"""A draft, as the model sees it for which it guesses: a model that is welcome, and that nobody waits for.

It is never busy with what it guesses, so it leaves when its room is needed, and answers go on without it. It comes back
with a request once there is room that nobody has to leave.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from ..contracts import LoadedModel
from ..errors import KamadoError
from .keeper import Keeper
from .ledger import Ledger
from .plan import Plan
from .tenant import Tenant

_STEP = 16
"""Tokens of KV cache are told in multiples of this."""


def draft_share(planned: Callable[[int], Plan], draft: Callable[[int], Plan], room: int) -> tuple[int, int]:
    """(tokens of KV cache that a draft is to hold, bytes that it may take with its steps): as many tokens as the model
    beside it, whose answers it reads as well, and no longer steps than the model has room for. `planned` and `draft`
    make plans of each for so many bytes; `room`: what there is for both."""
    alone = draft(room)
    left = max(room - (alone.total_bytes - alone.activation_bytes - alone.kv_bytes), 0)
    model = planned(left)
    each = model.kv_bytes_per_token + alone.kv_bytes_per_token
    both = (max(left - model.total_bytes, 0) + model.kv_bytes) // max(each, 1)
    tokens = max(min(model.kv_tokens, both) // _STEP * _STEP, _STEP)
    return tokens, max(room - model.held_weight_bytes - tokens * model.kv_bytes_per_token, 0)


class Companion:
    """Thread safe."""

    def __init__(self, keeper: Keeper, ledger: Ledger, tenant: Tenant) -> None:
        """`tenant`: the draft, on one device with the model."""
        self.tenant = tenant
        self._keeper = keeper
        self._ledger = ledger
        self._lock = threading.Lock()
        self._is_returning = False

    def loaded(self) -> LoadedModel | None:
        """It, while it is in memory. On the loop's thread."""
        return self.tenant.loaded

    def wake(self) -> None:
        """A request has come for which it may guess. Returns at once."""
        tenant = self.tenant
        with suppress(KamadoError):  # unloaded, or the runtime is being closed: requests do without
            if self._keeper.use_now(tenant) is not None:
                self._keeper.done(tenant, watch=False)
                return
        with self._lock:
            if self._is_returning or tenant.gone or tenant.place != "out" or not self._has_room():
                return
            self._is_returning = True
        threading.Thread(target=self._return, name="kamado-keeper", daemon=True).start()

    def _has_room(self) -> bool:
        """Whether it could come without anybody leaving."""
        tenant = self.tenant
        return tenant.needed_bytes is not None and tenant.needed_bytes <= self._ledger.free(tenant.plan.device)

    def _return(self) -> None:
        try:
            with suppress(KamadoError):  # somebody was quicker, so that it would have to wait, or it cannot be read
                self._keeper.use(self.tenant, self._keeper.waiter(time.monotonic()))
                self._keeper.done(self.tenant)
        finally:
            self._is_returning = False
