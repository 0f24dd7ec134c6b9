"""`kamado.Chain`: steps, what each takes from the others, and the order that follows from it. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import InvalidRequest, KamadoError
from ..events import Event
from ..results import Result
from .references import FIELDS, names_in

if TYPE_CHECKING:
    from ..api import Runtime

MAX_STEPS = 64
MAX_CONCURRENCY = 1024
CONCURRENCY = 8
"""Inputs in flight unless told otherwise: enough to keep all models of a chain busy."""


@dataclass(frozen=True, slots=True)
class ChainStep:
    """One model of a chain.

    ChainStep("picture", "emoji-diffusion:64", prompt="{idea}", steps=25)
    """

    name: str
    """By which others refer to what it makes."""
    model: str
    """Reference, as `Runtime.load` takes it."""
    options: Mapping[str, Any]
    """Of its request. `{name}` in them is an input of the chain, or what an earlier step made; `{name.text}`, `.image`,
    `.images`, `.audio`, `.video`, `.mesh`, `.embedding`, `.scores` say which part of that."""
    load: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `Runtime.load`: quant, dtype, ..."""

    def __init__(self, name: str, model: str, *, load: Mapping[str, Any] | None = None, **options: Any) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "model", str(model))
        object.__setattr__(self, "options", dict(options))
        object.__setattr__(self, "load", dict(load or {}))

    @property
    def needs(self) -> frozenset[str]:
        """The inputs and steps that it refers to."""
        return frozenset(name for name, _ in names_in(self.options))


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainResult:
    """What became of one set of inputs."""

    index: int
    """Which of the sets, from 0."""
    inputs: Mapping[str, Any]
    results: Mapping[str, Result] = field(repr=False)
    """By step: those that were made."""
    errors: Mapping[str, KamadoError] = field(default_factory=dict)
    """By step: those that failed. Steps that depend on one of them are in neither."""

    def __getitem__(self, step: str) -> Result:
        """The result of a step. Raises what it failed of, or KeyError where it was not run."""
        if step in self.errors:
            raise self.errors[step]
        return self.results[step]

    @property
    def is_whole(self) -> bool:
        """Whether every step was made."""
        return not self.errors


class Chain:
    """Steps over models of one runtime. Steps whose inputs are there run, whatever the others do: what does not depend
    on each other runs at once, and the next inputs' first steps while the last steps of these run."""

    def __init__(self, steps: Iterable[ChainStep], *, inputs: Sequence[str] = ()) -> None:
        """`inputs`: names of what is given with each run; those that steps refer to and nobody makes are among them by
        themselves. Raises InvalidRequest for names twice, unknown fields, and steps that wait for each other."""
        self.steps = tuple(steps)
        names = [step.name for step in self.steps]
        _check_names(names, inputs)
        wanted = {name for step in self.steps for name in step.needs} - set(names)
        self.inputs = tuple(dict.fromkeys((*inputs, *sorted(wanted))))
        for step in self.steps:
            for name, part in names_in(step.options):
                if part is not None and part not in FIELDS:
                    raise InvalidRequest(
                        f"step {step.name}: {{{name}.{part}}} names no part of a result; there are {', '.join(FIELDS)}"
                    )
        self.order = _ordered(self.steps)
        """The steps, each behind those that it needs."""

    def run(
        self,
        runtime: Runtime,
        *,
        on_event: Callable[[str, Event], None] | None = None,
        **inputs: Any,
    ) -> ChainResult:
        """Run it once. `on_event(step, event)` is called, on the loop's thread, with what steps emit. Raises
        InvalidRequest for inputs that are missing or unknown, what loading the models raises, and what a step failed
        of."""
        (result,) = self.map(runtime, [inputs], on_event=None if on_event is None else lambda _, *told: on_event(*told))
        for error in result.errors.values():
            raise error
        return result

    def map(
        self,
        runtime: Runtime,
        inputs: Iterable[Mapping[str, Any]],
        *,
        concurrency: int = CONCURRENCY,
        on_event: Callable[[int, str, Event], None] | None = None,
    ) -> Iterator[ChainResult]:
        """Run it for each set of inputs, `concurrency` of them at once; a result each, as it is whole. A step that
        fails ends what depends on it, and nothing else. Models are loaded first, and stay in the runtime. Leaving the
        iterator cancels what runs. `on_event(index, step, event)`: see `run`. Raises as `run` does, but for what steps
        failed of."""
        from .running import run_all

        if isinstance(concurrency, bool) or not isinstance(concurrency, int) or not 1 <= concurrency <= MAX_CONCURRENCY:
            raise InvalidRequest(f"concurrency must be a whole number from 1 to {MAX_CONCURRENCY}, not {concurrency!r}")
        return run_all(self, runtime, inputs, concurrency, on_event)

    def with_settings(self, load: Mapping[str, Any]) -> Chain:
        """The same chain, whose models are also loaded with these settings."""
        steps = [ChainStep(step.name, step.model, load={**step.load, **load}, **step.options) for step in self.steps]
        return Chain(steps, inputs=self.inputs)

    def check_inputs(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs of one run. Raises InvalidRequest for missing and for unknown ones."""
        if not isinstance(given, Mapping):
            raise InvalidRequest(f"inputs of a chain are a mapping of names to values, not {given!r:.80}")
        missing = [name for name in self.inputs if given.get(name) is None]
        unknown = sorted(map(str, given.keys() - set(self.inputs)))
        if missing or unknown:
            said = [f"lacks {', '.join(missing)}"] if missing else []
            said += [f"does not take {', '.join(unknown)}"] if unknown else []
            raise InvalidRequest(f"the chain {' and '.join(said)}; its inputs are {', '.join(self.inputs) or 'none'}")
        return dict(given)


def _check_names(names: Sequence[str], inputs: Sequence[str]) -> None:
    if not 0 < len(names) <= MAX_STEPS:
        raise InvalidRequest(f"a chain has 1 to {MAX_STEPS} steps, not {len(names)}")
    for name in (*names, *inputs):
        if not isinstance(name, str) or not name.isidentifier() or not name.isascii():
            raise InvalidRequest(f"{name!r:.80} cannot be a name in a chain: letters, digits and _ can")
    twice = sorted({name for name in (*names, *inputs) if (*names, *inputs).count(name) > 1})
    if twice:
        raise InvalidRequest(f"the chain has {', '.join(twice)} more than once")


def _ordered(steps: Sequence[ChainStep]) -> tuple[ChainStep, ...]:
    names, done, ordered = {step.name for step in steps}, set[str](), list[ChainStep]()
    while len(ordered) < len(steps):
        ready = [step for step in steps if step.name not in done and not (step.needs & names) - done]
        if not ready:
            waiting = ", ".join(step.name for step in steps if step.name not in done)
            raise InvalidRequest(f"these steps of the chain wait for each other: {waiting}")
        ordered += ready
        done |= {step.name for step in ready}
    return tuple(ordered)
