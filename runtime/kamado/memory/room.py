"""Whether there is room for a model, and who would have to leave for it. Arithmetic; nobody moves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..errors import DoesNotFit
from ..units import format_bytes, format_seconds
from .ledger import Ledger
from .plan import Plan
from .tenant import Tenant

STEPS = "steps"
"""Owner in the ledger of the room for temporary tensors."""
ENOUGH_STATE = 8
"""Rather than be loaded with less than this part of the state that a plan would hold if all idle models left, a model
takes the place of another: one that takes only the shortest requests is of little use."""


class Room:
    """What one device has room for. Thread safe, as far as the ledger is."""

    def __init__(self, ledger: Ledger, device: str) -> None:
        self.ledger = ledger
        self.device = device

    def share_steps(self, here: Sequence[Tenant]) -> None:
        """One forward runs at a time, so models share the room for temporary tensors: the largest peak counts."""
        self.ledger.drop(STEPS)
        peak = max((tenant.plan.activation_bytes for tenant in here), default=0)
        self.ledger.enter(self.device, STEPS, "activations", min(peak, self.ledger.free(self.device)))

    def choose(
        self, planned: Callable[[int], Plan], here: Sequence[Tenant], idle: Sequence[Tenant]
    ) -> tuple[Plan, Sequence[Tenant]]:
        """A plan, and who of `idle` leaves for it: the first ones, until there is room for its minimum, enough state,
        and all weights that there can be room for; but none who could stay all the same. If all are too few, the plan
        does not fit. Before anybody leaves, what is idle inside those who are `here` counts as free: see `lacks`."""
        best, _ = self._planned(planned, here, idle)

        def attempt(leaving: Sequence[Tenant], *, trimming: bool = True) -> Plan | None:
            plan, is_roomy = self._planned(planned, here, leaving, trimming=trimming)
            enough = ENOUGH_STATE * (plan.kv_bytes + plan.state_bytes) >= best.kv_bytes + best.state_bytes
            enough = enough and plan.outside_bytes <= best.outside_bytes
            return plan if plan.minimum_bytes <= plan.available_bytes and is_roomy and enough else None

        if (as_it_is := attempt([], trimming=False)) is not None:
            return as_it_is, []
        for count in range(len(idle) + 1):
            leaving, plan = list(idle[:count]), attempt(idle[:count])
            if plan is None:
                continue
            for tenant in idle[:count]:
                rest = [other for other in leaving if other is not tenant]
                if (with_rest := attempt(rest)) is not None:
                    leaving, plan = rest, with_rest
            return plan, leaving
        return best, idle

    def lacks(self, plan: Plan, here: Sequence[Tenant]) -> bool:
        """Whether the plan needs more than is free beside those who are `here`."""
        peak = max((tenant.plan.activation_bytes for tenant in here), default=0)
        needed = plan.total_bytes + max(peak - plan.activation_bytes, 0)
        return needed > self.ledger.free(self.device) + self.ledger.held(self.device, STEPS)

    def check(self, plan: Plan, staying: Sequence[Tenant], *, waited_s: float = 0.0) -> None:
        """Raise DoesNotFit, and say what stays, if the plan does not fit. `waited_s`: how long that was waited for."""
        if plan.minimum_bytes <= plan.available_bytes or not staying:
            plan.check()
            return
        sizes = {tenant: format_bytes(self.ledger.held(self.device, tenant.owner)) for tenant in staying}
        who = ", ".join(
            f"{tenant.plan.reference} holds {size} ({tenant.why_it_stays() or 'in use'})"
            for tenant, size in sizes.items()
        )
        ways = (
            f"{'Unpin' if tenant.pinned else 'Wait for'} {tenant.plan.reference}: it holds {size}."
            for tenant, size in sizes.items()
        )
        after = f", after waiting for {format_seconds(waited_s)}," if waited_s >= 1 else ""
        raise DoesNotFit(
            f"{plan.reference} needs at least {format_bytes(plan.minimum_bytes)} on {self.device}, but{after} only "
            f"{format_bytes(plan.available_bytes)} may be used: {who}. Unpin or unload one, or wait for its requests.",
            needed_bytes=plan.minimum_bytes,
            available_bytes=plan.available_bytes,
            options=(*ways, *plan.options),
        )

    def _planned(
        self,
        planned: Callable[[int], Plan],
        here: Sequence[Tenant],
        leaving: Sequence[Tenant],
        *,
        trimming: bool = True,
    ) -> tuple[Plan, bool]:
        """The plan once `leaving` have left, and whether those who stay keep all the room for their steps."""
        available = self.ledger.free(self.device) + self.ledger.held(self.device, STEPS)
        available += sum(self.ledger.held(self.device, tenant.owner) for tenant in leaving)
        if trimming:
            available += sum(tenant.idle_bytes for tenant in here if tenant not in leaving)
        staying = max((tenant.plan.activation_bytes for tenant in here if tenant not in leaving), default=0)
        plan = planned(available)
        # Of two peaks the larger one is shared, and the plan counts its own.
        if (more := staying - plan.activation_bytes) > 0:
            plan = planned(max(available - more, 0))
        return plan, plan.total_bytes - plan.activation_bytes + staying <= available
