"""Undoing what the converter to GGUF did to a weight.

Functions take float tensors in GGUF's form (outermost dimension first) and the transformers config. Legend: H hidden
size, A query heads, K key-value heads, D values of a head, I intermediate size, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Transform = Callable[[Any, Tensor], Tensor]


def _interleave_halves(tensor: Tensor, heads: int) -> Tensor:
    """Rows of each head: (x0, y0, x1, y1, ...) -> (x0, x1, ..., y0, y1, ...), the order that rotates halves."""
    pairs = tensor.reshape(heads, -1, 2, *tensor.shape[1:])
    return pairs.transpose(1, 2).reshape(tensor.shape)


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


def one_row(config: Any, tensor: Tensor) -> Tensor:
    """[H] -> [1, H]: a linear layer with one output."""
    return tensor.reshape(1, -1)


def one_channel(config: Any, tensor: Tensor) -> Tensor:
    """[C, W] -> [C, 1, W]: a depthwise convolution."""
    return tensor.unsqueeze(1)


def log_of_negative(config: Any, tensor: Tensor) -> Tensor:
    """Mamba's A is stored as -exp(A_log)."""
    return tensor.neg_().log_()


def each_transposed(config: Any, tensor: Tensor) -> Tensor:
    """[E, H, I] -> [E, I, H]."""
    return tensor.transpose(1, 2)


def interleave_qkv(config: Any, tensor: Tensor) -> Tensor:
    """All queries, all keys, all values [3*A*D, ...] -> head by head (q, k, v): BLOOM, GPT-NeoX."""
    parts = tensor.reshape(3, config.num_attention_heads, -1, *tensor.shape[1:])
    return parts.transpose(0, 1).reshape(tensor.shape)


def group_qkv(config: Any, tensor: Tensor) -> Tensor:
    """All queries, all keys, all values [(A+2K)*D, ...] -> for each key head its queries, key and value: Falcon."""
    heads, kv_heads = config.num_attention_heads, config.num_kv_heads
    if not config.new_decoder_architecture:
        kv_heads = 1 if config.multi_query else heads
    size = tensor.shape[0] // (heads + 2 * kv_heads)
    queries, keys, values = tensor.split([heads * size, kv_heads * size, kv_heads * size])
    grouped = [part.reshape(kv_heads, -1, size, *tensor.shape[1:]) for part in (queries, keys, values)]
    return torch.cat(grouped, dim=1).reshape(tensor.shape)


TRANSFORMS: Mapping[str, Transform] = {
    "unpermute_q": unpermute_q,
    "unpermute_k": unpermute_k,
    "minus_one": minus_one,
    "transposed": transposed,
    "each_transposed": each_transposed,
    "one_row": one_row,
    "one_channel": one_channel,
    "log_of_negative": log_of_negative,
    "interleave_qkv": interleave_qkv,
    "group_qkv": group_qkv,
}
"""From name to function, for `Architecture.transforms`."""

Merge = Callable[..., Tensor]


def stacked_gate_up(config: Any, gate: Tensor, up: Tensor) -> Tensor:
    """[E, I, H] twice -> [E, 2*I, H]."""
    return torch.cat([gate, up], dim=1)


def alternating(config: Any, gate: Tensor, up: Tensor) -> Tensor:
    """[E, I] twice -> [E, 2*I]: gate, up, gate, up, ..."""
    return torch.stack([gate, up], dim=2).flatten(1, 2)


def alternating_columns(config: Any, gate: Tensor, up: Tensor) -> Tensor:
    """[E, I, H] twice -> [E, H, 2*I]."""
    return alternating(config, gate, up).transpose(1, 2)


def keys_and_values(config: Any, keys: Tensor, values: Tensor) -> Tensor:
    """DeepSeek's [A, rank, N] and [A, V, rank] -> [A*(N+V), rank]."""
    return torch.cat([keys.transpose(1, 2), values], dim=1).flatten(0, 1)


MERGES: Mapping[str, Merge] = {
    "stacked_gate_up": stacked_gate_up,
    "alternating": alternating,
    "alternating_columns": alternating_columns,
    "keys_and_values": keys_and_values,
}
"""From name to function (config, tensor, tensor, ...) for `Architecture.merged`."""
