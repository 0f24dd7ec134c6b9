"""Architectures with the skeleton of Llama: RMS norms, rotary positions, gated MLPs or experts. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .architecture import ATTENTION, EMBEDDINGS, GATED_MLP, LLAMA_NAMES, NORMS, QK_NORM, UNPERMUTED, Architecture
from .common import decoder, has_bias, head_dim, rotary
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


def _qwen2(source: GgufSource) -> dict[str, Any]:
    return decoder(source, model_type="qwen2", class_name="Qwen2ForCausalLM")


def _routed(source: GgufSource) -> dict[str, Any]:
    """Experts in every layer, under the names of the Qwen family."""
    meta = source.meta
    return {
        "num_experts": meta.integer("{arch}.expert_count"),
        "num_experts_per_tok": meta.integer("{arch}.expert_used_count"),
        "moe_intermediate_size": source.shape("blk.0.ffn_gate_exps.weight")[1],
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _qwen2moe(source: GgufSource) -> dict[str, Any]:
    return {
        **decoder(source, model_type="qwen2_moe", class_name="Qwen2MoeForCausalLM"),
        **_routed(source),
        "shared_expert_intermediate_size": source.shape("blk.0.ffn_gate_shexp.weight")[0],
        "norm_topk_prob": False,
        "qkv_bias": has_bias(source, "attn_q"),
    }


def _qwen3(source: GgufSource) -> dict[str, Any]:
    config = decoder(source, model_type="qwen3", class_name="Qwen3ForCausalLM")
    return {**config, "attention_bias": has_bias(source, "attn_q")}


def _qwen3moe(source: GgufSource) -> dict[str, Any]:
    # llama.cpp's graph for this architecture normalizes the weights of the chosen experts; the file does not say it.
    return {
        **decoder(source, model_type="qwen3_moe", class_name="Qwen3MoeForCausalLM"),
        **_routed(source),
        "norm_topk_prob": True,
        "attention_bias": has_bias(source, "attn_q"),
    }


def _olmoe(source: GgufSource) -> dict[str, Any]:
    return {
        **decoder(source, model_type="olmoe", class_name="OlmoeForCausalLM"),
        "num_experts": source.meta.integer("{arch}.expert_count"),
        "num_experts_per_tok": source.meta.integer("{arch}.expert_used_count"),
        "intermediate_size": source.shape("blk.0.ffn_gate_exps.weight")[1],
        "norm_topk_prob": False,
        "clip_qkv": _clamp(source),
    }


def _clamp(source: GgufSource) -> float | None:
    clamp = source.meta.number("{arch}.attention.clamp_kqv", 0.0)
    return clamp if clamp > 0 else None


def _olmo(source: GgufSource) -> dict[str, Any]:
    config = decoder(source, model_type="olmo", class_name="OlmoForCausalLM", rms=False)
    return {**config, "clip_qkv": _clamp(source)}


def _olmo2(source: GgufSource) -> dict[str, Any]:
    return decoder(source, model_type="olmo2", class_name="Olmo2ForCausalLM")


def _scaled(source: GgufSource) -> dict[str, Any]:
    """Granite's four factors."""
    meta = source.meta
    return {
        "embedding_multiplier": meta.number("{arch}.embedding_scale", 1.0),
        "residual_multiplier": meta.number("{arch}.residual_scale", 1.0),
        "attention_multiplier": meta.number("{arch}.attention.scale", head_dim(source) ** -0.5),
        "logits_scaling": meta.number("{arch}.logit_scale", 1.0),
    }


def _granite(source: GgufSource) -> dict[str, Any]:
    return {
        **decoder(source, model_type="granite", class_name="GraniteForCausalLM"),
        **_scaled(source),
        "attention_bias": has_bias(source, "attn_q"),
        "mlp_bias": has_bias(source, "ffn_gate"),
    }


def _granitemoe(source: GgufSource) -> dict[str, Any]:
    return {
        **decoder(source, model_type="granitemoe", class_name="GraniteMoeForCausalLM"),
        **_scaled(source),
        "num_local_experts": source.meta.integer("{arch}.expert_count"),
        "num_experts_per_tok": source.meta.integer("{arch}.expert_used_count"),
        "attention_bias": has_bias(source, "attn_q"),
    }


def _smollm3(source: GgufSource) -> dict[str, Any]:
    # Every fourth layer has no positions; transformers has that as its default too.
    return {
        **decoder(source, model_type="smollm3", class_name="SmolLM3ForCausalLM"),
        "no_rope_layer_interval": 4,
        "attention_bias": has_bias(source, "attn_q"),
        "mlp_bias": has_bias(source, "ffn_gate"),
    }


def _phi3(source: GgufSource) -> dict[str, Any]:
    config = decoder(source, model_type="phi3", class_name="Phi3ForCausalLM")
    config.update(rotary(source, partial=True))
    scaling = config.get("rope_scaling")
    if scaling is not None and scaling["rope_type"] == "longrope":
        config["original_max_position_embeddings"] = scaling["original_max_position_embeddings"]
    return {**config, "sliding_window": source.meta.integer("{arch}.attention.sliding_window", 0) or None}


def _glm4(source: GgufSource) -> dict[str, Any]:
    config = decoder(source, model_type="glm4", class_name="Glm4ForCausalLM")
    config.update(rotary(source, partial=True))
    return {**config, "attention_bias": has_bias(source, "attn_q")}


def _expert_names(block: str, gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj") -> dict[str, str]:
    layer = f"model.layers.{{n}}.{block}.experts.{{e}}"
    return {
        "blk.{n}.ffn_gate_exps": f"{layer}.{gate}",
        "blk.{n}.ffn_up_exps": f"{layer}.{up}",
        "blk.{n}.ffn_down_exps": f"{layer}.{down}",
    }


_MLP_EXPERTS = _expert_names("mlp")
_MLP_ROUTER = {"blk.{n}.ffn_gate_inp": "model.layers.{n}.mlp.gate"}
_SHARED_EXPERT = {
    "blk.{n}.ffn_gate_inp_shexp": "model.layers.{n}.mlp.shared_expert_gate",
    "blk.{n}.ffn_gate_shexp": "model.layers.{n}.mlp.shared_expert.gate_proj",
    "blk.{n}.ffn_up_shexp": "model.layers.{n}.mlp.shared_expert.up_proj",
    "blk.{n}.ffn_down_shexp": "model.layers.{n}.mlp.shared_expert.down_proj",
}
_POST_NORMS = {
    "blk.{n}.post_attention_norm": "model.layers.{n}.post_attention_layernorm",
    "blk.{n}.post_ffw_norm": "model.layers.{n}.post_feedforward_layernorm",
}
_FUSED_MLP = {
    "blk.{n}.ffn_up": "model.layers.{n}.mlp.gate_up_proj",
    "blk.{n}.ffn_down": "model.layers.{n}.mlp.down_proj",
}
_MIXTRAL = "model.layers.{n}.block_sparse_moe"

LLAMA_LIKE: Mapping[str, Architecture] = {
    "llama": Architecture(
        config=_llama,
        names={**LLAMA_NAMES, "blk.{n}.ffn_gate_inp": f"{_MIXTRAL}.gate"},
        transforms=UNPERMUTED,
        experts=_expert_names("block_sparse_moe", "w1", "w3", "w2"),
    ),
    "qwen2": Architecture(config=_qwen2, names=LLAMA_NAMES),
    "qwen2moe": Architecture(
        config=_qwen2moe,
        names={**LLAMA_NAMES, **_MLP_ROUTER, **_SHARED_EXPERT},
        transforms={"blk.{n}.ffn_gate_inp_shexp": "one_row"},
        experts=_MLP_EXPERTS,
    ),
    "qwen3": Architecture(config=_qwen3, names={**LLAMA_NAMES, **QK_NORM}),
    "qwen3moe": Architecture(config=_qwen3moe, names={**LLAMA_NAMES, **QK_NORM, **_MLP_ROUTER}, experts=_MLP_EXPERTS),
    "olmo": Architecture(config=_olmo, names=LLAMA_NAMES, transforms=UNPERMUTED),
    "olmo2": Architecture(config=_olmo2, names={**EMBEDDINGS, **ATTENTION, **QK_NORM, **GATED_MLP, **_POST_NORMS}),
    "olmoe": Architecture(config=_olmoe, names={**LLAMA_NAMES, **QK_NORM, **_MLP_ROUTER}, experts=_MLP_EXPERTS),
    "granite": Architecture(config=_granite, names=LLAMA_NAMES, transforms=UNPERMUTED),
    "granitemoe": Architecture(
        config=_granitemoe,
        names={
            **LLAMA_NAMES,
            "blk.{n}.ffn_gate_inp": f"{_MIXTRAL}.router.layer",
            "blk.{n}.ffn_down_exps": f"{_MIXTRAL}.output_linear",
        },
        transforms=UNPERMUTED,
        merged={
            f"{_MIXTRAL}.input_linear.weight": (
                ("blk.{n}.ffn_gate_exps.weight", "blk.{n}.ffn_up_exps.weight"),
                "stacked_gate_up",
            )
        },
    ),
    "smollm3": Architecture(config=_smollm3, names=LLAMA_NAMES, transforms=UNPERMUTED),
    "phi3": Architecture(
        config=_phi3,
        names={
            **EMBEDDINGS,
            **NORMS,
            **_FUSED_MLP,
            "blk.{n}.attn_qkv": "model.layers.{n}.self_attn.qkv_proj",
            "blk.{n}.attn_output": "model.layers.{n}.self_attn.o_proj",
        },
    ),
    "glm4": Architecture(
        config=_glm4,
        names={
            **EMBEDDINGS,
            **NORMS,
            **ATTENTION,
            **_FUSED_MLP,
            "blk.{n}.post_attention_norm": "model.layers.{n}.post_self_attn_layernorm",
            "blk.{n}.post_ffw_norm": "model.layers.{n}.post_mlp_layernorm",
        },
    ),
}
