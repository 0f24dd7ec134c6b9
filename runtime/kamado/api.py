"""The public Python interface: Runtime and Model. Importing it loads no torch; loading a model does."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self

from .checkpoint.inspect import inspect as inspect_checkpoint
from .checkpoint.own_code import allowed_name
from .checkpoint.parts import Parts, with_parts
from .checkpoint.types import Checkpoint
from .contracts import LoadedModel, LoadEnvironment
from .engine.loop import Loop
from .engine.session import Session
from .errors import InvalidRequest, KamadoError
from .events import Event
from .families import find
from .jobs import EventStream, Job, result_or_error
from .memory.devices import DeviceFacts, default_budget, resolve_device
from .memory.ledger import Ledger
from .memory.plan import Plan, PlanOptions
from .memory.residency import Residency
from .quant import QuantLike, parse_quant
from .results import Result, Timings
from .units import parse_bytes

DTYPES = ("auto", "float32", "bfloat16", "float16")
MAP_CONCURRENCY = 64
"""Requests that `Model.map` keeps in flight unless told otherwise: enough to keep batches full."""

_STEPS = "steps"
"""Owner in the ledger of the room for temporary tensors."""

_request_numbers = itertools.count(1)


class Runtime:
    """One device, one memory budget, one loop; any number of models and requests. Thread safe.

    Creating it starts nothing heavy: torch is imported with the first model, and the loop's thread starts then.
    """

    def __init__(self, device: str = "auto", memory: str | int | None = None, *, deterministic: bool = False) -> None:
        """`device`: auto, cpu, cuda, cuda:1, mps. `memory`: the most to hold on it, like "20GiB"; None: most of what is
        available now. `deterministic`: every request runs in forwards of its own, in the same pieces, so that its
        output is bit-equal whatever else runs; batching is lost. Raises InvalidRequest."""
        self.device: DeviceFacts = resolve_device(device)
        self.budget_bytes = parse_bytes(memory) if memory is not None else default_budget(self.device)
        self.deterministic = deterministic
        self.ledger = Ledger({self.device.name: self.budget_bytes})
        self._residency = Residency()
        self._loop = Loop(self._residency)
        self._session = Session(self._loop, _inference_mode)
        self._models: dict[str, Model] = {}
        self._lock = threading.RLock()
        self._owners = itertools.count(1)
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def inspect(self, reference: str | Path, *, offline: bool = False) -> Checkpoint:
        """Header data of a checkpoint, pulled if need be.

        Raises ModelNotFound, UnsupportedCheckpoint, UnsafeCheckpoint."""
        return inspect_checkpoint(str(reference), offline=offline)

    def plan(
        self,
        reference: str | Path,
        *,
        dtype: str = "auto",
        quant: QuantLike = None,
        kv_tokens: int | None = None,
        allow_code: str | Path | None = None,
        components: Parts | None = None,
        base: str | Path | None = None,
        offline: bool = False,
    ) -> Plan:
        """What `load` would do, in bytes, from header data alone. Whether it fits is for `Plan.check` to say.

        With `allow_code` (see `load`), sizes are asked of the checkpoint's own classes, which runs its code."""
        allowed = allowed_name(allow_code)
        checkpoint = with_parts(self.inspect(reference, offline=offline), components, base, offline=offline)
        return find(checkpoint).plan(checkpoint, self._plan_options(dtype, quant, kv_tokens, allowed))

    def load(
        self,
        reference: str | Path,
        *,
        dtype: str = "auto",
        quant: QuantLike = None,
        kv_tokens: int | None = None,
        step_budget: int | None = None,
        max_rows: int | None = None,
        allow_code: str | Path | None = None,
        components: Parts | None = None,
        base: str | Path | None = None,
        offline: bool = False,
        request: Mapping[str, Any] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Model:
        """Load a model, pulling it first if need be.

        `kv_tokens`: tokens of KV cache to hold. `step_budget`: the most tokens in one forward. `max_rows`: the most
        requests in one forward. `progress(done_bytes, total_bytes)` is called while weights are read.
        `quant`: the form of the weights: a name in `kamado.quant.SCHEMES`, a `Quant`, or a table with its fields.
        `allow_code`: the reference once more, to allow that this checkpoint's own code is run, with all the rights of
        this process; of a repository without its revision, too, of a folder also its full path. Without it a
        checkpoint that wants that is refused; for one that does not, it changes nothing.
        `components`: what takes the place of a pipeline's components, by name; see `kamado.checkpoint.parts`.
        `base`: the pipeline that has what a single file lacks: tokenizers, configurations, further components.
        `request`: options of one that will follow; what can be found wrong with it is raised before weights are read.
        Raises ModelNotFound, UnsupportedCheckpoint, UnsafeCheckpoint, DoesNotFit, InvalidRequest.
        """
        allowed = allowed_name(allow_code)
        _check_counts(kv_tokens=kv_tokens, step_budget=step_budget, max_rows=max_rows)
        checkpoint = with_parts(self.inspect(reference, offline=offline), components, base, offline=offline)
        family = find(checkpoint)
        with self._lock:
            if self._closed:
                raise InvalidRequest("the runtime is closed")
            plan = family.plan(checkpoint, self._plan_options(dtype, quant, kv_tokens, allowed))
            plan.check()
            owner = f"{plan.reference}#{next(self._owners)}"
            environment = LoadEnvironment(
                ledger=self.ledger,
                owner=owner,
                progress=progress,
                offline=offline,
                request=request,
                deterministic=self.deterministic,
                step_budget=step_budget,
                max_rows=1 if self.deterministic else max_rows,
            )
            try:
                info = dict(family.describe(checkpoint))
                loaded = family.load(checkpoint, plan, environment)
                self._session.call(lambda: self._attach(loaded))
            except BaseException:
                self.ledger.drop(owner)
                raise
            model = self._models[owner] = Model(self, owner, checkpoint, loaded, info)
            self._share_activations()
            return model

    def stats(self) -> dict[str, Any]:
        """The ledger by owner, the queue, steps and realised batch sizes by lane, state memory by model."""
        loop = self._loop
        rows = {
            name: {"steps": steps, "rows": loop.rows_by_lane[name], "mean_batch": loop.rows_by_lane[name] / steps}
            for name, steps in dict(loop.steps_by_lane).items()
        }
        return {
            "device": self.device.name,
            "budget_bytes": self.budget_bytes,
            "held_bytes": self.ledger.held(),
            "ledger": self.ledger.snapshot(),
            "queued": len(loop.scheduler),
            "preemptions": loop.scheduler.num_preemptions,
            "splits": loop.splits,
            "lanes": rows,
            "models": {owner: dict(model.usage()) for owner, model in dict(self._models).items()},
        }

    def close(self) -> None:
        """Cancel every request, unload every model, end the loop's thread."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._session.close()
            for model in list(self._models.values()):
                self._drop(model)

    def _unload(self, model: Model) -> None:
        with self._lock:
            if model.owner not in self._models:
                return
            self._session.call(lambda: self._detach(model))
            self._drop(model)

    def _attach(self, loaded: LoadedModel) -> None:
        for lane in loaded.lanes:
            self._residency.add(lane)

    def _detach(self, model: Model) -> None:
        for job in model.jobs():
            self._session.end(job.id)
        for lane in model.loaded.lanes:
            self._residency.remove(lane.name)

    def _drop(self, model: Model) -> None:
        del self._models[model.owner]
        model.loaded.close()
        self.ledger.drop(model.owner)
        self._share_activations()

    def _share_activations(self) -> None:
        """One forward runs at a time, so models share the room for temporary tensors: the largest peak counts."""
        device = self.device.name
        self.ledger.drop(_STEPS)
        peak = max((model.plan.activation_bytes for model in self._models.values()), default=0)
        self.ledger.enter(device, _STEPS, "activations", min(peak, self.ledger.free(device)))

    def _plan_options(self, dtype: str, quant: QuantLike, kv_tokens: int | None, allow_code: str | None) -> PlanOptions:
        if dtype not in DTYPES:
            raise InvalidRequest(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
        return PlanOptions(
            device=self.device.name,
            dtype=dtype,
            quant=parse_quant(quant),
            budget_bytes=self.ledger.free(self.device.name) + self.ledger.held(owner=_STEPS),
            good_dtypes=self.device.good_dtypes,
            kv_tokens=kv_tokens,
            allow_code=allow_code,
        )


class Model:
    """A loaded model. Thread safe. Options are those of `kamado.requests.TextOptions` and `Sampling`."""

    def __init__(
        self, runtime: Runtime, owner: str, checkpoint: Checkpoint, loaded: LoadedModel, info: dict[str, Any]
    ) -> None:
        self.runtime = runtime
        self.owner = owner
        self.checkpoint = checkpoint
        self.loaded = loaded
        self.info = info
        """Facts as `kamado show` prints them."""
        self._jobs: dict[str, Job] = {}
        self._jobs_lock = threading.Lock()

    @property
    def reference(self) -> str:
        """What it was loaded as."""
        return self.checkpoint.reference

    @property
    def plan(self) -> Plan:
        """What it was loaded by."""
        return self.loaded.plan

    @property
    def capabilities(self) -> Sequence[str]:
        """What it can make: `text`, ..."""
        return self.loaded.capabilities

    def submit(self, prompt: str | None = None, **options: Any) -> Job:
        """Start a request and return at once. Raises InvalidRequest and ContextOverflow."""
        if self.owner not in self.runtime._models:
            raise InvalidRequest(f"{self.reference} is unloaded; load it again")
        request = {"prompt": prompt, **options} if prompt is not None else options
        request_id = f"r{next(_request_numbers)}"
        tasks = self.loaded.prepare(request_id, request, time.monotonic())

        def collect(events: Sequence[Event], timings: Timings) -> Result:
            return self.loaded.collect(request_id, tasks, events, timings)

        job = Job(request_id, collect, self.runtime._session.cancel)
        with self._jobs_lock:
            self._jobs[request_id] = job
        job.when_done(lambda: self._forget(request_id))
        try:
            self.runtime._session.submit(request_id, tasks, job)
        except BaseException:
            self._forget(request_id)
            raise
        return job

    def generate(self, prompt: str | None = None, **options: Any) -> Result:
        """Run a request to its end. Raises also what `Job.result` raises."""
        job = self.submit(prompt, **options)
        try:
            return job.result()
        except BaseException:
            job.cancel()
            raise

    def stream(self, prompt: str | None = None, **options: Any) -> EventStream:
        """The request's events as they come. Leaving the iterator cancels the request. A request that fails has a last
        event that carries the error. Bad options raise at once, not with the first event."""
        return EventStream(self.submit(prompt, **options))

    def generate_many(self, requests: Iterable[Mapping[str, Any]]) -> list[Result]:
        """Results in order. The first failure is raised and cancels the rest."""
        jobs: list[Job] = []
        try:
            for request in requests:
                jobs.append(self._submit(request))
            return [job.result() for job in jobs]
        except BaseException:
            for job in jobs:
                job.cancel()
            raise

    def map(
        self, requests: Iterable[Mapping[str, Any]], concurrency: int | None = None
    ) -> Iterator[tuple[int, Result | KamadoError]]:
        """(position, result or error) of each request, as each finishes. `requests` is read only as far as needed to
        keep `concurrency` of them in flight. Leaving the iterator cancels what is in flight."""
        source = enumerate(requests)
        finished: SimpleQueue[int] = SimpleQueue()
        flying: dict[int, Job] = {}
        try:
            while True:
                while len(flying) < (concurrency or MAP_CONCURRENCY) and (item := next(source, None)) is not None:
                    position, request = item
                    try:
                        job = self._submit(request)
                    except KamadoError as error:
                        yield position, error
                        continue
                    flying[position] = job
                    job.when_done(lambda position=position: finished.put(position))  # type: ignore[misc]
                if not flying:
                    return
                position = finished.get()
                yield position, result_or_error(flying.pop(position))
        finally:
            for job in flying.values():
                job.cancel()

    async def agenerate(self, prompt: str | None = None, **options: Any) -> Result:
        """`generate` for asyncio; cancelling the awaiting task cancels the request."""
        return await self.submit(prompt, **options).aresult()

    async def astream(self, prompt: str | None = None, **options: Any) -> AsyncIterator[Event]:
        """`stream` for asyncio."""
        job = self.submit(prompt, **options)
        try:
            async for event in job.aevents():
                yield event
        finally:
            job.cancel()

    def jobs(self) -> list[Job]:
        """Requests in flight."""
        with self._jobs_lock:
            return list(self._jobs.values())

    def usage(self) -> Mapping[str, Any]:
        """Figures of its state memory; none once it is unloaded."""
        return self.loaded.usage() if self.owner in self.runtime._models else {}

    def unload(self) -> None:
        """Cancel its requests and give back every byte."""
        self.runtime._unload(self)

    def _submit(self, request: Mapping[str, Any]) -> Job:
        if not isinstance(request, Mapping):
            raise InvalidRequest(f'a request is a mapping like {{"prompt": "..."}}, not {request!r:.60}')
        return self.submit(**request)

    def __repr__(self) -> str:
        return f"<kamado.Model {self.reference} on {self.plan.device} in {self.plan.dtype}>"

    def _forget(self, request_id: str) -> None:
        with self._jobs_lock:
            self._jobs.pop(request_id, None)


def _check_counts(**counts: int | None) -> None:
    for name, value in counts.items():
        if value is not None and value < 1:
            raise InvalidRequest(f"{name} must be at least 1, not {value}")


def _inference_mode() -> AbstractContextManager[Any]:
    import torch

    return torch.inference_mode()


_default_runtime: Runtime | None = None
_default_models: dict[str, Model] = {}
_default_lock = threading.Lock()


def generate(reference: str | Path, prompt: str | None = None, **options: Any) -> Result:
    """One request over a shared runtime on the default device, which keeps its models until the program ends."""
    global _default_runtime  # noqa: PLW0603 - one shared runtime is what this function is for
    request = {"prompt": prompt, **options} if prompt is not None else options
    with _default_lock:
        if _default_runtime is None:
            _default_runtime = Runtime()
        model = _default_models.get(str(reference))
        if model is None:
            model = _default_models[str(reference)] = _default_runtime.load(reference, request=request)
    return model.generate(**request)
