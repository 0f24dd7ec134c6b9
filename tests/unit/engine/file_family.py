"""Models of integers that are read from files, and what tests of several of them have in common."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import kamado
from kamado.checkpoint.types import Checkpoint
from kamado.contracts import LoadEnvironment
from kamado.memory.plan import Plan, PlanOptions

from .toy_family import SlowToy, ToyFamily
from .toys import expected


class FileFamily(ToyFamily):
    """Reads a file before it answers, as families do. Weights are 1000 bytes, whatever the file has."""

    seconds = 0.0

    def plan(self, checkpoint: Checkpoint, options: PlanOptions) -> Plan:
        return replace(super().plan(checkpoint, options), available_bytes=options.budget_bytes)

    def load(self, checkpoint: Checkpoint, plan: Plan, env: LoadEnvironment) -> SlowToy:
        time.sleep(self.seconds)
        (checkpoint.root / "weights").read_bytes()
        return super().load(checkpoint, plan, env)


def wanted(prompt: str, max_tokens: int) -> list[int]:
    return expected([1 + ord(c) % 40 for c in prompt], max_tokens)


def places(runtime: kamado.Runtime) -> dict[str, str]:
    return {owner.split("#")[0]: figures["place"] for owner, figures in runtime.stats()["models"].items()}


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
