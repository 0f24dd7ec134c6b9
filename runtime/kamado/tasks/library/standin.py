"""Stand-ins for models: library code calls them as it would call the model, and the loop makes the call.

A stand-in is an object of the model's own class that shares its weights, so that the library can ask it for its
configuration, dtype, parts and type. Only its entry points lead elsewhere, and nothing can move or convert it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from .coroutine import Autocast, active_autocast

M = TypeVar("M", bound=nn.Module)

_ENTRIES = ("forward", "encode", "decode")
"""Methods that the loop runs, where a class has them. `encode` and `decode` are autoencoders'."""
_MOVES = ("to", "cuda", "cpu", "xpu", "half", "float", "double", "bfloat16", "requires_grad_")
"""Methods that would change weights which all requests share. Residency owns placement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCall:
    """One call of an entry point of a model."""

    module: nn.Module
    """The model, or one like it that this request has set up for itself (tiling, say). Weights are shared."""
    method: str
    """`forward`, `encode` or `decode`."""
    arguments: Mapping[str, Any]
    """By parameter name, as the method's signature has them; `**kwargs` are spread into it."""
    autocast: Autocast
    settings: tuple[tuple[str, Any], ...]
    """What this request has set on the model, otherwise than others."""

    def run(self, arguments: Mapping[str, Any] | None = None) -> Any:
        """Make the call, with other arguments of the same form if given."""
        method = self.module if self.method == "forward" else getattr(self.module, self.method)
        given = self.arguments if arguments is None else arguments
        if not self.autocast:
            return method(**given)
        ((device, dtype), *_) = self.autocast
        with torch.autocast(device, dtype=dtype):
            return method(**given)


def stand_in(model: M, divert: Callable[[ModelCall], Any]) -> M:
    """An object like `model` whose entry points call `divert` and return what that returns.

    Inside an entry point that `divert` runs, calls are not diverted again. What the library sets on the stand-in holds
    for its calls alone.
    """
    view = _twin(model)
    before = dict(view.__dict__)
    for name in _ENTRIES:
        if _is_entry(model, name):
            view.__dict__[name] = _entry(model, view, before, name, divert)
    for name in _MOVES:
        view.__dict__[name] = lambda *_, **__: view
    return view


def _is_entry(model: nn.Module, name: str) -> bool:
    if name == "forward":
        return True
    return callable(getattr(type(model), "encode", None)) and callable(getattr(type(model), "decode", None))


def _twin(model: M) -> M:
    twin: M = object.__new__(type(model))
    twin.__dict__.update(model.__dict__)
    # Parts that the request swaps are swapped for it alone.
    twin.__dict__["_modules"] = dict(model._modules)
    return twin


def _entry(
    model: nn.Module, view: nn.Module, before: Mapping[str, Any], name: str, divert: Callable[[ModelCall], Any]
) -> Any:
    """The diverted method `name` of `view`, whose attributes were `before` when it was made."""
    full = inspect.signature(getattr(type(view), name))
    signature = full.replace(parameters=list(full.parameters.values())[1:])
    diverted = {*_ENTRIES, *_MOVES}

    def entry(*args: Any, **kwargs: Any) -> Any:
        own = {
            key: value
            for key, value in view.__dict__.items()
            if key not in diverted and key != "_modules" and before.get(key, diverted) is not value
        }
        parts = {key: part for key, part in view._modules.items() if model._modules.get(key) is not part}
        module = model
        if own or parts:
            # Else the model itself: what it notes about itself when it runs (hooks, say) must not get lost.
            module = _twin(model)
            module.__dict__.update(own)
            module._modules.update(parts)
        arguments = _by_name(signature, args, kwargs)
        if arguments is None:
            return (module if name == "forward" else getattr(module, name))(*args, **kwargs)
        settings = [(key, _setting(value)) for key, value in (*own.items(), *parts.items())]
        return divert(
            ModelCall(
                module=module,
                method=name,
                arguments=arguments,
                autocast=active_autocast(),
                settings=tuple(sorted(settings)),
            )
        )

    entry.__signature__ = signature  # type: ignore[attr-defined]  # libraries look up what a model takes
    return entry


def _by_name(signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The arguments of a call by their names; None where they have no names."""
    try:
        arguments = dict(signature.bind(*args, **kwargs).arguments)
    except TypeError:  # a decorator takes more than the signature says
        return None
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments |= arguments.pop(parameter.name, {})
        elif parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY) and parameter.name in arguments:
            return None
    return arguments


def _setting(value: Any) -> Any:
    """Equal where two requests have set the same."""
    return value if isinstance(value, (bool, int, float, str, type(None))) else id(value)
