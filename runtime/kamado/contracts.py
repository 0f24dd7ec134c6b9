"""The seams of the loop: Work, Task, Lane, Family.

    work()    what a task needs next        (host arithmetic only)
    acquire() the memory it needs for that  (host arithmetic only)
    run()     one batched forward of a lane (the only model call)
    accept()  the result into the task      (host arithmetic only)

Nothing here imports torch, and nothing here knows what a token or a pixel is.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from .events import Event, Finished, FinishReason

if TYPE_CHECKING:
    from pathlib import Path

    from .checkpoint.types import Checkpoint
    from .memory.ledger import Ledger
    from .memory.plan import Plan, PlanOptions
    from .options import Options
    from .quant import Quant
    from .results import Result, Timings
    from .weights.prepared.keeping import Keeping


@dataclass(frozen=True, slots=True)
class Work:
    """One forward that one task needs next."""

    lane: str
    """Name of the loaded component that must run."""
    key: Hashable
    """Works of one lane with equal keys may share a forward."""
    cost: int
    """Units of the lane's step budget that this spends: tokens, latent positions, pixels."""
    payload: Any
    """What the lane needs to compute it; the loop does not look inside."""
    spare: bool = False
    """Whether its task can do without: nothing is freed for it, and where it cannot be run, the task accepts the
    exception as its result."""


class Task(Protocol):
    """One answer in flight. Host code only: no model call, no device synchronization."""

    id: str
    deadline: float | None
    """Clock reading after which the task ends with reason `deadline`."""

    @property
    def lane(self) -> str:
        """The lane that its next work needs. Between two steps it may become another one."""

    @property
    def account(self) -> str:
        """The lane whose model the next work's time counts for: its own, but for a work that only prepares one of
        another lane, before which it runs."""

    def work(self, budget: int) -> Work | None:
        """The next forward, of at most `budget` cost where the task can cut it, or None once finished."""

    def acquire(self, work: Work) -> Work | None:
        """Reserve the state memory that `work` needs. Returns the work to run, which may be smaller than asked where
        known state could be taken over. None: there is no memory now, and nothing was reserved."""

    def victims_needed(self, work: Work, others: Sequence[Task]) -> int | None:
        """How many of `others`, tasks of the same lane and account in the order given, would have to `release` so that
        `acquire` grants `work`. None: all of them would not suffice. Nothing is reserved or released."""

    def release(self) -> None:
        """Give back all state memory. The task stays able to go on, by computing its state again."""

    def holds(self) -> bool:
        """Whether `release` would free anything."""

    def accept(self, result: Any) -> Accepted:
        """Commit the result of the last `work`. Where that was the last, its events end with `Finished`."""

    def finish(self, reason: FinishReason, error: Exception | None = None) -> Finished:
        """End now, from outside (cancelled, deadline, failed). Called at most once; `release` follows."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """What came of a result."""

    events: Sequence[Event]
    spawned: Sequence[Task] = ()
    """Tasks that start now, because of this one (the further answers of an `n > 1` request)."""


class Lane(Protocol):
    """One loaded component that can run a forward."""

    name: str
    step_budget: int
    """The most cost that one forward should take."""
    max_rows: int
    """The most works that one forward should take."""
    interactive: bool
    """Whether what each step gives goes out at once, to somebody who waits for it."""

    def run(self, works: Sequence[Work]) -> Sequence[Any]:
        """Exactly one batched forward: one result a work, in order. All or nothing: when it raises, nothing has
        changed and the works can be run again, also in smaller batches."""

    def ease(self, work: Work) -> Work | None:
        """Another way to compute a work that ran out of memory by itself: one that takes less, and whose result may
        differ a little. None: there is none (any more)."""


class LoadedModel(Protocol):
    """Lanes in memory, and the knowledge of how to turn a request into tasks."""

    plan: Plan
    lanes: Sequence[Lane]
    capabilities: Sequence[str]
    """What it can make: "text", "image", "audio", ..., see `kamado.outputs.KINDS`."""

    def prepare(self, request_id: str, options: Mapping[str, Any], now: float) -> Sequence[Task]:
        """Check the options and make the tasks; `now` is the loop's clock, for deadlines. Runs in the caller's thread.

        Raises InvalidRequest, ContextOverflow."""

    def collect(self, request_id: str, tasks: Sequence[Task], events: Sequence[Event], timings: Timings) -> Result:
        """The result that the events of a finished request amount to. Runs in the caller's thread."""

    def usage(self) -> Mapping[str, Any]:
        """Figures of its state memory, for `Runtime.stats`."""

    def idle_bytes(self) -> int:
        """About what `trim` would give back now. Any thread may ask."""

    def trim(self) -> int:
        """Let go of what no running request uses and the next one can have again (adapters, copies of parts), and leave
        the ledger for it. Returns the bytes. On the loop's thread, between two forwards."""

    def close(self) -> None:
        """Drop every reference to weights and state."""

    def park(self) -> Parked | None:
        """`close`, but with the weights kept in RAM. None: they are not, because there is no way to."""


class Parked(Protocol):
    """Weights of a model that has left its device, in RAM. Made by `LoadedModel.park`, for `LoadEnvironment.parked`."""

    nbytes: int


class Family(Protocol):
    """One kind of checkpoint. Found through the entry point group `kamado.families`.

    `claims`, `describe` and `plan` read header data only and import no torch. One exception: `plan` of a checkpoint
    whose own code was allowed (`PlanOptions.allow_code`) may import torch, and run that code to learn sizes.
    """

    name: str
    claims_last: bool
    """Whether it claims much that other families know better, and so is asked after them."""

    def claims(self, checkpoint: Checkpoint) -> bool:
        """Whether this family can run the checkpoint, judged by its header data."""

    def makes(self, checkpoint: Checkpoint) -> Sequence[str]:
        """What it can make: "text", "image", "audio", ..., see `kamado.outputs.KINDS`."""

    def tasks(self, checkpoint: Checkpoint) -> Sequence[str]:
        """What it can do, by the names that hubs have for tasks: "text-generation", "text-to-speech", ..."""

    def options(self, checkpoint: Checkpoint) -> Options | None:
        """What it can be asked. None: the options of text models (`kamado.requests`) where it makes text, else those of
        pictures (`kamado.picture_requests`)."""

    def describe(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """Facts for `kamado show`: architecture, parameters, context, batching, ..."""

    def plan(self, checkpoint: Checkpoint, options: PlanOptions) -> Plan:
        """What would be loaded where, in how many bytes. Raises UnsupportedCheckpoint, UnsafeCheckpoint,
        InvalidRequest.

        It does not judge whether that fits: `Plan.check` does."""

    def check_requests(
        self, checkpoint: Checkpoint, plan: Plan, requests: Iterable[Mapping[str, Any]], *, offline: bool = False
    ) -> None:
        """Raise what is wrong with a request to the model so planned, the first of several, as far as that can be told
        without weights: InvalidRequest, ContextOverflow, and what finding its files raises. Imports torch."""

    def check_draft(self, checkpoint: Checkpoint, draft: Checkpoint) -> None:
        """Raise InvalidRequest if `draft`, of any family, cannot guess for the model, as far as that can be told
        without weights; and what finding its files raises."""

    def load(self, checkpoint: Checkpoint, plan: Plan, env: LoadEnvironment) -> LoadedModel:
        """Bring the lanes into memory as planned. Raises UnsupportedCheckpoint, UnsafeCheckpoint, and what is wrong
        with `env.request`."""

    def write_quantized(
        self, checkpoint: Checkpoint, quant: Quant, folder: Path, *, offline: bool
    ) -> Mapping[str, int]:
        """Write the checkpoint with weights as `quant` has them into `folder`, which is empty; one tensor at a time.
        Returns what keeps its precision because checkpoints have no place for its form: bytes, by kind.

        Raises UnsupportedCheckpoint for one that is quantized already or a form that cannot be written, and OSError."""

    def compare(self, reference: tuple[Checkpoint, Plan], other: tuple[Checkpoint, Plan]) -> Mapping[str, float]:
        """How far `other`, a quantized form of `reference`, is from it: the figures of `kamado.quality.Quality`. Both
        are loaded as planned, one after the other. Raises UnsupportedCheckpoint for models that cannot be compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadEnvironment:
    """What a family gets from the runtime for loading."""

    ledger: Ledger
    """Every byte that is held on a device is entered here, under `owner`."""
    owner: str
    """Name of this model in the ledger; lane names start with it."""
    parked: Parked | None = None
    """The weights, if they are in RAM; they need not be read then. They are the family's to use up."""
    progress: Callable[[int, int], None] | None = None
    """Called as `progress(done_bytes, total_bytes)` while weights are read."""
    keeping: Keeping | None = None
    """Where weights are kept in the form that they are run in, and found again; None: they are neither."""
    offline: bool = False
    """Whether the network must not be used, also later for what requests name."""
    request: Mapping[str, Any] | None = None
    """Options of a request that will follow. `load` does what `check_requests` does, before it reads weights."""
    deterministic: bool = False
    """Whether outputs must not depend on what was computed before or beside them."""
    speculation: str = "auto"
    """One of `kamado.settings.SPECULATION`."""
    compile: str = "auto"
    """One of `kamado.settings.COMPILE`."""
    draft: Callable[[], LoadedModel | None] | None = None
    """A smaller model of the same family that guesses for this one, while it is in memory; asked between two steps, on
    the loop's thread. None: there is no such model."""
    step_budget: int | None = None
    """Most cost of one forward; None: as the family sees fit."""
    max_rows: int | None = None
    """Most works in one forward; None: as the family sees fit."""
