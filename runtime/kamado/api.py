"""The public Python interface: Runtime and Model. Importing it loads no torch; loading a model does."""

from __future__ import annotations

import itertools
import math
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, Unpack

from .checkpoint.inspect import inspect as inspect_checkpoint
from .checkpoint.own_code import allowed_name
from .checkpoint.parts import with_parts
from .checkpoint.types import Checkpoint
from .checkpoint.unchanged import check_unchanged, marks
from .contracts import Family, LoadedModel, LoadEnvironment, Parked
from .engine.loop import Loop
from .engine.session import Session
from .errors import DoesNotFit, InvalidRequest
from .families import check_used, component_names, find
from .memory.companion import Companion, draft_share
from .memory.devices import DeviceFacts, cpu_facts, default_budget, resolve_device
from .memory.keeper import Keeper
from .memory.ledger import RAM, Ledger
from .memory.plan import Plan, PlanOptions
from .memory.residency import Residency
from .memory.shortage import load_failed, told
from .memory.tenant import Tenant
from .model import Draft, as_request
from .model import Model as Model
from .quant import parse_quant
from .results import Result
from .settings import COMPILE, SPECULATION, LoadSettings, PlanSettings, check_names, choice_of, seconds
from .units import check_counts, format_bytes, parse_bytes
from .weights.prepared.keeping import Keeping

MAX_WAIT_S = 300.0
"""So long a model that is to come into memory waits for busy ones, unless told otherwise."""


class Runtime:
    """One device, one memory budget, one loop; any number of models and requests. Thread safe.

    Creating it starts nothing heavy: torch is imported with the first model, and the loop's thread starts then.
    """

    def __init__(
        self,
        device: str = "auto",
        memory: str | int | None = None,
        *,
        deterministic: bool = False,
        max_wait: float | None = MAX_WAIT_S,
    ) -> None:
        """`device`: auto, cpu, cuda, cuda:1, mps. `memory`: the most to hold on it, like "20GiB"; None: most of what is
        available now. `deterministic`: every request runs in forwards of its own, in the same pieces, so that its
        output is bit-equal whatever else runs; batching is lost. `max_wait`: seconds that a model that is to come into
        memory waits for busy ones to become idle, at most; 0: not at all, None or -1: as long as it takes.

        Raises InvalidRequest."""
        self.device: DeviceFacts = resolve_device(device)
        self.budget_bytes = parse_bytes(memory) if memory is not None else default_budget(self.device)
        self.deterministic = deterministic
        self.ledger = Ledger({self.device.name: self.budget_bytes, RAM: _ram_budget(self.device)})
        self._residency = Residency()
        self._loop = Loop(self._residency, device=self.device.name)
        self._session = Session(self._loop, _inference_mode)
        wait_s = seconds("max_wait", max_wait)
        self._keeper = Keeper(
            self.ledger,
            self.device.name,
            self._residency,
            self._session,
            self._loop.clock,
            max_wait_s=math.inf if wait_s is None else wait_s,
        )
        self._keeping = Keeping()
        self._owners = itertools.count(1)
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:  # whoever pressed Ctrl-C does not want to wait
            self._keeping.abandon()
        self.close()

    def inspect(self, reference: str | Path, *, offline: bool = False) -> Checkpoint:
        """Header data of a checkpoint, pulled if need be.

        Raises ModelNotFound, UnsupportedCheckpoint, UnsafeCheckpoint."""
        return inspect_checkpoint(str(reference), offline=offline)

    def plan(self, reference: str | Path, **settings: Unpack[PlanSettings]) -> Plan:
        """What `load` would do, in bytes, from header data alone. Whether it fits is for `Plan.check` to say. What idle
        models hold counts as free as far as `load` would take it. `settings`: see `PlanSettings`.

        With `allow_code`, sizes are asked of the checkpoint's own classes, which runs its code."""
        check_names("plan", settings, PlanSettings)
        checkpoint, family, planned = self._planned(reference, settings)
        if settings.get("draft") is not None:
            planned = self._draft_plans(checkpoint, family, planned, settings)[1]
        return self._keeper.plan_of(planned)

    def check(
        self, reference: str | Path, requests: Iterable[Mapping[str, Any]], **settings: Unpack[PlanSettings]
    ) -> None:
        """Raise what is wrong with requests to a model, the first of them, as far as that can be told without weights:
        unknown options, impossible values, files that cannot be read. Nothing is loaded, but its libraries are
        imported. They are taken one by one. `settings`: what it will be loaded with, see `PlanSettings`.

        Raises what `Model.submit` and `plan` raise."""
        check_names("check", settings, PlanSettings)
        checkpoint, family, planned = self._planned(reference, settings)
        plan = self._keeper.plan_of(planned)
        family.check_requests(checkpoint, plan, map(as_request, requests), offline=settings.get("offline", False))

    def load(self, reference: str | Path, **settings: Unpack[LoadSettings]) -> Model:
        """Load a model, pulling it first if need be. Idle models leave memory for it, least recently used first, and
        come back with their next request; busy ones are waited for, see `max_wait`. `settings`: see `LoadSettings`.

        Raises ModelNotFound, UnsupportedCheckpoint, UnsafeCheckpoint, DoesNotFit, InvalidRequest.
        """
        check_names("load", settings, LoadSettings)
        return self._load(reference, settings)

    def _load(self, reference: str | Path, settings: LoadSettings, most_bytes: int | None = None) -> Model:
        """`most_bytes`: what it may take at most; None: what there is."""
        stay_s = seconds("keep_alive", settings.get("keep_alive"))
        budget, rows = settings.get("step_budget"), settings.get("max_rows")
        speculation = choice_of("speculation", settings.get("speculation", "auto"), SPECULATION)
        compiling = choice_of("compile", settings.get("compile", "auto"), COMPILE)
        if speculation == "off" and settings.get("draft") is not None:
            raise InvalidRequest('speculation is "off", so a draft has nothing to do; leave one of the two out')
        check_counts(kv_tokens=settings.get("kv_tokens"), step_budget=budget, max_rows=rows)
        keeping = self._keeping if settings.get("prepared", True) and self._keeping.is_on else None
        checkpoint, family, planned = self._planned(reference, settings, most_bytes)
        check_used(checkpoint, family, settings)
        request, offline = settings.get("request"), settings.get("offline", False)
        unchecked = [request] if request is not None else []

        def check(plan: Plan) -> None:
            while unchecked:
                family.check_requests(checkpoint, plan, [unchecked.pop()], offline=offline)

        with self._keeper.moving(), ExitStack() as undone:
            if self._closed:
                raise InvalidRequest("the runtime is closed")
            draft: Draft | None = None
            if settings.get("draft") is not None:
                check(self._keeper.plan_of(planned))
                own, _, most = self._draft_plans(checkpoint, family, planned, settings)
                draft = undone.enter_context(self._draft(settings, own, most))
                planned = _beside(self._planned(reference, settings)[2], draft.model.plan)
            plan = self._keeper.make_room(planned, check)
            environment = LoadEnvironment(
                ledger=self.ledger,
                owner=f"{plan.reference}#{next(self._owners)}",
                keeping=keeping,
                offline=offline,
                deterministic=self.deterministic,
                step_budget=budget,
                max_rows=1 if self.deterministic else rows,
                speculation=speculation,
                compile=compiling,
                draft=draft.companion.loaded if draft is not None else None,
            )
            first = replace(environment, progress=settings.get("progress"), request=request)
            tenant = self._tenant(family, checkpoint, plan, environment)
            tenant.keep_alive_s, tenant.pinned = stay_s, settings.get("pinned", False)
            info = dict(family.describe(checkpoint))
            if draft is not None:
                tenant.draft, tenant.owns_draft = draft.companion.tenant, draft.is_own
                info["draft"] = draft.model.reference
            self._keeper.bring_in(tenant, lambda: _loaded(family, checkpoint, plan, first))
            tasks = family.tasks(checkpoint)
            takes = family.options(checkpoint)
            model = Model(self, self._keeper, tenant, checkpoint, info, draft, tasks=tasks, takes=takes)
            self._keeper.done(tenant, watch=stay_s != 0)  # one that must not stay at all waits for its first request
            return model

    def stats(self) -> dict[str, Any]:
        """The ledger by owner, the queue, who waits for a model to come in, steps and realised batch sizes by lane,
        state memory by model."""
        loop = self._loop
        return {
            "device": self.device.name,
            "budget_bytes": self.budget_bytes,
            "held_bytes": self.ledger.held(self.device.name),
            "ledger": self.ledger.snapshot(),
            "queued": len(loop.scheduler),
            "waiting": self._keeper.num_waiting(),
            "preemptions": loop.scheduler.num_preemptions,
            **loop.forwards.figures(),
            "models": self._keeper.stats(),
        }

    def close(self) -> None:
        """Cancel every request, unload every model, end the loop's thread. Prepared weights that are still to be kept
        are written first."""
        self._closed = True
        self._keeping.finish()
        self._keeper.close(self._session.close)

    def _planned(
        self, reference: str | Path, settings: PlanSettings, most_bytes: int | None = None
    ) -> tuple[Checkpoint, Family, Callable[[int], Plan]]:
        """The checkpoint, its family, and plans for so many bytes, but no more than `most_bytes`. What could be in
        memory as a whole if others left waits for that: it is never loaded with weights outside: they would stay so."""
        allowed, offline = allowed_name(settings.get("allow_code")), settings.get("offline", False)
        found = self.inspect(reference, offline=offline)
        components = settings.get("components")
        known = component_names(found) if components else ()
        checkpoint = with_parts(found, components, settings.get("base"), known=known, offline=offline)
        family, options = find(checkpoint), self._plan_options(settings, allowed)
        if options.offload == "auto":
            whole = replace(options, offload="never", budget_bytes=self._keeper.most_room())
            plan = family.plan(checkpoint, whole)
            if plan.minimum_bytes <= plan.available_bytes:
                options = whole

        def planned(room: int) -> Plan:
            return family.plan(checkpoint, replace(options, budget_bytes=min(room, most_bytes or room)))

        return checkpoint, family, planned

    def _draft_plans(
        self, checkpoint: Checkpoint, family: Family, planned: Callable[[int], Plan], settings: PlanSettings
    ) -> tuple[LoadSettings, Callable[[int], Plan], int]:
        """The draft's settings, plans for the model beside it, and what it may take; `planned`: those without it.
        Raises InvalidRequest where it cannot guess for the model."""
        draft = settings["draft"]
        assert draft is not None, "asked where there is one"
        if self.deterministic:
            raise InvalidRequest("a deterministic runtime guesses no tokens; leave the draft out (--draft)")
        if isinstance(draft, Model):
            if draft.runtime is not self:
                raise InvalidRequest(f"the draft {draft.reference} is in another runtime; load it in this one")
            family.check_draft(checkpoint, draft.checkpoint)
            return {}, _beside(planned, draft.plan), 0
        own = LoadSettings(offload="never", offline=settings.get("offline", False))
        own["dtype"], own["kv_dtype"] = settings.get("dtype", "auto"), settings.get("kv_dtype", "auto")
        own["quant"] = settings.get("quant")
        other, _, draft_planned = self._planned(draft, own)
        family.check_draft(checkpoint, other)
        room = self._keeper.plan_of(planned).available_bytes
        own["kv_tokens"], most = draft_share(planned, draft_planned, room)
        plan = self._planned(draft, own)[2](most)
        held = plan.total_bytes - plan.activation_bytes
        return own, lambda available: _beside(planned, plan)(max(available - held, 0)), most

    @contextmanager
    def _draft(self, settings: LoadSettings, own: LoadSettings, most_bytes: int) -> Iterator[Draft]:
        """The draft, which stays in memory while the body runs. One that was loaded for it goes if that fails. `own`,
        `most_bytes`: what it is loaded with."""
        given = settings["draft"]
        assert given is not None, "asked where there is one"
        is_own = not isinstance(given, Model)
        try:
            compiling, prepared = settings.get("compile", "auto"), settings.get("prepared", True)
            alike: LoadSettings = {**own, "compile": compiling, "prepared": prepared, "pinned": True}
            model = given if isinstance(given, Model) else self._load(given, alike, most_bytes)
        except DoesNotFit as error:
            raise _without_room(error, f"for the draft {given} beside its model") from error
        tenant = model._tenant
        stays = settings.get("pinned", False) if is_own else tenant.pinned
        model.pin()
        try:
            yield Draft(model, Companion(self._keeper, self.ledger, tenant), is_own)
        except BaseException as error:
            held = format_bytes(self.ledger.held(self.device.name, tenant.owner))
            if is_own:
                model.unload()
            if isinstance(error, DoesNotFit):
                raise _without_room(error, f"beside the draft {model.reference}, which holds {held}") from error
            raise
        finally:
            if not stays:
                model.unpin()

    def _tenant(self, family: Family, checkpoint: Checkpoint, plan: Plan, environment: LoadEnvironment) -> Tenant:
        """What brings the model back later."""
        before = marks(checkpoint)

        def load(parked: Parked | None) -> LoadedModel:
            check_unchanged(checkpoint.reference, before)
            return _loaded(family, checkpoint, plan, replace(environment, parked=parked))

        return Tenant(owner=environment.owner, plan=plan, load=load)

    def _plan_options(self, settings: PlanSettings, allow_code: str | None) -> PlanOptions:
        form = parse_quant(settings.get("quant"))
        if form is not None:
            form.check_device(self.device.name, self.device.features)
            form = form.on(self.device.kind)
        return PlanOptions(
            device=self.device.name,
            dtype=settings.get("dtype", "auto"),
            quant=form,
            budget_bytes=self.budget_bytes,
            good_dtypes=self.device.good_dtypes,
            features=self.device.features,
            kv_tokens=settings.get("kv_tokens"),
            kv_dtype=settings.get("kv_dtype", "auto"),
            offload=settings.get("offload", "auto"),
            ram_bytes=self.ledger.budget(RAM) - self.ledger.held(RAM, kind="outside"),
            allow_code=allow_code,
        )


def _without_room(error: DoesNotFit, where: str) -> DoesNotFit:
    """What is said where a model and its draft do not fit together."""
    return DoesNotFit(
        f"there is no room {where}: {format_bytes(error.needed_bytes)} are needed at least, but only "
        f"{format_bytes(error.available_bytes)} may be used; leave the draft out (--draft) or give more --memory",
        needed_bytes=error.needed_bytes,
        available_bytes=error.available_bytes,
        options=("Leave the draft out (--draft).", *error.options),
        place=error.place,
    )


def _beside(planned: Callable[[int], Plan], draft: Plan) -> Callable[[int], Plan]:
    """The plans, with that of a draft."""
    return lambda room: replace(planned(room), draft=draft)


def _loaded(family: Family, checkpoint: Checkpoint, plan: Plan, environment: LoadEnvironment) -> LoadedModel:
    with told(lambda error: load_failed(error, plan.reference, plan.device)):
        return family.load(checkpoint, plan, environment)


def _ram_budget(device: DeviceFacts) -> int:
    """Bytes of RAM for weights that are not on a GPU: most of what is free now. A CPU has its own weights there, and
    where GPU and CPU share their memory nothing is gained."""
    return default_budget(cpu_facts()) if device.kind == "cuda" else 0


def _inference_mode() -> AbstractContextManager[Any]:
    import torch

    return torch.inference_mode()


_default_runtime: Runtime | None = None
_default_models: dict[str, Model] = {}
_default_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
"""By reference: a model that is waited for keeps nobody from asking others."""
_default_lock = threading.Lock()


def generate(reference: str | Path, prompt: str | None = None, **options: Any) -> Result:
    """One request over a shared runtime on the default device, which keeps its models until the program ends."""
    global _default_runtime  # noqa: PLW0603 - one shared runtime is what this function is for
    request = {"prompt": prompt, **options} if prompt is not None else options
    with _default_lock:
        if _default_runtime is None:
            _default_runtime = Runtime()
        runtime, loading = _default_runtime, _default_locks[str(reference)]
    with loading:
        model = _default_models.get(str(reference))
        if model is None:
            model = _default_models[str(reference)] = runtime.load(reference, request=request)
    return model.generate(**request)
