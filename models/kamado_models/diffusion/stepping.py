"""Which schedulers the code of a pipeline class can work with: found in its source, before anything is computed."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from kamado.errors import InvalidRequest

from .schedulers import SHORT_NAMES, new_scheduler


def replace_scheduler(pipeline: Any, name: str) -> None:
    """Have `pipeline`, and those inside it that share its scheduler, step with the scheduler `name`. Inner pipelines
    with a scheduler of their own, as priors have, keep it. Raises InvalidRequest."""
    before = getattr(pipeline, "scheduler", None)
    found = new_scheduler(before, name)
    stepping = [each for each in (pipeline, *inner_pipelines(pipeline)) if getattr(each, "scheduler", None) is before]
    kinds: list[Any] = [type(each) for each in stepping]  # mypy doubts that classes hash
    if _leaves_variance(before, found) and any((code := _code(kind)) is not None and code.splits for kind in kinds):
        # The pipeline takes the variance off a prediction itself, unless this tells it that the scheduler will.
        found.register_to_config(variance_type=None)
    for each in stepping:
        each.scheduler = found


def inner_pipelines(pipeline: Any) -> list[Any]:
    """The pipelines that a combined pipeline runs one after another."""
    from diffusers import DiffusionPipeline

    return [part for part in vars(pipeline).values() if isinstance(part, DiffusionPipeline)]


class WatchedStep:
    """The `step` of one scheduler, seen by `watch(step, *args, **kwargs)`, which makes it. Copies of the scheduler, as
    pipelines make them for a second kind of latents, step unseen."""

    def __init__(self, scheduler: Any, watch: Callable[..., Any]) -> None:
        self._scheduler = scheduler
        self._step = scheduler.step
        self._watch = watch
        functools.update_wrapper(self, self._step)  # pipelines look up what a step takes

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._watch(self._step, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo.get(id(self._scheduler))
        return self._step if copied is None else types.MethodType(type(copied).step, copied)


def check_stepping(kind: Any, base: Any, name: str) -> None:
    """Raise InvalidRequest for a scheduler `name`, in place of the model's own `base`, that pipelines of class `kind`
    would give what it does not take, or whose scaling of the latents they would leave out."""
    reason = _obstacle(kind, base, name)
    if reason is not None:
        usable = [short for short in SHORT_NAMES if _works(kind, base, short)]
        raise InvalidRequest(
            f"the scheduler {name!r} does not work with {kind.__name__}, {reason}; "
            f"usable are {', '.join(usable) or 'its own only'}"
        )


def _works(kind: Any, base: Any, name: str) -> bool:
    try:
        return _obstacle(kind, base, name) is None
    except InvalidRequest:
        return False


def _obstacle(kind: Any, base: Any, name: str) -> str | None:
    """Raises InvalidRequest for names that `new_scheduler` refuses."""
    scheduler = new_scheduler(base, name)
    if type(scheduler) is type(base):
        return None
    taken = inspect.signature(scheduler.step).parameters
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    for code in map(_code, _stepping_classes(kind)):
        if code is None or not code.steps:
            continue
        if not open_ended and not any(keywords <= taken.keys() for keywords in code.steps):
            return f"which gives it {', '.join(sorted(code.steps[0] - taken.keys()))}"
        if not code.scales and _scales(scheduler):
            return "which does not scale its latents"
        if not code.splits and _leaves_variance(base, scheduler) and not _knows_variance(scheduler):
            return "whose model predicts a variance, too"
    return None


@dataclass(frozen=True, slots=True)
class _Code:
    """What a class does with its scheduler."""

    steps: tuple[frozenset[str], ...]
    """The keywords of each call of `step`."""
    scales: bool
    """Whether it calls `scale_model_input`."""
    splits: bool
    """Whether it asks if the scheduler knows what to do with a predicted variance, and else takes it off itself."""


def _stepping_classes(kind: Any) -> list[Any]:
    """The classes of the pipelines that a combined one hands its scheduler to, or the class itself."""
    found = []
    try:
        calls = list(_calls(kind.__init__))
    except (OSError, TypeError):
        return [kind]
    for call in calls:
        hands_over = any(
            each.arg == "scheduler" and isinstance(each.value, ast.Name) and each.value.id == "scheduler"
            for each in call.keywords
        )
        if hands_over and isinstance(call.func, ast.Name):
            found.append(kind.__init__.__globals__.get(call.func.id))
    return [each for each in found if isinstance(each, type)] or [kind]


@functools.cache
def _code(kind: Any) -> _Code | None:
    """None where there is no source to look at."""
    from diffusers import DiffusionPipeline

    steps: list[frozenset[str]] = []
    scales = splits = False
    for each in kind.__mro__:
        if each is DiffusionPipeline or not issubclass(each, DiffusionPipeline):
            continue
        try:
            calls = list(_calls(each))
            splits = splits or "variance_type" in inspect.getsource(each)
        except (OSError, TypeError):
            return None
        named = [(call.func.attr, call) for call in calls if isinstance(call.func, ast.Attribute)]
        steps += [
            frozenset(word.arg for word in call.keywords if word.arg)
            for name, call in named
            if name == "step" and ast.unparse(call.func).endswith("scheduler.step")
        ]
        scales = scales or any(name == "scale_model_input" for name, _ in named)
    return _Code(tuple(steps), scales, splits)


def _calls(code: Any) -> Iterator[ast.Call]:
    """Every call in the source of a class or function. Raises OSError or TypeError where there is none."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def _leaves_variance(base: Any, scheduler: Any) -> bool:
    """Whether the model predicts a variance beside the noise, as `base` expects, and `scheduler` is none of the kind
    that uses it."""
    learned = str(base.config.get("variance_type", "")).startswith("learned")
    return learned and not type(scheduler).__name__.startswith("DDPM")


def _knows_variance(scheduler: Any) -> bool:
    return "variance_type" in inspect.signature(type(scheduler).__init__).parameters


def _scales(scheduler: Any) -> bool:
    """Whether models must get other latents than the scheduler keeps. Changes the scheduler."""
    if not hasattr(scheduler, "scale_model_input"):
        return False
    sample = torch.ones(1, 1, 1, 1)
    try:
        scheduler.set_timesteps(4)
        return not torch.equal(scheduler.scale_model_input(sample, scheduler.timesteps[0]), sample)
    except (TypeError, ValueError):  # it wants to know what only its pipeline knows, like the size of the picture
        return False
