"""One answer that library code makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...contracts import Accepted, Task, Work
from ...errors import GenerationFailed, InvalidRequest, KamadoError
from ...events import Event, Finished, FinishReason
from ...memory.frames import forget_locals
from .coroutine import Coroutine, Ended


class Script:
    """What the library code of one answer gets in hand."""

    def __init__(self, request_id: str, index: int, coroutine: Coroutine, events: list[Event]) -> None:
        self.request_id = request_id
        self.index = index
        """Which of the request's `n` answers this is, from 0."""
        self._coroutine = coroutine
        self._events = events

    def ask(self, work: Work) -> Any:
        """Have the loop run a forward, and wait for its result. A forward that fails ends the answer."""
        return self._coroutine.ask(work)

    def emit(self, event: Event) -> None:
        """An event for the caller; it goes out with the next forward."""
        self._events.append(event)


class LibraryTask:
    """See kamado.contracts.Task. Runs `body(script)`, which returns what becomes `Finished.output`.

    The first work is an empty one for the lane `start_lane`: the code starts when its turn comes. Nothing of its state
    can be given back and computed again, so it holds no state memory in the sense of `holds`.
    """

    def __init__(
        self,
        request_id: str,
        body: Callable[[Script], Any],
        *,
        start_lane: str,
        deadline: float | None = None,
        index: int = 0,
    ) -> None:
        self.id = request_id
        self.lane = start_lane
        self.deadline = deadline
        self.index = index
        self.output: Any = None
        """What the code returned, once it has."""
        self._events: list[Event] = []
        self._coroutine = Coroutine(lambda coroutine: body(Script(request_id, index, coroutine, self._events)))
        self._work: Work | None = Work(start_lane, ("start",), 1, None)
        self._num_forwards = -1
        self._finished = False

    @property
    def account(self) -> str:
        """See Task."""
        return self.lane

    def work(self, budget: int) -> Work | None:
        """See Task. A forward cannot be cut."""
        return self._work

    def acquire(self, work: Work) -> Work | None:
        """See Task."""
        return work

    def victims_needed(self, work: Work, others: Sequence[Task]) -> int | None:
        """See Task."""
        return None

    def holds(self) -> bool:
        """See Task."""
        return False

    def release(self) -> None:
        """See Task. What has finished drops all that it computed with."""
        if self._finished:
            self._coroutine.close()
            self._events.clear()

    def accept(self, result: Any) -> Accepted:
        """See Task: the code goes on up to its next forward."""
        self._num_forwards += 1
        try:
            question = self._coroutine.resume(result)
        except (Exception, SystemExit) as error:
            forget_locals(error)
            if isinstance(error, SystemExit):
                raise GenerationFailed(f"the library wanted to end the program: exit({error.code!r})") from error
            # Libraries check their arguments before they compute.
            refused = isinstance(error, (ValueError, TypeError)) and not self._num_forwards
            if refused and not isinstance(error, KamadoError):
                raise InvalidRequest(_first_lines(error)) from error
            raise
        events, self._events[:] = list(self._events), []
        if isinstance(question, Ended):
            self.output = question.value
            return Accepted([*events, self.finish("complete")])
        self._work = question
        self.lane = question.lane
        return Accepted(events)

    def finish(self, reason: FinishReason, error: Exception | None = None) -> Finished:
        """See Task."""
        assert not self._finished, f"{self.id}/{self.index} finished twice"
        self._finished = True
        self._work = None
        return Finished(self.id, reason, index=self.index, error=error, output=self.output)


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__
