"""Whether calls of a model that were made together give what each gives alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

_TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-9}
"""Largest difference between a row alone and in a batch, relative to the largest value: other orders of summation."""
_COARSE = 5e-2
"""The same for smaller types."""
_FAST = 1e-2
"""The same for float32 on devices that may round its factors (TF32)."""


def same(one: Any, other: Any) -> bool:
    """Whether two results of a model agree: in structure, and no value differs by more than rounding explains."""
    ours, theirs = tensors(one), tensors(other)
    return len(ours) == len(theirs) and all(close(a, b) for a, b in zip(ours, theirs, strict=True))


def rows_differ(results: Sequence[Any]) -> bool:
    """Whether the rows of these results are not all alike. Where they are, that results agree proves nothing: a model
    that takes a mean over its rows gives the same."""
    first = [found[0] for result in results if (found := tensors(result))]
    return any(not close(row, first[0][0]) for tensor in first for row in tensor)


def close(a: Tensor, b: Tensor) -> bool:
    """Whether no value differs by more than rounding explains. Values that are not finite must be equal."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    tolerance = _tolerance(b)
    a, b = (torch.view_as_real(value) if value.is_complex() else value for value in (a, b))
    if not a.is_floating_point():
        return torch.equal(a, b)
    a, b = (value if value.dtype == torch.float64 else value.float() for value in (a, b))
    finite = b.isfinite()
    if not torch.equal(finite, a.isfinite()) or not torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()):
        return False
    a, b = a[finite], b[finite]
    return not b.numel() or bool((a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1e-3))


def tensors(result: Any) -> list[Tensor]:
    """The tensors of a result, those in diffusers' distributions and transformers' caches included."""
    found: list[Tensor] = []
    for leaf in pytree.tree_leaves(result):
        layers = getattr(leaf, "layers", None)
        parts = [leaf, getattr(leaf, "parameters", None)]
        if isinstance(layers, list):
            parts += [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
        found += [part for part in parts if isinstance(part, Tensor)]
    return found


def _tolerance(tensor: Tensor) -> float:
    dtype = torch.view_as_real(tensor).dtype if tensor.is_complex() else tensor.dtype
    if dtype == torch.float32 and tensor.device.type != "cpu":
        return _FAST
    return _TOLERANCES.get(dtype, _COARSE)
