"""A model of several components whose own code runs as it is, while each component's forwards are made by its lane.

A double of the model is made for one answer: an object of its class that shares every weight, in which chosen methods
of chosen parts lead to the loop. Library code (`generate`, a vocoder behind it) that is called on the double then runs
between forwards, as ADR 0023 has it, and everything that it sets on the double is this answer's own.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .kinds import Bench

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Through:
    """Methods of one part that run as forwards of a lane."""

    lane: str
    methods: tuple[str, ...] = ("forward",)


def doubled(model: nn.Module, bench: Bench, parts: Mapping[str, Through]) -> Any:
    """A double of `model` for the answer of `bench`. `parts`: by path in the model ("" is the model itself), what of it
    runs as forwards. Parts below such a part run inside its forward, unless library code calls them by themselves and
    they are named too."""
    double = _shallow(model)
    doubles: dict[str, nn.Module] = {"": double}
    for path in sorted(parts, key=lambda path: path.count(".")):
        if path:
            _double_at(doubles, path)
    for path, through in parts.items():
        real = model.get_submodule(path)
        for method in through.methods:
            # Called, and not its `forward` alone: what brings weights that are elsewhere hangs on the call.
            run = real if method == "forward" else getattr(real, method)
            doubles[path].__dict__[method] = _diverted(getattr(real, method), run, bench, through.lane)
    return double


def _double_at(doubles: dict[str, nn.Module], path: str) -> nn.Module:
    """The double of the part at `path`, and of all that hold it."""
    if path not in doubles:
        above, _, name = path.rpartition(".")
        holder = _double_at(doubles, above)
        doubles[path] = _shallow(holder._modules[name])
        holder._modules[name] = doubles[path]
    return doubles[path]


def _shallow(module: Any) -> Any:
    """The same weights under another object. Generation settings, which library code changes, are its own."""
    double = copy.copy(module)
    double.__dict__["_modules"] = dict(module._modules)
    for hooks in ("_forward_pre_hooks", "_forward_hooks"):
        double.__dict__[hooks] = type(module.__dict__[hooks])()  # they run with the module itself
    if "generation_config" in module.__dict__:
        double.__dict__["generation_config"] = copy.deepcopy(module.generation_config)
    return double


def _diverted(like: Any, run: Callable[..., Any], bench: Bench, lane: str) -> Callable[..., Any]:
    @functools.wraps(like)  # libraries look up what a forward takes
    def call(*args: Any, **kwargs: Any) -> Any:
        return bench.run(lane, lambda: run(*args, **kwargs), _cost((*args, *kwargs.values())))

    return call


def _cost(values: Sequence[Any]) -> int:
    """Positions of a call: those of its longest tensor of token numbers, or of vectors."""
    import torch

    sizes = [
        value.shape[0] * (value.shape[1] if value.ndim > 1 else 1)
        for value in values
        if isinstance(value, torch.Tensor) and value.ndim
    ]
    return max((*sizes, 1))
