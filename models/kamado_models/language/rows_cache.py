"""Library caches as trees of tensors: joined over rows for one batched forward, and cut into rows again.

A cache is whatever the model keeps between two forwards: a `transformers.Cache`, a list of state tensors, a dict of
such. Every tensor in it has the rows as its first dimension, except where this module says otherwise. Rows of different
length are padded on the left, as transformers' own padded batches are; encoder states are padded on the right.

Names: B rows, H heads, S tokens, D head size. This module knows nothing of sequences, models or memory budgets.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicCache, DynamicLayer

from .rows_memory import ROUND_TOKENS, RowShape

_TOKEN_AXES: dict[str, tuple[int, int]] = {
    # attribute: (rows' dimension, tokens' dimension)
    "keys": (0, 2),  # BHSD
    "values": (0, 2),  # BHSD
    "indexer_keys": (0, 1),  # BSD
    "indexer_position_ids": (1, 2),  # _BS
}
_GROWN = frozenset({"keys", "values", "key_room", "value_room"})
_CROSS = frozenset({"cross_attention_cache", "encoder"})
"""Below these names, tokens are the encoder's."""
_ENCODER_STATES_AXIS = (0, 1)  # BSD


class Unstackable(ValueError):
    """These rows' states cannot be brought into one batch."""


class GrowingLayer(DynamicLayer):
    """A cache layer that appends in place while there is room, instead of copying all keys and values for every token.

    `keys` and `values` are views of the first tokens of a larger buffer. A copy of the object shares the buffer and
    writes only beyond its own tokens, so that the object copied from still holds what it held.
    """

    key_room: Tensor | None = None
    value_room: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        past = self.get_seq_length()
        self.key_room = _with_room(self.keys if past else None, self.key_room, key_states)
        self.value_room = _with_room(self.values if past else None, self.value_room, value_states)
        end = past + key_states.shape[-2]
        self.key_room[:, :, past:end] = key_states
        self.value_room[:, :, past:end] = value_states
        self.keys, self.values = self.key_room[:, :, :end], self.value_room[:, :, :end]
        return self.keys, self.values


def _with_room(past_BHSD: Tensor | None, room_BHSD: Tensor | None, new_BHSD: Tensor) -> Tensor:
    """A buffer that starts with the past tokens and has room for the new ones: the present one if it has."""
    num_past = 0 if past_BHSD is None else past_BHSD.shape[-2]
    needed = num_past + new_BHSD.shape[-2]
    if past_BHSD is not None and room_BHSD is not None and room_BHSD.shape[-2] >= needed:
        return room_BHSD
    rows, heads, _, size = new_BHSD.shape
    room = new_BHSD.new_empty(rows, heads, _capacity(needed), size)
    if past_BHSD is not None:
        room[:, :, :num_past] = past_BHSD
    return room


def _capacity(num_tokens: int) -> int:
    return -(-num_tokens // ROUND_TOKENS) * ROUND_TOKENS


def new_cache(config: PreTrainedConfig, *, window: int | None = None, growing: bool = True) -> DynamicCache:
    """An empty cache for the decoder of `config`. `window` shortens sliding windows in the cache alone: for probes.

    `growing=False` is for keys and values that are computed once and never added to."""
    cache = DynamicCache(config=config.get_text_config(decoder=True))
    layers: list[Any] = cache.layers
    kind: Any = GrowingLayer if growing else DynamicLayer
    cache.layers = [kind() if type(layer) is DynamicLayer else layer for layer in layers]
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = kind
    for layer in layers if window is not None else ():
        if isinstance(getattr(layer, "sliding_window", None), int):
            layer.sliding_window = min(layer.sliding_window, window)
    return cache


def fork(cache: Any) -> Any:
    """A cache that a forward may write into while the given one keeps what it holds."""
    return _walk([cache], "", False, _Fork())


def stack(caches: Sequence[Any], shapes: Sequence[RowShape]) -> Any:
    """One cache of all rows, from caches of one row each. Raises Unstackable.

    The given ones stay as they are, and forwards with the new one do not touch them."""
    if len(caches) == 1:
        return fork(caches[0])
    return _walk(list(caches), "", False, _Stack(max(s.source for s in shapes)))


def split(cache: Any, index: int, shapes: Sequence[RowShape]) -> Any:
    """Row `index` of a cache, as a view that shares its memory. `shapes` are those of all its rows."""
    if len(shapes) == 1:
        return cache
    return _walk([cache], "", False, _Split(index, shapes))


def select(cache: Any, indices: Sequence[int], shapes: Sequence[RowShape]) -> Any:
    """A cache of some rows, in memory of its own."""
    rows = [split(cache, i, shapes) for i in indices]
    if len(rows) == 1:
        return _walk(rows, "", False, _Own())
    return stack(rows, [shapes[i] for i in indices])


def num_bytes(cache: Any) -> int:
    """Bytes of state in a cache, spare room not counted."""
    tally = _Tally()
    _walk([cache], "", False, tally)
    return tally.total


class _Visitor:
    """What is made of the leaves that stand at the same place of several caches. The default leaves them alone."""

    def tensor(self, tensors: list[Tensor], name: str, cross: bool, trusted: bool) -> Tensor:
        """`trusted`: the owner never writes into this tensor, it replaces it."""
        return tensors[0]

    def grown(self, tensors: list[Tensor], room: Tensor | None, name: str) -> tuple[Tensor, Tensor | None]:
        """Keys or values of growing layers, and the buffer that they are the beginning of, if it may be added to.
        `room` is the first one's."""
        return self.tensor(tensors, name, False, True), None

    def plain(self, values: list[Any], name: str) -> Any:
        return values[0]


class _Fork(_Visitor):
    def grown(self, tensors: list[Tensor], room: Tensor | None, name: str) -> tuple[Tensor, Tensor | None]:
        return tensors[0], room

    def tensor(self, tensors: list[Tensor], name: str, cross: bool, trusted: bool) -> Tensor:
        return tensors[0] if trusted or tensors[0].ndim == 0 else tensors[0].clone()


class _Own(_Visitor):
    def tensor(self, tensors: list[Tensor], name: str, cross: bool, trusted: bool) -> Tensor:
        return tensors[0].clone()


class _Tally(_Visitor):
    def __init__(self) -> None:
        self.total = 0

    def tensor(self, tensors: list[Tensor], name: str, cross: bool, trusted: bool) -> Tensor:
        self.total += tensors[0].nbytes if tensors[0].ndim else 0
        return tensors[0]


class _Stack(_Visitor):
    def __init__(self, max_source: int) -> None:
        self._max_source = max_source

    def tensor(self, tensors: list[Tensor], name: str, cross: bool, trusted: bool) -> Tensor:
        first = tensors[0]
        if first.ndim == 0 or all(t.ndim == 1 and t.numel() == 0 for t in tensors):
            return first
        axes = _axes(name, cross, first)
        if axes is None:
            if any(t.shape[1:] != first.shape[1:] for t in tensors):
                raise Unstackable(f"states named {name!r} differ in shape: {[tuple(t.shape) for t in tensors]}")
            return torch.cat(tensors, dim=0)
        longest = self._max_source if cross else max(t.shape[axes[1]] for t in tensors)
        return _padded(tensors, axes, longest, left=not cross)

    def grown(self, tensors: list[Tensor], room: Tensor | None, name: str) -> tuple[Tensor, Tensor | None]:
        if any(t.ndim != 4 for t in tensors):  # nothing in them yet
            return self.tensor(tensors, name, False, True), None
        longest = max(t.shape[2] for t in tensors)
        joined = _padded(tensors, _TOKEN_AXES[name], longest, spare=_capacity(longest + 1) - longest)
        return joined[:, :, :longest], joined

    def plain(self, values: list[Any], name: str) -> Any:
        if name == "cumulative_length":
            return max(values)
        if any(value is not values[0] and value != values[0] for value in values):
            raise Unstackable(f"rows differ in {name!r}: {values!r:.100}")
        return values[0]


class _Split(_Visitor):
    def __init__(self, index: int, shapes: Sequence[RowShape]) -> None:
        self._index, self._shape = index, shapes[index]
        self._padding = max(s.past for s in shapes) - self._shape.past

    def tensor(self, tensors: list[Tensor], name: str, cross: bool, trusted: bool) -> Tensor:
        whole = tensors[0]
        if whole.ndim == 0 or (whole.ndim == 1 and whole.numel() == 0):
            return whole
        axes = _axes(name, cross, whole)
        row = whole.narrow(axes[0] if axes else 0, self._index, 1)
        if axes is None:
            return row
        if cross:
            return row.narrow(axes[1], 0, self._shape.source)
        held = row.shape[axes[1]]
        keep = min(self._shape.past, held)  # a sliding layer holds its last tokens only
        return row.narrow(axes[1], held - keep, keep)

    def plain(self, values: list[Any], name: str) -> Any:
        return values[0] - self._padding if name == "cumulative_length" else values[0]


def _axes(name: str, cross: bool, tensor: Tensor) -> tuple[int, int] | None:
    """Dimensions of rows and tokens, or None for a state that does not grow."""
    if name == "encoder":
        return _ENCODER_STATES_AXIS
    axes = _TOKEN_AXES.get(name)
    return axes if axes is not None and tensor.ndim > axes[1] else None


def _padded(tensors: list[Tensor], axes: tuple[int, int], longest: int, *, left: bool = True, spare: int = 0) -> Tensor:
    """Tensors of one row each, padded with zeros to `longest` tokens and joined, with unset `spare` tokens behind."""
    row_dim, token_dim = axes
    if not spare and all(t.shape[token_dim] == longest for t in tensors):
        return torch.cat(tensors, dim=row_dim)
    shape = list(tensors[0].shape)
    shape[row_dim], shape[token_dim] = len(tensors), longest + spare
    joined = tensors[0].new_empty(shape)
    for index, tensor in enumerate(tensors):
        row, length = joined.narrow(row_dim, index, 1), tensor.shape[token_dim]
        row.narrow(token_dim, longest - length if left else 0, length).copy_(tensor)
        row.narrow(token_dim, 0 if left else length, longest - length).zero_()
    return joined


def _walk(values: list[Any], name: str, cross: bool, visitor: _Visitor, trusted: bool = False) -> Any:
    """The tree that `visitor` makes of equally built trees."""
    first = values[0]
    if isinstance(first, Tensor):
        if not all(isinstance(value, Tensor) for value in values):
            raise Unstackable(f"only some rows have {name!r}")
        return visitor.tensor(values, name, cross, trusted)
    if isinstance(first, dict):
        if any(value.keys() != first.keys() for value in values):
            raise Unstackable(f"rows differ in the entries of {name!r}")
        made = copy.copy(first)
        for key in first:
            child = key if isinstance(key, str) else name
            made[key] = _walk([v[key] for v in values], child, cross or key in _CROSS, visitor, child == "encoder")
        return made
    if isinstance(first, (list, tuple)):
        if any(len(value) != len(first) for value in values):
            raise Unstackable(f"rows differ in the length of {name!r}")
        return type(first)(_walk(list(column), name, cross, visitor) for column in zip(*values, strict=True))
    if _is_container(first):
        return _walk_object(values, cross, visitor)
    return visitor.plain(values, name)


def _walk_object(values: list[Any], cross: bool, visitor: _Visitor) -> Any:
    """A new object of the same class with every attribute walked."""
    first = values[0]
    made = object.__new__(type(first))
    own = type(first).__module__ in _TRUSTED_MODULES
    growing = isinstance(first, GrowingLayer) and first.keys is not None
    for name in vars(first):
        parts = [vars(value).get(name) for value in values]
        if growing and name in _GROWN:
            continue
        if isinstance(parts[0], MethodType) and parts[0].__self__ is first:  # a method that a model has replaced
            vars(made)[name] = MethodType(parts[0].__func__, made)
            continue
        vars(made)[name] = _walk(parts, name, cross or name in _CROSS, visitor, own and name in _TOKEN_AXES)
    if growing:
        made.keys, made.key_room = visitor.grown([v.keys for v in values], first.key_room, "keys")
        made.values, made.value_room = visitor.grown([v.values for v in values], first.value_room, "values")
    return made


_TRUSTED_MODULES = frozenset({"transformers.cache_utils", __name__})
"""Their layers replace keys and values, or append beyond what is held; other modules' classes may write into them."""


def _is_container(value: Any) -> bool:
    """Whether state is to be looked for in the attributes of `value`: caches and cache layers of transformers."""
    if isinstance(value, (nn.Module, PreTrainedConfig, type)) or not hasattr(value, "__dict__"):
        return False
    return not callable(value) and any(base.__module__.split(".")[0] == "transformers" for base in type(value).__mro__)
