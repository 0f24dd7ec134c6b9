"""The forward of models of the Llama kind for single tokens on a GPU: products as the layers have them, and one kernel
for all that lies between two of them.

Between the products of a layer, transformers' modules launch some 25 kernels, each of which takes a GPU longer to begin
than to do; here there are five.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kamado.kernels.gpu import has_kernels
from kamado.weights.quantized.tensor import is_quantized

from .captured import FixedRows
from .native_step import is_llama_kind
from .pages import PageStore


class FusedStep:
    """See `captured.Way`. The model's layers are used as they are at each call."""

    def __init__(self, model: Any, store: PageStore, kernels: Any = None) -> None:
        """`kernels`: what has the functions of `kamado.kernels.gpu.layers` and `attention`; None: those."""
        if kernels is None:
            from kamado.kernels.gpu import attention, layers

            self._attend, self._layers = attention.paged_attention, layers
        else:
            self._attend, self._layers = kernels.paged_attention, kernels
        self._model = model
        self._store = store

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
            perceptron = block.mlp
            opened = between.silu_times(perceptron.gate_proj(normed), perceptron.up_proj(normed))
            found = perceptron.down_proj(opened)
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
        query = self._layers.turn_and_write(
            attention.q_proj(x), attention.k_proj(x), attention.v_proj(x), angles, rows.slots, pages, norms
        )
        seen = self._attend(query, *pages, rows.tables, rows.lengths, scale=attention.scaling)
        found: Tensor = attention.o_proj(seen.flatten(1))
        return found


def fused_step(model: Any, store: PageStore) -> FusedStep | None:
    """The model's fused forward over the pages of `store`; None where there is none for it, or for this device."""
    fits = has_kernels(model.device) and is_llama_kind(model) and type(store) is PageStore
    if not fits or store.keys[0].dtype != model.dtype or len(model.model.layers) != len(store.keys):
        return None
    norms = [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]
    plain = all(norm.weight.dtype == model.dtype and not is_quantized(norm.weight) for norm in norms)
    dim = store.keys[0].shape[3]
    return FusedStep(model, store) if plain and dim % 2 == 0 and model.dtype != torch.float64 else None
