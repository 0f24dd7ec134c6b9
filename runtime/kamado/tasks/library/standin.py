"""Stand-ins for models: library code calls them as it would call the model, and the loop makes the call.

A stand-in is an object of the model's own class that shares its weights, so that the library can ask it for its
configuration, dtype, parts and type. Only its entry points lead elsewhere, and nothing can move or convert it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from .coroutine import Autocast, active_autocast
from .views import Views

M = TypeVar("M", bound=nn.Module)

_RENDERING = ("decode_to_image", "decode_to_mesh")
_ENTRIES = ("forward", "encode", "decode", *_RENDERING)
"""Methods that the loop runs, where a class has them. `encode` and `decode` are autoencoders', the last two those of
renderers, which write into their own weights first."""
_MOVES = ("to", "cuda", "cpu", "xpu", "half", "float", "double", "bfloat16")
"""Methods that would change weights which all requests share."""
_CONTEXTS = ("cache_context",)
"""Methods that give caches on the model (diffusers' hooks) a name for the calls inside. No model here has such caches:
requests would share them."""

_NAMELESS = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY)
_END = "_kamado_dissolve"
"""Attribute of a stand-in that takes it apart."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Of an object that a setting is about: equal as long as the object lives."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelCall:
    """One call of an entry point of a model."""

    module: nn.Module
    """The model, or one like it that this request has set up for itself (tiling, say). Weights are shared."""
    method: str
    """`forward`, `encode` or `decode`."""
    positional: tuple[Any, ...] = ()
    """Arguments that have no name (`*args`). They come first; such a call is made alone."""
    arguments: Mapping[str, Any]
    """By parameter name, as the method's signature has them; `**kwargs` are spread into it."""
    num_by_place: int = 0
    """How many of `arguments`, the first ones, the library gave by their place: hooks see the difference."""
    autocast: Autocast
    settings: tuple[tuple[str, Any], ...]
    """What this request has set on the model, otherwise than others: plain values, and the Identity of any other."""

    def run(self, arguments: Mapping[str, Any] | None = None) -> Any:
        """Make the call, with other arguments of the same form if given."""
        method = self.module if self.method == "forward" else getattr(self.module, self.method)
        given = list((self.arguments if arguments is None else arguments).items())
        by_place = [value for _, value in given[: self.num_by_place]]
        if not self.autocast:
            return method(*self.positional, *by_place, **dict(given[self.num_by_place :]))
        with ExitStack() as stack:
            for device, dtype in self.autocast:
                stack.enter_context(torch.autocast(device, dtype=dtype))
            return method(*self.positional, *by_place, **dict(given[self.num_by_place :]))


def stand_in(model: M, divert: Callable[[ModelCall], Any]) -> M:
    """An object like `model` whose entry points call `divert` and return what that returns.

    Inside an entry point that `divert` runs, calls are not diverted again. What the library sets on the stand-in, or on
    any part of it, holds for its calls alone. Calls of parts by the library itself are not diverted.
    """
    views: Views[M]
    replaced = {name: _entry(model, name, lambda: views, divert) for name in _ENTRIES if _is_entry(model, name)}
    replaced |= dict.fromkeys(_MOVES, lambda *_, **__: views.root)
    replaced |= dict.fromkeys((name for name in _CONTEXTS if hasattr(model, name)), lambda *_, **__: nullcontext())

    def end() -> None:
        views.dissolve()

    replaced[_END] = end
    views = Views(model, replaced)
    return views.root


def dissolve(stand: nn.Module) -> None:
    """Take a stand-in apart, which cannot be used afterwards: until then its parts, and who set it up, hold each other.
    Anything else stays as it is."""
    end = vars(stand).get(_END)
    if end is not None:
        end()


def _is_entry(model: nn.Module, name: str) -> bool:
    if name == "forward" or name in _RENDERING:
        return callable(getattr(type(model), name, None))
    return callable(getattr(type(model), "encode", None)) and callable(getattr(type(model), "decode", None))


def _entry(model: nn.Module, name: str, views: Callable[[], Views[Any]], divert: Callable[[ModelCall], Any]) -> Any:
    """The diverted method `name`."""
    kind: Any = type(model)  # mypy doubts that classes hash
    taken = _taken(kind, name)

    def entry(*args: Any, **kwargs: Any) -> Any:
        positional, arguments = taken.by_name(args, kwargs)
        settings = _settings(views())
        # The model itself where nothing was set: what it notes about itself when it runs must not get lost.
        module = views().module() if settings else model
        result = divert(
            ModelCall(
                module=module,
                method=name,
                positional=positional,
                arguments=arguments,
                num_by_place=len(args) - len(positional),
                autocast=active_autocast(),
                settings=settings,
            )
        )
        if module is model:
            views().refresh()
        return result

    entry.__signature__ = taken.signature  # type: ignore[attr-defined]  # libraries look up what a model takes
    return entry


@dataclass(frozen=True, slots=True)
class _Taken:
    """What a method takes, without `self`."""

    signature: inspect.Signature
    names: tuple[str, ...]
    """Of parameters that can be given by their place or name, in order; none where there are others too."""
    required: frozenset[str]
    """Those of them that must be given."""

    def by_name(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call: those that have no name, and the others by their names, in the signature's order."""
        names = self.names
        if len(args) <= len(names) and kwargs.keys().isdisjoint(names[: len(args)]):
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            if self.required <= given.keys() <= set(names):
                return (), {name: given[name] for name in names if name in given}
        try:
            arguments = dict(self.signature.bind(*args, **kwargs).arguments)
        except TypeError:  # a decorator takes more than the signature says
            return args, dict(kwargs)
        for parameter in self.signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                arguments |= arguments.pop(parameter.name, {})
            elif parameter.kind in _NAMELESS and parameter.name in arguments:
                return args, dict(kwargs)
        return (), arguments


@functools.lru_cache(maxsize=1024)
def _taken(kind: type, name: str) -> _Taken:
    """By the method `name` of a class."""
    whole = inspect.signature(getattr(kind, name))
    parameters = list(whole.parameters.values())[1:]
    plain = all(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in parameters)
    known = parameters if plain else []
    return _Taken(
        signature=whole.replace(parameters=parameters),
        names=tuple(parameter.name for parameter in known),
        required=frozenset(parameter.name for parameter in known if parameter.default is parameter.empty),
    )


def _settings(views: Views[Any]) -> tuple[tuple[str, Any], ...]:
    settings = [(name, _setting(value)) for name, value in views.own().items()]
    if views.parts_changed():
        settings.append(("", Identity(id(views))))  # of this request alone
    return tuple(sorted(settings, key=lambda setting: setting[0]))


def _setting(value: Any) -> Any:
    """Equal where two requests have set the same."""
    return value if isinstance(value, (bool, int, float, str, type(None))) else Identity(id(value))
