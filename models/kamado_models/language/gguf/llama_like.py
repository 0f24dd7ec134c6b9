"""Architectures with the skeleton of Llama: Llama, Mistral, Mixtral. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .architecture import LLAMA_NAMES, UNPERMUTED, Architecture
from .common import decoder, has_bias
from .source import GgufSource


def _llama(source: GgufSource) -> dict[str, Any]:
    if source.meta.integer("{arch}.expert_count", 0):
        return {
            **decoder(source, model_type="mixtral", class_name="MixtralForCausalLM"),
            "num_local_experts": source.meta.integer("{arch}.expert_count"),
            "num_experts_per_tok": source.meta.integer("{arch}.expert_used_count"),
            "sliding_window": None,
        }
    return {
        **decoder(source, model_type="llama", class_name="LlamaForCausalLM"),
        "attention_bias": has_bias(source, "attn_q", "attn_output"),
        "mlp_bias": has_bias(source, "ffn_gate", "ffn_down"),
    }


_MIXTRAL_EXPERTS = {
    "blk.{n}.ffn_gate_exps": "model.layers.{n}.block_sparse_moe.experts.{e}.w1",
    "blk.{n}.ffn_down_exps": "model.layers.{n}.block_sparse_moe.experts.{e}.w2",
    "blk.{n}.ffn_up_exps": "model.layers.{n}.block_sparse_moe.experts.{e}.w3",
}

LLAMA_LIKE: Mapping[str, Architecture] = {
    "llama": Architecture(
        config=_llama,
        names={**LLAMA_NAMES, "blk.{n}.ffn_gate_inp": "model.layers.{n}.block_sparse_moe.gate"},
        transforms=UNPERMUTED,
        experts=_MIXTRAL_EXPERTS,
    ),
}
