"""The forward of models of the Llama kind for single tokens on a GPU: products as the layers have them, and one kernel
for all that lies between two of them.

Between the products of a layer, transformers' modules launch some 25 kernels, each of which takes a GPU longer to begin
than to do; here there are four.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from kamado.kernels.gpu import has_kernels
from kamado.memory.shortage import is_shortage, release_cached
from kamado.weights.quantized.tensor import is_quantized

from .captured import FixedRows
from .native_step import is_llama_kind
from .pages import PageStore


class FusedStep:
    """See `captured.Way`. The model's layers are used as they are at each call, but that matrices which read the same
    input lie behind each other from now on, and are one product."""

    def __init__(self, model: Any, store: PageStore) -> None:
        from kamado.kernels.gpu import attention, layers

        self._attend, self._layers = attention.paged_attention, layers
        self._model = model
        self._store = store
        self._inputs: list[tuple[_Joined, _Joined]] = []
        for block in model.model.layers:
            read = _Joined(block.self_attn, ("q_proj", "k_proj", "v_proj"))
            self._inputs.append((read, _Joined(block.mlp, ("gate_proj", "up_proj"))))
            release_cached(str(model.device))  # what the layer had before is of another size than what comes next

    def __call__(self, rows: FixedRows) -> Tensor:
        """Logits (B, vocab)."""
        inner, between = self._model.model, self._layers
        x = inner.embed_tokens(rows.tokens)
        cos, sin = inner.rotary_emb(x[None], position_ids=rows.positions[None])
        angles = cos[0].contiguous(), sin[0].contiguous()
        residual, found = x, None
        for number, block in enumerate(inner.layers):
            residual, normed = self._normed(block.input_layernorm, residual, found)
            found = self._attention(block.self_attn, normed, angles, rows, number)
            residual, normed = self._normed(block.post_attention_layernorm, residual, found)
            gate, up = self._inputs[number][1](normed)
            found = block.mlp.down_proj(between.silu_times(gate, up))
        _, normed = self._normed(inner.norm, residual, found)
        logits: Tensor = self._model.lm_head(normed)
        return logits

    def _normed(self, norm: Any, residual: Tensor, found: Tensor | None) -> tuple[Tensor, Tensor]:
        made: tuple[Tensor, Tensor] = self._layers.add_norm(residual, found, norm.weight, norm.variance_epsilon)
        return made

    def _attention(
        self, attention: Any, x: Tensor, angles: tuple[Tensor, Tensor], rows: FixedRows, number: int
    ) -> Tensor:
        pages = self._store.keys[number], self._store.values[number]
        norms = None
        if getattr(attention, "q_norm", None) is not None:
            norms = (attention.q_norm.weight, attention.k_norm.weight, attention.q_norm.variance_epsilon)
        query, key, value = self._inputs[number][0](x)
        query = self._layers.turn_and_write(query, key, value, angles, rows.slots, pages, norms)
        seen = self._attend(query, *pages, rows.tables, rows.lengths, scale=attention.scaling)
        found: Tensor = attention.o_proj(seen.flatten(1))
        return found


class _Joined:
    """Linear layers that read the same input."""

    def __init__(self, holder: Any, names: Sequence[str]) -> None:
        """Where they are plain ones, their weights become parts of one tensor; it takes the memory of one more for a
        moment."""
        self._layers: list[Any] = [getattr(holder, name) for name in names]
        self._sizes = [layer.weight.shape[0] for layer in self._layers]
        self._weight: Tensor | None = None
        self._bias: Tensor | None = None
        if all(type(layer.weight) is torch.nn.Parameter for layer in self._layers):
            with torch.no_grad():
                self._weight = self._as_one("weight")
                if any(layer.bias is not None for layer in self._layers):
                    self._bias = self._as_one("bias")

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        """Each layer's result (B, out)."""
        if self._weight is None:
            return [layer(x) for layer in self._layers]
        parts: Sequence[Tensor] = linear(x, self._weight, self._bias).split(self._sizes, 1)
        return parts

    def _as_one(self, name: str) -> Tensor:
        first = self._layers[0].weight
        parts = [getattr(layer, name) for layer in self._layers]
        joined = torch.cat([first.new_zeros(n) if p is None else p for p, n in zip(parts, self._sizes, strict=True)])
        for layer, part in zip(self._layers, joined.split(self._sizes), strict=True):
            if getattr(layer, name) is not None:
                setattr(layer, name, torch.nn.Parameter(part, requires_grad=False))
        return joined


def fused_step(model: Any, store: PageStore) -> FusedStep | None:
    """The model's fused forward over the pages of `store`; None where there is none for it, or for this device."""
    fits = has_kernels(model.device) and is_llama_kind(model) and type(store) is PageStore
    if not fits or store.keys[0].dtype != model.dtype or len(model.model.layers) != len(store.keys):
        return None
    norms = [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]
    plain = all(norm.weight.dtype == model.dtype and not is_quantized(norm.weight) for norm in norms)
    dim = store.keys[0].shape[3]
    if not plain or dim % 2:
        return None
    try:
        return FusedStep(model, store)
    except RuntimeError as error:
        if not is_shortage(error):
            raise
        return None  # some matrices are joined already, and as good as before
