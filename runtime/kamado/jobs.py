"""One request, seen from outside: its events as they come, and its result."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

from .errors import Cancelled, KamadoError
from .events import Event, Finished, Started, Token
from .results import Result, Timings

T = TypeVar("T")


class Job:
    """A submitted request. Thread safe."""

    def __init__(
        self,
        request_id: str,
        collect: Callable[[list[Event], Timings], Result],
        cancel: Callable[[str], None],
        *,
        submitted_s: float | None = None,
    ) -> None:
        """`submitted_s`: see the attribute; None: now."""
        self.id = request_id
        self._collect = collect
        self._cancel = cancel
        lock = threading.RLock()
        self._changed = threading.Condition(lock)
        self._ended = threading.Condition(lock)
        """For those who wait for the result alone: to wake at each step would take the interpreter from the loop."""
        self._events: list[Event] = []
        self._arrived_s: list[float] = []
        self._listeners: list[Callable[[], None]] = []
        self._enders: list[Callable[[], None]] = []
        self._followers: list[Callable[[Event], None]] = []
        self._closed = False
        self._result: Result | None = None
        self.submitted_s = time.monotonic() if submitted_s is None else submitted_s
        """When it was submitted, on the clock `time.monotonic`."""
        self._marks: dict[str, float] = {}

    # ---- the loop's side (Sink) ----

    def put(self, event: Event) -> None:
        """See Sink."""
        arrived_s = time.monotonic()
        now = arrived_s - self.submitted_s
        with self._changed:
            self._events.append(event)
            self._arrived_s.append(arrived_s)
            if isinstance(event, Started):
                self._marks.setdefault("queued", now)
            elif isinstance(event, Token):
                self._marks.setdefault("first", now)
            for follower in self._followers:
                follower(event)
            self._notify()

    def close(self) -> None:
        """See Sink."""
        with self._changed:
            self._marks["total"] = time.monotonic() - self.submitted_s
            self._closed = True
            self._notify()
            self._ended.notify_all()
            enders, self._enders = self._enders, []
        for ender in enders:
            ender()

    def _notify(self) -> None:
        self._changed.notify_all()
        for listener in self._listeners:
            listener()

    # ---- the caller's side ----

    def done(self) -> bool:
        """Whether the request has ended, one way or another."""
        with self._changed:
            return self._closed

    def when_done(self, callback: Callable[[], None]) -> None:
        """Call back once it has ended: on the loop's thread, or at once if it has. Must be quick and not raise."""
        with self._changed:
            if not self._closed:
                self._enders.append(callback)
                return
        callback()

    def when_event(self, callback: Callable[[Event], None]) -> None:
        """Call back with each event: with those that there are at once, with later ones on the loop's thread. Must be
        quick and not raise."""
        with self._changed:
            for event in self._events:
                callback(event)
            self._followers.append(callback)

    def cancel(self) -> None:
        """End it between this step and the next. Harmless once it has ended. Returns at once."""
        if not self.done():
            self._cancel(self.id)

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the end. Raises what ended it (Cancelled, DeadlineExceeded, GenerationFailed), or TimeoutError
        after `timeout` seconds, and then the request goes on. Of `n` answers some may have failed: that is told in
        `Result.failures`, and raised (the first one) only if none was made."""
        with self._ended:
            if not self._ended.wait_for(lambda: self._closed, timeout):
                raise TimeoutError(f"request {self.id} has not finished within {timeout} s")
        return self._outcome()

    def events(self) -> Iterator[Event]:
        """All events from the first on, as they come. Each call starts anew. Raises nothing for a failed request: its
        last event is a Finished that carries the error."""
        position = 0
        while True:
            with self._changed:
                while not self._closed and len(self._events) <= position:
                    self._changed.wait()
                fresh = self._events[position:]
                closed = self._closed
            yield from fresh
            position += len(fresh)
            if closed and not fresh:
                return

    def arrivals(self) -> list[tuple[Event, float]]:
        """The events up to now, each with when it came out of the loop, on the clock `time.monotonic`."""
        with self._changed:
            return list(zip(self._events, self._arrived_s, strict=True))

    async def aevents(self) -> AsyncIterator[Event]:
        """`events` for asyncio."""
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()

        def listener() -> None:
            # The caller's event loop may be closed before the request ends.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(changed.set)

        with self._changed:
            self._listeners.append(listener)
        try:
            position = 0
            while True:
                changed.clear()
                with self._changed:
                    fresh = self._events[position:]
                    closed = self._closed
                for event in fresh:
                    yield event
                position += len(fresh)
                if closed and not fresh:
                    return
                if not fresh:
                    await changed.wait()
        finally:
            with self._changed:
                self._listeners.remove(listener)

    async def aresult(self) -> Result:
        """`result` for asyncio; cancelling the awaiting task cancels the request."""
        try:
            async for _ in self.aevents():
                pass
        except asyncio.CancelledError:
            self.cancel()
            raise
        return await asyncio.to_thread(self._outcome)

    def _outcome(self) -> Result:
        with self._changed:
            events, marks, result = list(self._events), dict(self._marks), self._result
        _raise_what_ended_it([event.error for event in events if isinstance(event, Finished)])
        if result is None:
            total = marks["total"]
            timings = Timings(queued_s=marks.get("queued", total), ttft_s=marks.get("first"), total_s=total)
            # Outside the lock: the recipe may have to hash the weights, once.
            result = self._result = self._collect(events, timings)
        return result


def result_or_error(job: Job) -> Result | KamadoError:
    """What `Job.result` returns or, of Kamado's own errors, raises."""
    try:
        return job.result()
    except KamadoError as error:
        return error


def _raise_what_ended_it(ends: Sequence[Exception | None]) -> None:
    """`ends`: what each answer failed of, or None, in the order in which they ended."""
    failed = [error for error in ends if error is not None]
    stopped = [error for error in failed if isinstance(error, Cancelled)]
    if stopped:
        raise stopped[0]
    if failed and len(failed) == len(ends):
        raise failed[0]


def in_thread(function: Callable[[], T]) -> Future[T]:
    """Call it in a thread of its own, not one of asyncio's: those may be few, and it may wait for long."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # it runs to its end, also where nobody waits any more

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 - it is raised again where somebody waits
            future.set_exception(error)

    threading.Thread(target=run, name="kamado-waiting").start()
    return future


class EventStream(Iterator[Event]):
    """Events of one request as they come. Closing it, or dropping it, cancels the request."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._events = job.events()

    def __next__(self) -> Event:
        return next(self._events)

    def close(self) -> None:
        """Cancel the request, if it still runs."""
        self.job.cancel()

    def __del__(self) -> None:
        self.close()
