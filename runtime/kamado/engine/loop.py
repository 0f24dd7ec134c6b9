"""The one loop: pick, run, settle. The only caller of a lane; no branch on modality."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..contracts import Accepted, Task
from ..errors import Cancelled, DeadlineExceeded, GenerationFailed, KamadoError
from ..events import Event, Finished, FinishReason, Started
from ..memory.frames import forget_locals
from ..memory.residency import Residency
from ..memory.shortage import is_shortage, request_failed
from .forwards import Forwards
from .scheduler import Entry, Scheduler


class Loop:
    """Runs tasks to their end, a batched forward at a time. Not thread safe: one thread owns it."""

    def __init__(
        self, residency: Residency, clock: Callable[[], float] = time.monotonic, *, device: str = "cpu"
    ) -> None:
        """`device`: the lanes', as torch says it."""
        self.residency = residency
        self.scheduler = Scheduler(residency.limits, residency.is_interactive, residency.owner)
        self.clock = clock
        self.forwards = Forwards(residency, device)
        self._device = device
        self._started: set[str] = set()

    def add(self, task: Task) -> list[Event]:
        """The task runs from the next step on. If its lane has gone in the meantime, it ends at once."""
        if not self.residency.has(task.lane):
            return [task.finish("cancelled", Cancelled("its model was unloaded"))]
        self.scheduler.add(task)
        return []

    def step(self) -> list[Event]:
        """One forward. Empty when nothing can run."""
        events = self._expire()
        picked = self.scheduler.pick()
        if picked is None:
            return events + self._unblock()
        lane_name, batch = picked
        account = batch[0].task.account
        begin = self.clock()
        with self.residency.hold(lane_name) as lane:
            results = self.forwards.run(lane, batch)
        for entry, result in zip(batch, results, strict=True):
            events += self._settle(entry, result)
        self.scheduler.settled(batch)
        self.scheduler.charge(account, self.clock() - begin)  # with what tasks computed
        return events

    def cancel(self, request_id: str, error: KamadoError | None = None) -> list[Event]:
        """End every task of the request, now."""
        reason: FinishReason = "cancelled" if error is None else "failed"
        cause = error or Cancelled("the request was cancelled")
        return [self._end(entry, reason, cause) for entry in self._entries(request_id)]

    def has(self, request_id: str) -> bool:
        """Whether any task of the request is left."""
        return bool(self._entries(request_id))

    def _entries(self, request_id: str) -> list[Entry]:
        return [entry for entry in self.scheduler.entries() if entry.task.id == request_id]

    def _expire(self) -> list[Event]:
        now = self.clock()
        late = [e for e in self.scheduler.entries() if e.task.deadline is not None and now >= e.task.deadline]
        return [
            self._end(e, "deadline", DeadlineExceeded("the request's deadline passed before it finished")) for e in late
        ]

    def _unblock(self) -> list[Event]:
        """Nothing can run although tasks wait: not even the oldest can ever get its memory. It ends, so that no request
        hangs."""
        oldest = min(self.scheduler.entries(), key=lambda entry: entry.arrival, default=None)
        if oldest is None:
            return []
        return [self._fail(oldest, GenerationFailed("the request needs more state memory than its model has in all"))]

    def _settle(self, entry: Entry, result: Any) -> list[Event]:
        task = entry.task
        events: list[Event] = []
        if task.id not in self._started:
            self._started.add(task.id)
            events.append(Started(task.id))
        if isinstance(result, Exception) and not (entry.work is not None and entry.work.spare):
            return [*events, self._fail(entry, result)]
        try:
            accepted: Accepted = task.accept(result)
        except Exception as error:  # noqa: BLE001 - whatever a task raises ends it, never the loop
            forget_locals(error)
            return [*events, self._fail(entry, error)]
        for spawned in accepted.spawned:
            self.scheduler.add(spawned, after=entry)
        if any(isinstance(event, Finished) for event in accepted.events):
            self._forget(entry)
        return [*events, *accepted.events]

    def _fail(self, entry: Entry, cause: Exception) -> Event:
        if isinstance(cause, KamadoError):
            error = cause
        elif is_shortage(cause):
            error = request_failed(cause, self._device)
        else:
            error = GenerationFailed(f"the request failed while it ran: {type(cause).__name__}: {cause}")
            error.__cause__ = cause
        return self._end(entry, "failed", error)

    def _end(self, entry: Entry, reason: FinishReason, error: Exception) -> Event:
        finished = entry.task.finish(reason, error)
        self._forget(entry)
        return finished

    def _forget(self, entry: Entry) -> None:
        entry.task.release()
        self.scheduler.remove(entry)
        if not self._entries(entry.task.id):
            self._started.discard(entry.task.id)
