"""Running a chain over many inputs: which step's request is sent next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from ..errors import Cancelled, KamadoError
from ..events import Event
from ..jobs import Job, result_or_error
from ..results import Result
from .chain import Chain, ChainResult, ChainStep
from .references import filled

if TYPE_CHECKING:
    from ..api import Model, Runtime

OnEvent = Callable[[int, str, Event], None] | None


@dataclass(slots=True)
class _Run:
    """One set of inputs on its way."""

    index: int
    inputs: Mapping[str, Any]
    results: dict[str, Result] = field(default_factory=dict)
    errors: dict[str, KamadoError] = field(default_factory=dict)
    sent: dict[str, Job] = field(default_factory=dict)

    def look_up(self, name: str) -> Any:
        """An input, or the result of a step."""
        return self.results[name] if name in self.results else self.inputs[name]

    def ready(self, order: Iterable[ChainStep]) -> list[ChainStep]:
        """Steps that can be sent."""
        known = {*self.inputs, *self.results}
        return [
            step
            for step in order
            if step.name not in self.sent and step.name not in self.errors and step.needs <= known
        ]

    @property
    def is_over(self) -> bool:
        """Whether nothing of it runs. (Asked when nothing is ready.)"""
        return all(name in self.results or name in self.errors for name in self.sent)

    def result(self) -> ChainResult:
        """What became of it."""
        return ChainResult(index=self.index, inputs=self.inputs, results=self.results, errors=self.errors)


def run_all(
    chain: Chain, runtime: Runtime, inputs: Iterable[Mapping[str, Any]], concurrency: int, on_event: OnEvent
) -> Iterator[ChainResult]:
    """See `Chain.map`."""
    source = enumerate(inputs)
    runs: dict[int, _Run] = {}
    finished: SimpleQueue[tuple[int, str]] = SimpleQueue()
    models: dict[str, Model] = {}
    try:
        while True:
            while len(runs) < concurrency and (item := next(source, None)) is not None:
                runs[item[0]] = _Run(item[0], chain.check_inputs(item[1]))
                if not models:
                    models = _loaded(chain, runtime)
            if not runs:
                return
            _send_ready(chain, runs, models, finished, on_event)
            for index in [index for index, run in runs.items() if run.is_over and not run.ready(chain.order)]:
                yield runs.pop(index).result()
            if any(not run.is_over for run in runs.values()):
                index, name = finished.get()
                _settle(runs[index], name)
    finally:
        for run in runs.values():
            for job in run.sent.values():
                job.cancel()


def _loaded(chain: Chain, runtime: Runtime) -> dict[str, Model]:
    """The model of each step; steps with the same model and settings share one."""
    found: dict[tuple[str, str], Model] = {}
    with ExitStack() as undone:
        for step in chain.steps:
            key = _key(step)
            if key not in found:
                found[key] = runtime.load(step.model, **step.load)
                undone.callback(found[key].unload)
        undone.pop_all()
    return {step.name: found[_key(step)] for step in chain.steps}


def _key(step: ChainStep) -> tuple[str, str]:
    """Equal for steps that can share a model."""
    return step.model, repr(sorted(step.load.items(), key=lambda item: item[0]))


def _send_ready(
    chain: Chain,
    runs: Mapping[int, _Run],
    models: Mapping[str, Model],
    finished: SimpleQueue[tuple[int, str]],
    on_event: OnEvent,
) -> None:
    """Send what can be sent: first to models that are in memory, so that one that is out takes the place of another
    only when that has nothing left to do here."""
    while ready := [(run, step) for run in runs.values() for step in run.ready(chain.order)]:
        chosen = [(run, step) for run, step in ready if models[step.name].in_memory]
        if not chosen and not all(run.is_over for run in runs.values()):
            return  # a model that is out would wait until the others are idle: their answers come first
        for run, step in chosen or ready[:1]:
            _send(run, step, models[step.name], finished, on_event)


def _send(run: _Run, step: ChainStep, model: Model, finished: SimpleQueue[tuple[int, str]], on_event: OnEvent) -> None:
    try:
        job = model.submit(**filled(step.options, run.look_up))
    except KamadoError as error:
        run.errors[step.name] = error
        return
    run.sent[step.name] = job
    index, name = run.index, step.name
    if on_event is not None:
        tell = on_event
        job.when_event(lambda event: tell(index, name, event))
    job.when_done(lambda: finished.put((index, name)))


def _settle(run: _Run, name: str) -> None:
    outcome = result_or_error(run.sent[name])
    if isinstance(outcome, Result):
        run.results[name] = outcome
    else:
        if isinstance(outcome, Cancelled):
            outcome = Cancelled(f"step {name}: {outcome}")
        run.errors[name] = outcome
