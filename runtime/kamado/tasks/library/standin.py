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
    """The model as this request has set it up (tiling, say), without diversions. Weights are shared."""
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

    Inside an entry point that `divert` runs, calls are not diverted again.
    """
    view = _twin(model)
    shared = dict(model.__dict__)
    for name in _ENTRIES:
        if _is_entry(model, name):
            view.__dict__[name] = _entry(view, shared, name, divert)
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


def _entry(view: nn.Module, shared: Mapping[str, Any], name: str, divert: Callable[[ModelCall], Any]) -> Any:
    full = inspect.signature(getattr(type(view), name))
    signature = full.replace(parameters=list(full.parameters.values())[1:])
    parts = dict(view._modules)

    def entry(*args: Any, **kwargs: Any) -> Any:
        module = _twin(view)
        for diverted in (*_ENTRIES, *_MOVES):
            module.__dict__.pop(diverted, None)
        arguments = _by_name(signature, args, kwargs)
        if arguments is None:
            return (module if name == "forward" else getattr(module, name))(*args, **kwargs)
        settings = [
            (key, _setting(value))
            for key, value in module.__dict__.items()
            if key != "_modules" and shared.get(key, _ENTRIES) is not value
        ]
        settings += [(key, id(part)) for key, part in module._modules.items() if parts.get(key) is not part]
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
