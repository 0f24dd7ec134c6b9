"""Models that are nothing but sizes, a loop's thread that is the caller's, and a clock that is set by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kamado.contracts import Lane, Task, Work
from kamado.events import Event
from kamado.memory.keeper import Keeper
from kamado.memory.ledger import Ledger
from kamado.memory.plan import LanePlan, Plan
from kamado.memory.residency import Residency
from kamado.memory.tenant import Tenant
from kamado.results import Result, Timings

T = TypeVar("T")


def make_plan(
    reference: str, size: int, *, peak: int = 0, kv: int = 0, available: int = 0, least: int | None = None
) -> Plan:
    """`least`: of the weights, what must be held; what there is no room for lies elsewhere."""
    outside = 0 if least is None else min(max(size + peak + kv - available, 0), size - least)
    lane = LanePlan(
        lane="lm", device="cpu", dtype="float32", weight_bytes=size, activation_bytes=peak, outside_bytes=outside
    )
    return Plan(
        reference=reference, family="sizes", architecture="Size", device="cpu", dtype="float32", quant=None,
        lanes=(lane,), context_tokens=0, kv_tokens=kv, kv_bytes_per_token=1, available_bytes=available,
        minimum_bytes=(size if least is None else least) + peak + min(kv, 1), options=("Take a smaller one.",),
    )  # fmt: skip


class FakeThread:
    """See LoopThread. Timers go off when `Clock.advance` passes them."""

    def __init__(self) -> None:
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.own = False
        self.before_call: Callable[[], None] = lambda: None
        self._lock = threading.RLock()

    def call(self, function: Callable[[], T]) -> T:
        self.before_call()
        with self._lock:
            return function()

    def later(self, due: float, function: Callable[[], None]) -> None:
        self.timers.append((due, function))

    def is_own_thread(self) -> bool:
        return self.own


@dataclass
class FakeLane:
    name: str
    step_budget: int = 1
    max_rows: int = 1
    interactive: bool = True

    def run(self, works: Sequence[Work]) -> Sequence[Any]:
        return [None for _ in works]


@dataclass
class FakeLoaded:
    plan: Plan
    lanes: Sequence[Lane]
    capabilities: Sequence[str] = ("text",)
    closed: bool = False
    idle: int = 0
    let_go: Callable[[int], None] = lambda size: None

    def prepare(self, request_id: str, options: Mapping[str, Any], now: float) -> Sequence[Task]:
        raise AssertionError("a model that is nothing but a size takes no requests")

    def collect(self, request_id: str, tasks: Sequence[Task], events: Sequence[Event], timings: Timings) -> Result:
        raise AssertionError("a model that is nothing but a size gives no results")

    def idle_bytes(self) -> int:
        assert not self.closed
        return self.idle

    def trim(self) -> int:
        size, self.idle = self.idle, 0
        self.let_go(size)
        return size

    def usage(self) -> Mapping[str, Any]:
        assert not self.closed
        return {"pages": 7}

    def close(self) -> None:
        assert not self.closed
        self.closed = True


@dataclass
class House:
    """A keeper, and all that it keeps."""

    budget: int
    max_wait_s: float = 0.0
    now: float = 0.0
    thread: FakeThread = field(default_factory=FakeThread)
    residency: Residency = field(default_factory=Residency)
    reads: list[str] = field(default_factory=list)
    """Names of models, each time they are read."""
    broken: dict[str, Exception] = field(default_factory=dict)
    while_reading: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.ledger = Ledger({"cpu": self.budget})
        self.keeper = Keeper(
            self.ledger, "cpu", self.residency, self.thread, lambda: self.now, max_wait_s=self.max_wait_s
        )
        self.tenants: dict[str, Tenant] = {}

    def load(
        self,
        name: str,
        size: int,
        *,
        peak: int = 0,
        kv: int = 0,
        least: int | None = None,
        watch: bool = True,
        **settings: Any,
    ) -> Tenant:
        """As `Runtime.load` does it."""
        with self.keeper.moving():
            plan = self.keeper.make_room(
                lambda room: make_plan(
                    name, size, peak=peak, kv=max(min(kv, room - size - peak), min(kv, 1)), available=room, least=least
                )
            )
            tenant = Tenant(owner=name, plan=plan, load=lambda parked: self.read(name, plan), **settings)
            self.keeper.bring_in(tenant, lambda: tenant.load(None))
            self.keeper.done(tenant, watch=watch)
        self.tenants[name] = tenant
        return tenant

    def read(self, name: str, plan: Plan) -> FakeLoaded:
        self.ledger.enter("cpu", name, "weights", plan.held_weight_bytes)
        self.reads.append(name)
        if name in self.broken:
            raise self.broken[name]
        self.ledger.enter("cpu", name, "kv", plan.kv_bytes)
        self.while_reading()
        return FakeLoaded(plan, (FakeLane(f"{name}/lm"),))

    def here_by_ledger(self) -> list[str]:
        """Names of the models that hold memory, also those that are still read."""
        return sorted(self.ledger.snapshot()["cpu"].keys() - {"steps"})

    def ask(self, name: str) -> None:
        """One request from its beginning to its end, which takes a second."""
        self.keeper.use(self.tenants[name])
        self.now += 1
        self.keeper.done(self.tenants[name])

    def advance(self, seconds: float) -> None:
        self.now += seconds
        due = [timer for timer in self.thread.timers if timer[0] <= self.now]
        self.thread.timers = [timer for timer in self.thread.timers if timer[0] > self.now]
        for _, function in due:
            function()
        for thread in threading.enumerate():
            if thread.name == "kamado-keeper":
                thread.join(10)

    def here(self) -> list[str]:
        """Names of the models in memory; everything else must say the same."""
        names = sorted(name for name, tenant in self.tenants.items() if tenant.place == "in")
        assert names == sorted(name for name in self.tenants if self.residency.has(f"{name}/lm"))
        held = sum(self.tenants[name].plan.held_weight_bytes + self.tenants[name].plan.kv_bytes for name in names)
        peak = max((self.tenants[name].plan.activation_bytes for name in names), default=0)
        assert self.ledger.held() == min(held + peak, self.budget)
        return names
