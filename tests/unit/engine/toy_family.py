"""A family whose models are made of integers and whose steps take a moment: what `Runtime` needs to load one."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kamado.checkpoint.types import Checkpoint
from kamado.contracts import LoadEnvironment, Task
from kamado.errors import InvalidRequest
from kamado.events import Event, Finished, Token
from kamado.memory.plan import LanePlan, Plan, PlanOptions
from kamado.results import Choice, Result, Timings

from .toys import ToyModel


class SlowToy:
    """A loaded model of integers whose steps take a moment."""

    capabilities: Sequence[str] = ("text",)

    def __init__(self, plan: Plan, owner: str, *, step_s: float = 0.0005) -> None:
        self.plan = plan
        self.step_s = step_s
        self.toy = ToyModel(num_blocks=64)
        lane = self.toy.lane
        lane.name = owner + "/lm"
        self.toy.text_model = replace(self.toy.text_model, lane=lane.name, context_tokens=100)
        run = lane.run

        def slow(works: Any) -> list[Any]:
            time.sleep(self.step_s)
            return run(works)

        lane.run = slow  # type: ignore[method-assign]
        self.lanes = (lane,)
        self.closed = False

    def prepare(self, request_id: str, options: Mapping[str, Any], now: float) -> Sequence[Task]:
        options = dict(options)
        prompt = [1 + ord(c) % 40 for c in options.pop("prompt")]
        deadline_s = options.pop("deadline_s", None)
        _check(options)
        return (self.toy.task(request_id, prompt, deadline=now + deadline_s if deadline_s else None, **options),)

    def collect(self, request_id: str, tasks: Sequence[Task], events: Sequence[Event], timings: Timings) -> Result:
        made = tuple(e.token_id for e in events if isinstance(e, Token))
        end = next(e for e in events if isinstance(e, Finished))
        choice = Choice(index=0, text="", tokens=made, finish_reason=end.reason)
        return Result(request_id=request_id, choices=(choice,), timings=timings)

    def usage(self) -> Mapping[str, Any]:
        return self.toy.memory.usage()

    def idle_bytes(self) -> int:
        return 0

    def trim(self) -> int:
        return 0

    def close(self) -> None:
        self.closed = True


def _check(options: Mapping[str, Any]) -> None:
    if options.get("max_tokens", 1) > 1000:
        raise InvalidRequest("max_tokens must be at most 1000")


class ToyFamily:
    name = "toys"
    loaded: list[SlowToy]

    def __init__(self) -> None:
        self.loaded = []
        self.checked: list[Mapping[str, Any]] = []

    def describe(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        return {"architecture": "Toy"}

    def tasks(self, checkpoint: Checkpoint) -> Sequence[str]:
        return ("text-generation",)

    def options(self, checkpoint: Checkpoint) -> None:
        return None

    def plan(self, checkpoint: Checkpoint, options: PlanOptions) -> Plan:
        lane = LanePlan(lane="lm", device="cpu", dtype="float32", weight_bytes=1000, activation_bytes=0)
        return Plan(
            reference=checkpoint.reference, family="toys", architecture="Toy", device="cpu", dtype="float32",
            quant=None, lanes=(lane,), context_tokens=100, available_bytes=options.budget_bytes, minimum_bytes=1000,
        )  # fmt: skip

    def check_requests(
        self, checkpoint: Checkpoint, plan: Plan, requests: Iterable[Mapping[str, Any]], *, offline: bool = False
    ) -> None:
        for request in requests:
            self.checked.append(request)
            _check(request)

    def load(self, checkpoint: Checkpoint, plan: Plan, env: LoadEnvironment) -> SlowToy:
        _check(env.request or {})
        env.ledger.enter("cpu", env.owner, "weights", 1000)
        model = SlowToy(plan, env.owner)
        self.loaded.append(model)
        if checkpoint.reference == "broken":
            raise OSError("the disk is gone")
        return model
