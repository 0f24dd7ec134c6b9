"""Conversions of tensors that are not read yet: library code renames, cuts and joins them as if they were there.

Each tensor of a file is represented by a `torch.Tensor` that knows its shape and how it will come about. Operations on
such tensors compute shapes alone, on the meta device, and note what is to be done; reading the result does it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch.utils import _pytree as pytree

from .stream import TORCH_DTYPES, ReadableTensor

_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}

Conversion = Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]]


class ShapedTensor(ReadableTensor, Protocol):
    """A tensor whose shape is known before it is read."""

    @property
    def shape(self) -> tuple[int, ...]: ...


def converted(tensors: Mapping[str, ShapedTensor], conversion: Conversion) -> dict[str, ShapedTensor]:
    """What `conversion` makes of `tensors`, to be read later. It gets a dictionary of its own, which it may change.

    It may use shapes, dtypes and any operation of torch, but no values. A result that is cut out of a larger tensor is
    read as a tensor of its own. Raises what `conversion` raises.
    """
    latest = _Latest()
    with torch.no_grad():
        made = conversion({name: _deferred(tensor, latest) for name, tensor in tensors.items()})
    return {name: _Converted(name, tensor) for name, tensor in made.items()}


class _Latest:
    """The tensor that was read last: the results that are cut out of one tensor mostly lie side by side."""

    def __init__(self) -> None:
        self._kept: tuple[ShapedTensor, torch.Tensor] | None = None

    def read(self, source: ShapedTensor) -> torch.Tensor:
        kept = self._kept
        if kept is not None and kept[0] is source:
            return kept[1]
        tensor = source.read()
        self._kept = (source, tensor)
        return tensor


class _Deferred(torch.Tensor):
    """A tensor that `make()` will give."""

    make: Callable[[], torch.Tensor]

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's annotations leave the class out
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        leaves, spec = pytree.tree_flatten((args, kwargs or {}))

        def run(stand_for: Callable[[torch.Tensor], torch.Tensor]) -> Any:
            given = [stand_for(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
            positional, named = pytree.tree_unflatten(given, spec)
            return func(*positional, **named)

        results, result_spec = pytree.tree_flatten(run(_shape_of))

        def later(index: int) -> Callable[[], torch.Tensor]:
            return lambda: pytree.tree_flatten(run(_value_of))[0][index]

        return pytree.tree_unflatten(
            [_new(leaf, later(i)) if isinstance(leaf, torch.Tensor) else leaf for i, leaf in enumerate(results)],
            result_spec,
        )


def _deferred(tensor: ShapedTensor, latest: _Latest) -> torch.Tensor:
    shape = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return _new(shape, lambda: latest.read(tensor))


def _new(like: torch.Tensor, make: Callable[[], torch.Tensor]) -> torch.Tensor:
    made: _Deferred = torch.Tensor._make_wrapper_subclass(
        _Deferred, like.shape, strides=like.stride(), dtype=like.dtype, device=torch.device("cpu")
    )
    made.make = make
    return made


def _shape_of(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _value_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.make() if isinstance(tensor, _Deferred) else tensor


class _Converted:
    """See ShapedTensor."""

    def __init__(self, name: str, tensor: torch.Tensor) -> None:
        self.name = name
        self.nbytes = tensor.numel() * tensor.element_size()
        self._tensor = tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self._tensor.dtype

    def get_shape(self) -> list[int]:
        return list(self._tensor.shape)

    def get_dtype(self) -> str:
        return _NAMES[self._tensor.dtype]

    def read(self) -> torch.Tensor:
        with torch.no_grad():
            value = _value_of(self._tensor).contiguous()
            return value if value.untyped_storage().nbytes() == self.nbytes else value.clone()

    def __getitem__(self, index: object) -> torch.Tensor:
        tensor = self.read()
        return tensor if index is Ellipsis else tensor[index]  # type: ignore[index]
