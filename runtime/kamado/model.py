"""A loaded model, as programs see it: requests from threads, asyncio and iterators."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from .checkpoint.types import Checkpoint
from .contracts import LoadedModel, Task
from .errors import InvalidRequest, KamadoError
from .events import Event
from .jobs import EventStream, Job, in_thread, result_or_error
from .memory.companion import Companion
from .memory.keeper import Keeper
from .memory.line import Waiter
from .memory.plan import Plan
from .memory.shortage import request_failed, told
from .memory.tenant import Tenant
from .options import Options
from .results import Result, Timings

if TYPE_CHECKING:
    from .api import Runtime

MAP_CONCURRENCY = 64
"""Requests that `Model.map` keeps in flight unless told otherwise: enough to keep batches full."""

_request_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Draft:
    """The model that guesses for another one."""

    model: Model
    companion: Companion
    is_own: bool
    """Whether it was loaded for that."""


class Model:
    """A loaded model. Thread safe. Options are those of `kamado.requests.TextOptions` and `Sampling`."""

    def __init__(
        self,
        runtime: Runtime,
        keeper: Keeper,
        tenant: Tenant,
        checkpoint: Checkpoint,
        info: dict[str, Any],
        draft: Draft | None = None,
        *,
        tasks: Sequence[str] = (),
        takes: Options | None = None,
    ) -> None:
        self.runtime = runtime
        self.tasks = tuple(tasks)
        """What it can do, by the names that hubs have for tasks: `text-generation`, `text-to-speech`, ..."""
        self.takes = takes
        """What it can be asked, where it says so: models of plain text and diffusion pipelines do not."""
        self.checkpoint = checkpoint
        self.info = info
        """Facts as `kamado show` prints them."""
        self.capabilities: Sequence[str] = tuple(tenant.loaded.capabilities) if tenant.loaded is not None else ()
        """What it can make: `text`, `image`, `audio`, ..."""
        self._draft = draft
        self._keeper = keeper
        self._tenant = tenant
        self._jobs: dict[str, Job] = {}
        self._jobs_lock = threading.Lock()
        tenant.end_requests = self._end_requests

    @property
    def owner(self) -> str:
        """Its name in the ledger and in `Runtime.stats`."""
        return self._tenant.owner

    @property
    def reference(self) -> str:
        """What it was loaded as."""
        return self.checkpoint.reference

    @property
    def plan(self) -> Plan:
        """What it was loaded by."""
        return self._tenant.plan

    @property
    def loaded(self) -> LoadedModel:
        """What is in memory now. Raises InvalidRequest while it is out."""
        loaded = self._tenant.loaded
        if loaded is None:
            raise InvalidRequest(f"{self.reference} is not in memory now; a request or pin() brings it back")
        return loaded

    @property
    def draft(self) -> Model | None:
        """The model that guesses for it."""
        return self._draft.model if self._draft is not None else None

    @property
    def in_memory(self) -> bool:
        """Whether a request could start without reading weights first."""
        return self._tenant.place == "in"

    def pin(self) -> None:
        """Keep it in memory until `unpin`; it is brought back first if it is out.

        Raises InvalidRequest once it is unloaded, and what bringing it back raises; see `submit`."""
        self._keeper.pin(self._tenant)

    def unpin(self) -> None:
        """Another model may take its place again."""
        self._keeper.unpin(self._tenant)

    def submit(self, prompt: str | Sequence[str] | None = None, **options: Any) -> Job:
        """Start a request and return at once; if the model is out of memory, as soon as it is back, for which busy
        models are waited for.

        Raises InvalidRequest and ContextOverflow; of a model that is out also DoesNotFit, where others are pinned or
        busy for too long, DeadlineExceeded, if that is before it is back, and ModelNotFound, UnsupportedCheckpoint or
        GenerationFailed where it cannot be read again."""
        request, now = _request(prompt, options), time.monotonic()
        return self._begin(self._keeper.use(self._tenant, self._waiter(request, now)), request, now)

    def generate(self, prompt: str | Sequence[str] | None = None, **options: Any) -> Result:
        """Run a request to its end. Raises also what `Job.result` raises."""
        job = self.submit(prompt, **options)
        try:
            return job.result()
        except BaseException:
            job.cancel()
            raise

    def stream(self, prompt: str | Sequence[str] | None = None, **options: Any) -> EventStream:
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

    def check(self, requests: Iterable[Mapping[str, Any]]) -> None:
        """Raise what is wrong with requests, the first of them, as `submit` would, without running any. They are taken
        one by one. The model is brought back for it if it is out of memory."""
        loaded = self._keeper.use(self._tenant, self._keeper.waiter())
        try:
            for request in requests:
                with told(lambda error: request_failed(error, self.plan.device)):
                    loaded.prepare("check", as_request(request), time.monotonic())
        finally:
            self._keeper.done(self._tenant)

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

    async def agenerate(self, prompt: str | Sequence[str] | None = None, **options: Any) -> Result:
        """`generate` for asyncio; cancelling the awaiting task cancels the request."""
        return await (await self._submitted(prompt, options)).aresult()

    async def astream(self, prompt: str | Sequence[str] | None = None, **options: Any) -> AsyncIterator[Event]:
        """`stream` for asyncio."""
        job = await self._submitted(prompt, options)
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
        """Figures of its state memory; none while it is not in memory."""
        return self._keeper.usage(self._tenant)

    def unload(self) -> None:
        """Cancel its requests and give back every byte, with a draft that was loaded for it."""
        self._keeper.unload(self._tenant)
        if self._draft is not None and self._draft.is_own:
            self._draft.model.unload()

    def _waiter(self, request: Mapping[str, Any], now: float) -> Waiter:
        """Somebody who waits no longer than until the request's deadline. Whether that is a number is checked later."""
        deadline_s = request.get("deadline_s")
        if not isinstance(deadline_s, (int, float)) or not deadline_s > 0:
            return self._keeper.waiter()
        return self._keeper.waiter(now + deadline_s)

    def _begin(self, loaded: LoadedModel, request: Mapping[str, Any], now: float) -> Job:
        """The job of a request that came at `now`, once its model is there."""
        try:
            if self._draft is not None:
                self._draft.companion.wake()
            request_id = f"r{next(_request_numbers)}"
            with told(lambda error: request_failed(error, self.plan.device)):
                tasks = loaded.prepare(request_id, request, now)
            return self._start(loaded, request_id, tasks, now)
        except BaseException:
            self._keeper.done(self._tenant)
            raise

    def _start(self, loaded: LoadedModel, request_id: str, tasks: Sequence[Task], submitted_s: float) -> Job:
        def collect(events: Sequence[Event], timings: Timings) -> Result:
            return loaded.collect(request_id, tasks, events, timings)

        session = self.runtime._session
        job = Job(request_id, collect, session.cancel, submitted_s=submitted_s)
        with self._jobs_lock:
            self._jobs[request_id] = job
        job.when_done(lambda: self._ended(request_id))
        try:
            session.submit(request_id, tasks, job)
        except BaseException:
            self._forget(request_id)
            raise
        return job

    async def _submitted(self, prompt: str | Sequence[str] | None, options: Mapping[str, Any]) -> Job:
        """`submit` for asyncio: a model that is out is waited for, and read, in another thread."""
        request, now = _request(prompt, options), time.monotonic()
        if (loaded := self._keeper.use_now(self._tenant)) is not None:
            return self._begin(loaded, request, now)
        waiter = self._waiter(request, now)
        submitting = in_thread(lambda: self._begin(self._keeper.use(self._tenant, waiter), request, now))
        try:
            return await asyncio.wrap_future(submitting)
        except asyncio.CancelledError:
            waiter.give_up()
            submitting.add_done_callback(_cancel_submitted)
            raise

    def _end_requests(self) -> None:
        """On the loop's thread."""
        for job in self.jobs():
            self.runtime._session.end(job.id)

    def _ended(self, request_id: str) -> None:
        """On the loop's thread."""
        self._forget(request_id)
        self._keeper.done(self._tenant)

    def _submit(self, request: Mapping[str, Any]) -> Job:
        return self.submit(**as_request(request))

    def __repr__(self) -> str:
        return f"<kamado.Model {self.reference} on {self.plan.device} in {self.plan.dtype}>"

    def _forget(self, request_id: str) -> None:
        with self._jobs_lock:
            self._jobs.pop(request_id, None)


def as_request(request: Any) -> Mapping[str, Any]:
    """The request itself. Raises InvalidRequest for what is none."""
    if not isinstance(request, Mapping):
        raise InvalidRequest(f'a request is a mapping like {{"prompt": "..."}}, not {request!r:.60}')
    return request


def _request(prompt: str | Sequence[str] | None, options: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"prompt": prompt, **options} if prompt is not None else options


def _cancel_submitted(submitting: Future[Job]) -> None:
    if submitting.exception() is None:
        submitting.result().cancel()
