"""The thread that runs the loop, and the way in and out of it for other threads."""

from __future__ import annotations

import atexit
import heapq
import itertools
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, suppress
from typing import Any, Protocol, TypeVar

from ..contracts import Task
from ..errors import Cancelled, GenerationFailed
from ..events import Event, Finished
from .loop import Loop

T = TypeVar("T")


class Sink(Protocol):
    """Where the events of one request go. Called on the loop's thread: must be quick and must not raise."""

    def put(self, event: Event) -> None:
        """One more event."""

    def close(self) -> None:
        """There are no more."""


class Session:
    """Owns the loop and its thread, which starts with the first request and ends with `close`."""

    def __init__(self, loop: Loop, thread_context: Callable[[], AbstractContextManager[Any]]) -> None:
        """`thread_context` is entered once, on the loop's thread (inference mode, which torch keeps per thread)."""
        self._loop = loop
        self._thread_context = thread_context
        self._commands: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        """A heap; of those due at the same time the first one set comes first."""
        self._timer_numbers = itertools.count()
        self._wake = threading.Condition()
        self._sinks: dict[str, Sink] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, request_id: str, tasks: Sequence[Task], sink: Sink) -> None:
        """Run the tasks of one request; its events go to `sink`. Returns at once."""

        def start() -> None:
            self._sinks[request_id] = sink
            self._route([event for task in tasks for event in self._loop.add(task)])

        self._send(start)

    def cancel(self, request_id: str) -> None:
        """End the request between this step and the next. Does nothing once it is finished. Returns at once."""
        with suppress(Cancelled):  # a closed session has cancelled everything
            self._send(lambda: self.end(request_id))

    def end(self, request_id: str) -> None:
        """`cancel`, at once; on the loop's thread only."""
        self._route(self._loop.cancel(request_id))

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` on the loop's thread, between two steps, and wait for what it returns or raises."""
        if self.is_own_thread():
            return function()
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001 - it is raised again where the caller waits
                future.set_exception(error)

        self._send(run)
        return future.result()

    def later(self, due: float, function: Callable[[], None]) -> None:
        """Run `function` on the loop's thread, between two steps, once the loop's clock shows `due`. It is not run any
        more when the session is closed. It must be quick. Returns at once."""
        with self._wake:
            heapq.heappush(self._timers, (due, next(self._timer_numbers), function))
            self._wake.notify()

    def is_own_thread(self) -> bool:
        """Whether the caller is the loop's thread, which must wait for nobody that may wait for it."""
        return threading.current_thread() is self._thread

    def close(self) -> None:
        """Cancel what runs and end the thread. Returns when it has ended."""
        with self._wake:
            if self._closed:
                return
            self._closed = True
            thread = self._thread
            self._wake.notify()
        atexit.unregister(self.close)
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _send(self, command: Callable[[], None]) -> None:
        with self._wake:
            if self._closed:
                raise Cancelled("the runtime is closed")
            self._commands.append(command)
            if self._thread is None:
                self._thread = threading.Thread(target=self._main, name="kamado-loop", daemon=True)
                self._thread.start()
                # A thread that is inside torch while the interpreter goes down aborts the process.
                atexit.register(self.close)
            self._wake.notify()

    def _main(self) -> None:
        try:
            with self._thread_context():
                while self._next_commands():
                    self._route(self._guarded_step())
                self._end_all()
        finally:
            self._abandon()

    def _abandon(self) -> None:
        """The thread ends. Where nobody closed the session (its context could not be entered, say), nobody may be left
        waiting for an answer, and further requests are refused."""
        with self._wake:
            self._closed = True
        self._next_commands()  # those that came meanwhile: requests among them end below
        _guarded(self._end_all)
        for request_id in list(self._sinks):  # the loop is broken, too
            _guarded(self._sinks.pop(request_id).close)

    def _end_all(self) -> None:
        for request_id in list(self._sinks):
            self.end(request_id)

    def _next_commands(self) -> bool:
        """Wait for something to do, and carry out what was sent. False: closed."""
        with self._wake:
            while not self._commands and not self._closed and not len(self._loop.scheduler):
                wait_s = self._timers[0][0] - self._loop.clock() if self._timers else None
                if wait_s is not None and wait_s <= 0:
                    break
                self._wake.wait(wait_s)
            commands, self._commands = self._commands, deque()
            while self._timers and not self._closed and self._timers[0][0] <= self._loop.clock():
                commands.append(heapq.heappop(self._timers)[2])
            closed = self._closed
        for command in commands:
            _guarded(command)
        return not closed

    def _guarded_step(self) -> list[Event]:
        """A step; a fault of the loop itself ends the requests in flight, not the thread."""
        try:
            return self._loop.step()
        except BaseException as error:  # noqa: BLE001 - the thread must outlive any fault; those of Rust are no Exception
            failure = GenerationFailed(f"the loop failed: {type(error).__name__}: {error}")
            failure.__cause__ = error
            return [event for request_id in list(self._sinks) for event in self._loop.cancel(request_id, failure)]

    def _route(self, events: Sequence[Event]) -> None:
        for event in events:
            sink = self._sinks.get(event.request_id)
            if sink is not None:
                _guarded(lambda sink=sink, event=event: sink.put(event))  # type: ignore[misc]
        for request_id in {event.request_id for event in events if isinstance(event, Finished)}:
            if not self._loop.has(request_id) and (sink := self._sinks.pop(request_id, None)):
                _guarded(sink.close)


def _guarded(function: Callable[[], None]) -> None:
    """Call it; what it raises (a callback's fault) is reported as an uncaught exception of a thread is, and the loop's
    thread goes on."""
    try:
        function()
    except BaseException as error:  # noqa: BLE001 - nobody else's request may suffer
        arguments = (type(error), error, error.__traceback__, threading.current_thread())
        threading.excepthook(threading.ExceptHookArgs(arguments))
