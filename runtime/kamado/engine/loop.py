"""The one loop: pick, run, settle. The only caller of a lane; no branch on modality."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from ..contracts import Accepted, Lane, Task, Work
from ..errors import Cancelled, DeadlineExceeded, GenerationFailed, KamadoError
from ..events import Event, FinishReason, Started
from ..memory.residency import Residency
from .scheduler import Entry, Scheduler


class Loop:
    """Runs tasks to their end, a batched forward at a time. Not thread safe: one thread owns it."""

    def __init__(self, residency: Residency, clock: Callable[[], float] = time.monotonic) -> None:
        self.residency = residency
        self.scheduler = Scheduler(residency.limits, residency.is_interactive)
        self.clock = clock
        self.steps_by_lane: Counter[str] = Counter()
        self.rows_by_lane: Counter[str] = Counter()
        self.splits = 0
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
        begin = self.clock()
        with self.residency.hold(lane_name) as lane:
            results = self._run_or_split(lane, [entry.work for entry in batch if entry.work is not None])
        self.scheduler.charge(lane_name, self.clock() - begin)
        for entry, result in zip(batch, results, strict=True):
            events += self._settle(entry, result)
        self.scheduler.settled(batch)
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

    def _run_or_split(self, lane: Lane, works: Sequence[Work]) -> list[Any]:
        """One result a work. A forward that raises is tried again in halves, down to single works, so that out of
        memory and one request's fault hurt no other; a work that raises alone has the exception as its result."""
        try:
            results = list(lane.run(works))
        except Exception as error:  # noqa: BLE001 - whatever a lane raises ends a request, never the loop
            if len(works) == 1:
                return [error]
        else:
            self.steps_by_lane[lane.name] += 1
            self.rows_by_lane[lane.name] += len(works)
            assert len(results) == len(works), f"lane {lane.name} gave {len(results)} results for {len(works)} works"
            return results
        self.splits += 1
        half = len(works) // 2
        return self._run_or_split(lane, works[:half]) + self._run_or_split(lane, works[half:])

    def _settle(self, entry: Entry, result: Any) -> list[Event]:
        task = entry.task
        events: list[Event] = []
        if task.id not in self._started:
            self._started.add(task.id)
            events.append(Started(task.id))
        if isinstance(result, Exception):
            return [*events, self._fail(entry, result)]
        try:
            accepted: Accepted = task.accept(result)
        except Exception as error:  # noqa: BLE001 - likewise
            return [*events, self._fail(entry, error)]
        for spawned in accepted.spawned:
            self.scheduler.add(spawned, after=entry)
        if task.work(1) is None:
            self._forget(entry)
        return [*events, *accepted.events]

    def _fail(self, entry: Entry, cause: Exception) -> Event:
        if isinstance(cause, KamadoError):
            error = cause
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
