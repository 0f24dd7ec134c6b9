"""Calls of one model by several requests as one call: which may be joined, how, and how the result is taken apart.

A call's rows are the first dimension of its first tensor (or the entries of its first list of tensors). Then

    a tensor with as many entries in its first dimension     is stacked
    a list of as many tensors, if the first argument is one  is joined
    a list of as many numbers, shapes or texts               is joined
    a time step                                              becomes one entry a row
    any other tensor                                         must be equal in all calls
    anything else                                            must be equal in all calls

Whether a model computes each row for itself is not known here: who joins calls of a model for the first time compares.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakTensorKeyDictionary

_TIME_ARGUMENTS = ("t", "time", "timestep", "timesteps", "sigma", "sigmas", "r_timestep", "timestep_r")


@dataclass(frozen=True, slots=True)
class Form:
    """What calls must have in common to be joined."""

    rows: int
    """Of this call; calls of different numbers of rows may be joined."""
    key: Hashable
    positions: int
    """Entries of the first tensor in a row, channels left out: the size of a picture's latents, of a text."""


class Stacker:
    """Joins calls. Not thread safe."""

    def __init__(self, without_effect: frozenset[str] = frozenset()) -> None:
        """`without_effect`: arguments that the model takes and does not use."""
        self._without_effect = without_effect
        self._digests: Any = WeakTensorKeyDictionary()

    def form(self, arguments: Mapping[str, Any]) -> Form | None:
        """The form of a call, or None for one that has no rows."""
        lead = _lead(arguments)
        if lead is None:
            return None
        rows = lead.shape[0] if isinstance(lead, Tensor) else len(lead)
        parts = tuple(
            (name, self._part(name, value, rows, lead))
            for name, value in sorted(arguments.items())
            if name not in self._without_effect
        )
        return Form(rows, parts, _positions(lead))

    def join(self, calls: Sequence[Mapping[str, Any]], rows: Sequence[int]) -> dict[str, Any]:
        """The arguments of one call in place of `calls`, all of one form, with so many rows each."""
        lead = _lead(calls[0])
        joined = {}
        for name, first in calls[0].items():
            values = [call[name] for call in calls]
            if _is_row_list(first, rows[0], lead):
                joined[name] = [item for value in values for item in value]
                continue
            leaves = [pytree.tree_flatten(value)[0] for value in values]
            spec = pytree.tree_flatten(first)[1]
            joined[name] = pytree.tree_unflatten(
                [_join_leaf(name, column, rows) for column in zip(*leaves, strict=True)], spec
            )
        return joined

    def _part(self, name: str, value: Any, rows: int, lead: Any) -> Hashable:
        if _is_row_list(value, rows, lead):
            items = {(tuple(i.shape), i.dtype) if isinstance(i, Tensor) else repr(i) for i in value}
            return ("list", *sorted(map(str, items)))
        leaves, spec = pytree.tree_flatten(value)
        return (str(spec), *(self._leaf(name, leaf, rows) for leaf in leaves))

    def _leaf(self, name: str, leaf: Any, rows: int) -> Hashable:
        if not isinstance(leaf, Tensor):
            return leaf if isinstance(leaf, (bool, int, float, str, bytes, type(None), torch.dtype)) else id(leaf)
        if _is_time(name, leaf):
            return "time"
        if leaf.ndim and leaf.shape[0] == rows:
            return ("rows", tuple(leaf.shape[1:]), leaf.dtype)
        return ("same", tuple(leaf.shape), leaf.dtype, self._digest(leaf))

    def _digest(self, tensor: Tensor) -> bytes:
        known: bytes | None = self._digests.get(tensor)
        if known is None:
            raw = tensor.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy()
            known = self._digests[tensor] = hashlib.blake2b(raw.tobytes(), digest_size=16).digest()
        return known


def split(result: Any, rows: Sequence[int]) -> list[Any] | None:
    """The results of the single calls, taken from the result of the joined one. None where that has no such rows."""
    total = sum(rows)
    if _is_tensor_list(result) and len(result) == total and not all(t.ndim and t.shape[0] == total for t in result):
        starts = _starts(rows)
        return [type(result)(result[start : start + count]) for start, count in zip(starts, rows, strict=True)]
    leaves, spec = pytree.tree_flatten(result)
    columns = []
    for leaf in leaves:
        pieces = _split_leaf(leaf, rows, total)
        if pieces is None:
            return None
        columns.append(pieces)
    return [pytree.tree_unflatten([column[i] for column in columns], spec) for i in range(len(rows))]


def same(one: Any, other: Any, tolerance: float) -> bool:
    """Whether two results agree: no value differs by more than `tolerance` times the largest one."""
    ours, theirs = (_tensors(value) for value in (one, other))
    if len(ours) != len(theirs):
        return False
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape:
            return False
        if a.numel() and not bool((a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1e-3)):
            return False
    return True


def _lead(arguments: Mapping[str, Any]) -> Any:
    """The first argument, in the method's order, that is a tensor with rows or a list of tensors."""
    for name, value in arguments.items():
        if isinstance(value, Tensor) and value.ndim >= 2 and not _is_time(name, value):
            return value
        if _is_tensor_list(value):
            return value
    return None


def _positions(lead: Any) -> int:
    first = lead[0]
    per_row: int = first.numel() if first.ndim < 2 else first.numel() // first.shape[0 if first.ndim > 2 else -1]
    return per_row


def _is_row_list(value: Any, rows: int, lead: Any) -> bool:
    """Whether it is a list with an entry for each row."""
    if not isinstance(value, list) or len(value) != rows:
        return False
    if _is_tensor_list(value):
        return not isinstance(lead, Tensor)
    return all(isinstance(leaf, (int, float, str)) for leaf in pytree.tree_leaves(value))


def _is_tensor_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(item, Tensor) for item in value)


def _is_time(name: str, leaf: Tensor) -> bool:
    return leaf.numel() == 1 and name in _TIME_ARGUMENTS


def _join_leaf(name: str, values: Sequence[Any], rows: Sequence[int]) -> Any:
    first = values[0]
    if not isinstance(first, Tensor):
        return first
    if _is_time(name, first):
        # Schedulers count in whole numbers or in fractions: as one tensor, all are fractions.
        return torch.cat([value.reshape(1).expand(count) for value, count in zip(values, rows, strict=True)])
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
    if leaf is None or isinstance(leaf, (bool, int, float, str)):
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
    for start, count in zip(_starts(rows), rows, strict=True):
        piece = copy.copy(cache)
        piece.layers = [copy.copy(layer) for layer in layers]
        for layer in piece.layers:
            layer.keys, layer.values = layer.keys[start : start + count], layer.values[start : start + count]
        pieces.append(piece)
    return pieces


def _starts(rows: Sequence[int]) -> list[int]:
    return [sum(rows[:index]) for index in range(len(rows))]


def _tensors(value: Any) -> list[Tensor]:
    found = []
    for leaf in pytree.tree_flatten(value)[0]:
        tensor = leaf if isinstance(leaf, Tensor) else getattr(leaf, "parameters", None)
        if isinstance(tensor, Tensor):
            found.append(tensor.float())
    return found
