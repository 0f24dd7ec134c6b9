"""Models that answer when they are told to: what a chain does meanwhile is what its tests look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import kamado
from kamado.errors import GenerationFailed, KamadoError
from kamado.events import Event, Finished
from kamado.results import Choice, Result


class FakeJob:
    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.outcome: Result | KamadoError | None = None
        self.cancelled = False
        self._enders: list[Callable[[], None]] = []
        self._followers: list[Callable[[Event], None]] = []

    def when_done(self, callback: Callable[[], None]) -> None:
        self._enders.append(callback)

    def when_event(self, callback: Callable[[Event], None]) -> None:
        self._followers.append(callback)

    def cancel(self) -> None:
        self.cancelled = True

    def result(self) -> Result:
        if isinstance(self.outcome, KamadoError):
            raise self.outcome
        assert self.outcome is not None
        return self.outcome

    def finish(self, outcome: Result | KamadoError) -> None:
        self.outcome = outcome
        for follower in self._followers:
            follower(Finished("r", "stop"))
        for ender in self._enders:
            ender()


class FakeModel:
    """Answers at once with `answer(options)`, or, where that is None, once the test says so."""

    def __init__(self, answer: Callable[[dict[str, Any]], Result | KamadoError] | None = None) -> None:
        self.in_memory = True
        self.jobs: list[FakeJob] = []
        self._answer = answer

    def submit(self, **options: Any) -> FakeJob:
        if options.get("prompt") == "refuse":
            raise kamado.InvalidRequest("this prompt is refused")
        self.in_memory = True
        job = FakeJob(options)
        self.jobs.append(job)
        if self._answer is not None:
            job.outcome = self._answer(options)
            job.when_done = lambda callback: callback()  # type: ignore[method-assign]
        return job

    def unload(self) -> None:
        """Nothing to give back."""


class FakeRuntime:
    def __init__(self, **models: FakeModel) -> None:
        self.models = models
        self.loads: list[tuple[str, dict[str, Any]]] = []

    def load(self, reference: str, **settings: Any) -> FakeModel:
        self.loads.append((reference, settings))
        return self.models[reference]


def said(text: str) -> Result:
    """A text as a result."""
    return Result(request_id="r", choices=(Choice(index=0, text=text, tokens=(), finish_reason="stop"),))


def echo(options: dict[str, Any]) -> Result | KamadoError:
    """Says what it was asked; fails where that is "fail"."""
    return GenerationFailed("it broke") if options["prompt"] == "fail" else said(f"<{options['prompt']}>")
