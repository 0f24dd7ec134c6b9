"""Undoing what the converter to GGUF did to a weight.

Functions take float tensors in GGUF's form (outermost dimension first) and the transformers config. Legend: H hidden
size, A query heads, K key-value heads, D values of a head, I intermediate size, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

Transform = Callable[[Any, Tensor], Tensor]


def _interleave_halves(tensor: Tensor, heads: int) -> Tensor:
    """Rows of each head: (x0, y0, x1, y1, ...) -> (x0, x1, ..., y0, y1, ...), the order that rotates halves."""
    return tensor.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(tensor.shape)


def unpermute_q(config: Any, tensor: Tensor) -> Tensor:
    """[A*D, H] or [A*D]."""
    return _interleave_halves(tensor, config.num_attention_heads)


def unpermute_k(config: Any, tensor: Tensor) -> Tensor:
    """[K*D, H] or [K*D]."""
    return _interleave_halves(tensor, config.num_key_value_heads)


def minus_one(config: Any, tensor: Tensor) -> Tensor:
    """Norms that multiply by 1 + weight are stored as 1 + weight."""
    return tensor.sub_(1)


def transposed(config: Any, tensor: Tensor) -> Tensor:
    """GPT-2's Conv1D: [out, in] -> [in, out]. A bias stays as it is."""
    return tensor.t() if tensor.ndim == 2 else tensor


TRANSFORMS: Mapping[str, Transform] = {
    "unpermute_q": unpermute_q,
    "unpermute_k": unpermute_k,
    "minus_one": minus_one,
    "transposed": transposed,
}
"""From name to function, for `Architecture.transforms`."""

Merge = Callable[..., Tensor]

MERGES: Mapping[str, Merge] = {}
"""From name to function (config, tensor, tensor, ...) for `Architecture.merged`."""
