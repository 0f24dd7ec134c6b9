"""Which models have their steps recorded, and in which ways."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from kamado.contracts import LoadEnvironment
from kamado.errors import DoesNotFit
from kamado.kernels.gpu import has_kernels
from kamado.kernels.gpu.graphs import CudaGraphs, Recorder
from kamado.memory.ledger import Ledger
from kamado.memory.plan import Plan

from .captured import CapturedSteps, Way
from .fused_step import fused_step
from .needs import BLOCK_TOKENS
from .paged import PagedLane
from .paged_probe import max_error

KIND = "graphs"
"""In the ledger."""


def may_record(plan: Plan, env: LoadEnvironment, *, spare_bytes: int) -> bool:
    """Whether steps of the model so planned may be recorded; then `spare_bytes` for one page more are in the ledger.
    Not where answers must be the same bit for bit: some steps run before a size is recorded."""
    if env.compile == "off" or env.deterministic or plan.outside_bytes or not _has_graphs(plan.device):
        return False
    with suppress(DoesNotFit):
        env.ledger.enter(plan.device, env.owner, KIND, spare_bytes)
        return True
    return False


def captured_steps(lane: PagedLane, model: Any, plan: Plan, env: LoadEnvironment, *, spare_page: int) -> CapturedSteps:
    """For a lane that is being made. `spare_page`: one of its store that no sequence is given."""
    device = lane.device
    ways: list[Way] = [partial(lane.fixed_forward, in_place=False)]
    if has_kernels(device):
        ways.insert(0, partial(lane.fixed_forward, in_place=True))
        fused = fused_step(model, lane.store)
        ways[:0] = [fused] if fused is not None else []
    return CapturedSteps(
        ways,
        _recorder(device),
        max_error=max_error(model.dtype),
        device=device,
        block_tokens=BLOCK_TOKENS,
        spare_page=spare_page,
        max_rows=lane.max_rows,
        is_hooked=_hooks(model),
        account=Account(env.ledger, plan.device, env.owner),
    )


class Account:
    """Keeps what is held in the ledger."""

    def __init__(self, ledger: Ledger, device: str, owner: str) -> None:
        self._place = device, owner, KIND
        self._ledger = ledger
        self._held = 0

    def __call__(self, size: int) -> None:
        """So many bytes are held. Raises DoesNotFit, and then it is as before."""
        if size > self._held:
            self._ledger.enter(*self._place, size - self._held)
        elif size < self._held:
            self._ledger.leave(*self._place, self._held - size)
        self._held = size


def _has_graphs(device: str) -> bool:
    return device.startswith("cuda")


def _recorder(device: Any) -> Recorder:
    return CudaGraphs(device)


def _hooks(model: Any) -> Callable[[], bool]:
    """Whether anybody has hooked a module by now."""
    hooks = [hooks for module in model.modules() for hooks in (module._forward_hooks, module._forward_pre_hooks)]
    return lambda: any(hooks)
