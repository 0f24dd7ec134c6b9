"""Calls of one model by several requests as one call: which may be joined, how, and how the result is taken apart.

A call's rows are the first dimension of its first tensor (or the entries of its first list or tuple of tensors). Then

    a tensor with as many entries in its first dimension      is stacked
    a list or tuple of as many tensors, if the rows are such  is joined
    a list, but no tuple, of as many numbers, shapes, texts   is joined
    a time step, if it is one or there is one for each row    becomes one for each row
    any other tensor                                          must be equal in all calls
    anything else, tuples of numbers too                      must be equal in all calls

Whether a model computes each row for itself is not known here: who joins calls of a model for the first time compares.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

_TIME_ARGUMENTS = ("t", "time", "timestep", "timesteps", "sigma", "sigmas", "r_timestep", "timestep_r")
PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
"""Values that cannot change."""
_LEAVES = (Tensor, *PLAIN)


@dataclass(frozen=True, slots=True)
class Form:
    """What calls must have in common to be joined."""

    rows: int
    """Of this call; calls of different numbers of rows may be joined."""
    key: Hashable
    positions: int
    """Entries of the first tensor in a row, channels left out: the size of a picture's latents, of a text."""
    kind: Hashable
    """What becomes of each argument. Follows from the key."""


class _Content:
    """What is in a tensor now; equal for the same bytes. They are read when there is something to compare with: a call
    that nobody could join costs no hash, and no wait for a GPU."""

    __slots__ = ("_copy", "_digest")

    def __init__(self, tensor: Tensor) -> None:
        self._copy: Tensor | None = tensor.detach().clone()
        self._digest = b""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Content) and self._bytes() == other._bytes()

    def __hash__(self) -> int:
        return hash(self._bytes())

    def _bytes(self) -> bytes:
        if self._copy is not None:
            self._digest, self._copy = digest(self._copy), None
        return self._digest


class Stacker:
    """Joins calls. Not thread safe."""

    def __init__(self, without_effect: frozenset[str] = frozenset()) -> None:
        """`without_effect`: arguments that the model takes and does not use."""
        self._without_effect = without_effect

    def form(self, arguments: Mapping[str, Any]) -> Form | None:
        """The form of a call, or None for one that has no rows."""
        lead = self._lead(arguments)
        if lead is None:
            return None
        rows = len(lead)
        parts = tuple(
            (name, *_part(name, value, rows, lead))
            for name, value in sorted(arguments.items())
            if name not in self._without_effect
        )
        kind = tuple((name, tuple(leaf[0] for leaf in leaves)) for name, _, leaves in parts)
        return Form(rows, (isinstance(lead, Tensor), parts), _positions(lead), kind)

    def join(self, calls: Sequence[Mapping[str, Any]], rows: Sequence[int]) -> dict[str, Any]:
        """The arguments of one call in place of `calls`, all of one form, with so many rows each."""
        lead = self._lead(calls[0])
        joined = {}
        for name, first in calls[0].items():
            if name in self._without_effect:
                joined[name] = first
                continue
            values = [call[name] for call in calls]
            if _is_row_list(first, rows[0], lead):
                joined[name] = type(first)([item for value in values for item in value])
                continue
            leaves = [pytree.tree_flatten(value)[0] for value in values]
            spec = pytree.tree_flatten(first)[1]
            columns = zip(*leaves, strict=True)
            joined[name] = pytree.tree_unflatten([_join_leaf(name, column, rows, lead) for column in columns], spec)
        return joined

    def split(self, result: Any, arguments: Mapping[str, Any], rows: Sequence[int]) -> list[Any] | None:
        """The results of the single calls, taken from that of the joined one, which had these `arguments`. None where
        it has no such rows."""
        total = sum(rows)
        lists = not isinstance(self._lead(arguments), Tensor)

        def is_row_list(value: Any) -> bool:
            return lists and type(value) in (list, tuple) and len(value) == total and _is_tensor_list(value)

        leaves, spec = pytree.tree_flatten(result, is_leaf=is_row_list)
        columns = []
        for leaf in leaves:
            pieces = _cut(leaf, rows) if is_row_list(leaf) else _split_leaf(leaf, rows, total)
            if pieces is None:
                return None
            columns.append(pieces)
        return [pytree.tree_unflatten([column[i] for column in columns], spec) for i in range(len(rows))]

    def _lead(self, arguments: Mapping[str, Any]) -> Any:
        """The first argument, in the method's order, that is a tensor with rows or a list of tensors."""
        for name, value in arguments.items():
            if name in self._without_effect:
                continue
            if isinstance(value, Tensor) and value.ndim >= 2 and value.numel():
                return value
            if _is_tensor_list(value):
                return value
        return None


def _part(name: str, value: Any, rows: int, lead: Any) -> tuple[str, tuple[tuple[Any, ...], ...]]:
    """Of one argument: its structure, and of each leaf what becomes of it, with what must be equal for that."""
    if isinstance(value, _LEAVES):  # as below, at once: this is asked in every step
        return "*", (_leaf(name, value, rows),)
    if _is_row_list(value, rows, lead):
        items = {
            (tuple(item.shape), item.dtype, item.device) if isinstance(item, Tensor) else repr(item) for item in value
        }
        return type(value).__name__, (("joined", frozenset(items)),)
    leaves, spec = pytree.tree_flatten(value)
    return str(spec), tuple(_leaf(name, leaf, rows) for leaf in leaves)


def _leaf(name: str, leaf: Any, rows: int) -> tuple[Any, ...]:
    if not isinstance(leaf, Tensor):
        # Of other things than plain ones it is not known what they are: each is equal to itself alone.
        return ("equal", type(leaf), leaf if isinstance(leaf, PLAIN) else id(leaf))
    if _is_time(name, leaf, rows):
        return ("time",)
    if leaf.ndim and leaf.shape[0] == rows:
        return ("stacked", tuple(leaf.shape[1:]), leaf.dtype, leaf.device)
    return ("shared", tuple(leaf.shape), leaf.dtype, leaf.device, _Content(leaf))


def digest(tensor: Tensor) -> bytes:
    """Of its content, as it is now: tensors change in place, and those of inference mode do not count how often."""
    raw = tensor.detach().resolve_conj().resolve_neg().contiguous().view(-1).view(torch.uint8).cpu().numpy()
    return hashlib.blake2b(raw.tobytes(), digest_size=16).digest()


def _positions(lead: Any) -> int:
    first = lead[0]
    entries: int = (
        first.numel() if first.ndim < 2 else first.numel() // max(first.shape[0 if first.ndim > 2 else -1], 1)
    )
    return max(entries, 1)


def _is_row_list(value: Any, rows: int, lead: Any) -> bool:
    """Whether it is a list with an entry for each row."""
    if type(value) not in (list, tuple) or len(value) != rows:
        return False
    if _is_tensor_list(value):
        return not isinstance(lead, Tensor)
    return isinstance(value, list) and all(isinstance(leaf, (int, float, str)) for leaf in pytree.tree_leaves(value))


def _is_tensor_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(item, Tensor) for item in value)


def _is_time(name: str, leaf: Tensor, rows: int) -> bool:
    return name in _TIME_ARGUMENTS and leaf.ndim < 2 and leaf.numel() in (1, rows)


def _join_leaf(name: str, values: Sequence[Any], rows: Sequence[int], lead: Any) -> Any:
    first = values[0]
    if not isinstance(first, Tensor):
        return first
    if _is_time(name, first, rows[0]):
        # Schedulers count in whole numbers or in fractions: as one tensor, all are fractions. Models bring a single
        # number to their device themselves, but not a row of them.
        device = (lead if isinstance(lead, Tensor) else lead[0]).device
        times = [value.reshape(-1).to(device).expand(count) for value, count in zip(values, rows, strict=True)]
        return torch.cat(times)
    if first.ndim and first.shape[0] == rows[0]:
        return torch.cat(list(values))
    return first


def _split_leaf(leaf: Any, rows: Sequence[int], total: int) -> list[Any] | None:
    if isinstance(leaf, Tensor):
        return list(leaf.split(list(rows))) if leaf.ndim and leaf.shape[0] == total else None
    parameters = getattr(leaf, "parameters", None)
    if isinstance(parameters, Tensor):
        # diffusers' DiagonalGaussianDistribution: the latents of a picture, still to be drawn.
        pieces = _split_leaf(parameters, rows, total)
        return None if pieces is None else [type(leaf)(piece, leaf.deterministic) for piece in pieces]
    if isinstance(leaf, PLAIN):
        return [leaf] * len(rows)
    return _split_cache(leaf, rows, total)


def _split_cache(cache: Any, rows: Sequence[int], total: int) -> list[Any] | None:
    """transformers' Cache: keys and values of each layer, (rows, ...)."""
    layers = getattr(cache, "layers", None)
    if not isinstance(layers, list) or not all(
        isinstance(part, Tensor) and part.shape[0] == total
        for layer in layers
        for part in (getattr(layer, "keys", None), getattr(layer, "values", None))
    ):
        return None
    pieces = []
    for number in range(len(rows)):
        piece = copy.copy(cache)
        piece.layers = [copy.copy(layer) for layer in layers]
        for layer in piece.layers:
            layer.keys, layer.values = layer.keys.split(list(rows))[number], layer.values.split(list(rows))[number]
        pieces.append(piece)
    return pieces


def _cut(items: Any, rows: Sequence[int]) -> list[Any]:
    """Pieces of a list, so many entries each."""
    ends = list(itertools.accumulate(rows))
    return [items[end - count : end] for end, count in zip(ends, rows, strict=True)]
