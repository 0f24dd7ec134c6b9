"""Views of a model: objects like its modules, over the same weights, on which one request may set what it likes.

Library code sets tiling on a model, swaps attention processors, hangs hooks on layers, all the way down. On a view that
holds for its request alone. Views of parts are made when the library first looks at them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)

_MISSING = object()
_CONTAINERS = tuple(key for key, value in nn.Module().__dict__.items() if isinstance(value, dict) and key != "_modules")
"""Where a module keeps its weights and hooks, and changes them in place."""
_UNMOVED = ("_apply", "requires_grad_")
"""What all moves and conversions of weights go through. Weights are shared, and residency owns placement."""
_READERS = frozenset(
    {
        *("get_parameter_dtype", "get_parameter_device", "get_module_execution_device", "reset_stateful_hooks"),
        *("_get_top_level_group_offload_hook", "device", "dtype"),
    }
)
"""Functions of diffusers and transformers that walk through all modules, often, and set nothing on those that the
request has not set up itself: a view of each would be a waste."""
_ALL_MODULES: Mapping[str, Any] = {"memo": None, "prefix": "", "remove_duplicate": True}
"""What `named_modules` takes by default."""
_WALKS = frozenset(
    id(getattr(nn.Module, name).__code__)
    for name in ("modules", "parameters", "named_parameters", "buffers", "named_buffers", "_named_members")
)
"""Code through which they do, by identity: it hashes slowly."""


class Views(Generic[M]):
    """The views of one model that one request has."""

    def __init__(self, model: M, replaced: Mapping[str, Any]) -> None:
        """`replaced`: methods of the model's own view that are others."""
        self._model = model
        self._walk: list[tuple[str, nn.Module]] = []
        """All modules, once somebody has walked through them."""
        self._views: dict[int, _View] = {}
        self.root: M = self._view(model)  # type: ignore[assignment]
        """The view of the model itself."""
        self._top = self._views[id(model)]
        # The call itself runs the model's hooks; those that the request hangs on the view run around it.
        self._top.replace({key: type(model.__dict__[key])() for key in _CONTAINERS if "forward" in key})
        self._top.replace({"named_modules": self._named_modules, **replaced})

    def own(self) -> dict[str, Any]:
        """What the request has set on the model itself, otherwise than it was, with the parts that it has swapped."""
        return self._top.own() | self._top.parts.swapped()

    def parts_changed(self) -> bool:
        """Whether the request has changed anything in a part of the model."""
        others = (view for view in self._views.values() if view is not self._top)
        return self._top.parts_exchanged or any(view.changed() for view in others)

    def module(self) -> M:
        """A module like the model, with what the request has set."""
        module: M = object.__new__(type(self._model))
        module.__dict__.update(self._model.__dict__)
        module.__dict__.update(self._top.own())
        if self._top.parts.swapped() or self.parts_changed():
            module.__dict__["_modules"] = self.root._modules
        return module

    def refresh(self) -> None:
        """Take over what the model's modules have noted about themselves since."""
        for view in self._views.values():
            view.refresh()

    def dissolve(self) -> None:
        """Let go of the model and of all that was set: the views hold each other, and can no longer be used."""
        for view in self._views.values():
            view.module.__dict__.clear()
        self.__dict__.clear()

    def _named_modules(self, *args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(1)
        while caller.f_back is not None and (id(caller.f_code) in _WALKS or caller.f_code.co_name == "<genexpr>"):
            caller = caller.f_back
        if caller.f_code.co_name in _READERS and not self._top.parts.swapped() and not self.parts_changed():
            return self._as_they_are(*args, **kwargs)
        return type(self._model).named_modules(self.root, *args, **kwargs)

    def _as_they_are(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        """The modules: views where there are any."""
        plain = not args and all(kwargs.get(name, value) == value for name, value in _ALL_MODULES.items())
        if plain and not self._walk:
            self._walk = list(self._model.named_modules())
        for name, module in self._walk if plain else self._model.named_modules(*args, **kwargs):
            view = self._views.get(id(module))
            yield name, module if view is None else view.module

    def _view(self, module: nn.Module) -> nn.Module:
        known = self._views.get(id(module))
        if known is None:
            known = self._views[id(module)] = _View(module, self._view)
        return known.module


class _View:
    """The view of one module."""

    def __init__(self, original: nn.Module, view: Callable[[nn.Module], nn.Module]) -> None:
        self.module: nn.Module = object.__new__(type(original))
        self.parts = _Parts(original._modules, view)
        self._original = original
        self._before = dict(original.__dict__)
        self._before.update({key: self._before[key].copy() for key in _CONTAINERS})
        self._noted = [*map(id, original.__dict__.values())]
        self._replaced = {"_modules"}
        state = self.module.__dict__
        state.update(original.__dict__, _modules=self.parts)
        state.update({key: state[key].copy() for key in _CONTAINERS})
        self.replace({name: lambda *_, **__: self.module for name in _UNMOVED})

    @property
    def parts_exchanged(self) -> bool:
        """Whether the parts as a whole were exchanged, as some containers of modules do."""
        return self.module._modules is not self.parts

    def replace(self, attributes: Mapping[str, Any]) -> None:
        """Set attributes that do not count as set by the request."""
        self.module.__dict__.update(attributes)
        self._replaced.update(attributes)
        self._seen = self._identities()

    def own(self) -> dict[str, Any]:
        """What was set on the view, parts left out."""
        identities = self._identities()
        if identities == self._seen:
            return {}
        own = {
            key: value
            for key, value in self.module.__dict__.items()
            if key not in self._replaced and not self._is_as_before(key, value)
        }
        if not own:
            self._seen = identities
        return own

    def changed(self) -> bool:
        """Whether anything was set on the view, parts included."""
        return bool(self.parts_exchanged or self.parts.swapped() or self.own())

    def refresh(self) -> None:
        """Take over what the module has set on itself since, where the request has not set that."""
        if [*map(id, self._original.__dict__.values())] == self._noted:
            return
        state = self.module.__dict__
        for key, value in self._original.__dict__.items():
            before = self._before.get(key, _MISSING)
            if before is value or key in _CONTAINERS or key in self._replaced:
                continue
            if state.get(key, _MISSING) is before:
                state[key] = value
            self._before[key] = value
        self._noted = [*map(id, self._original.__dict__.values())]

    def _identities(self) -> list[int]:
        """Another list when anything was set. What was there before is kept alive, so its identities are not used
        again."""
        state = self.module.__dict__
        return [*map(id, state.values()), *(id(value) for key in _CONTAINERS for value in state[key].values())]

    def _is_as_before(self, key: str, value: Any) -> bool:
        before = self._before.get(key, _MISSING)
        if key not in _CONTAINERS:
            return before is value
        return value.keys() == before.keys() and all(value[name] is before[name] for name in value)


class _Parts(dict[str, nn.Module | None]):
    """The parts of a view: views, made when they are first looked at."""

    def __init__(self, originals: Mapping[str, nn.Module | None], view: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__(originals)
        self._view = view
        self._unseen = {name for name, part in originals.items() if part is not None}
        self._before = dict(originals)
        """Views of those that were looked at, originals of the others."""

    def swapped(self) -> dict[str, nn.Module | None]:
        """The parts that are not what they were; None for those that have gone."""
        if [*map(id, super().values())] == [*map(id, self._before.values())]:
            return {}
        found = {name: super(_Parts, self).get(name) for name in self._before.keys() | self.keys()}
        return {name: part for name, part in found.items() if part is not self._before.get(name)}

    def __getitem__(self, name: str) -> nn.Module | None:
        part = super().__getitem__(name)
        if part is not None and name in self._unseen:
            self._unseen.discard(name)
            part = self._before[name] = self._view(part)
            super().__setitem__(name, part)
        return part

    def __setitem__(self, name: str, part: nn.Module | None) -> None:
        self._unseen.discard(name)
        super().__setitem__(name, part)

    def get(self, name: str, default: Any = None) -> Any:
        try:
            return self[name]
        except KeyError:
            return default

    def values(self) -> Any:
        return [self[name] for name in self]

    def items(self) -> Any:
        return [(name, self[name]) for name in self]
