"""Mixtures of experts with a layout of their own: gpt-oss, DeepSeek. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .architecture import ATTENTION, EMBEDDINGS, GATED_MLP, NORMS, Architecture
from .common import decoder
from .source import GgufSource

_SIGMOID_GATING = 2
_V3_EXPERTS = 256


def _gpt_oss(source: GgufSource) -> dict[str, Any]:
    meta = source.meta
    config = decoder(source, model_type="gpt_oss", class_name="GptOssForCausalLM")
    if (scaling := config.get("rope_scaling")) is not None:
        config["rope_scaling"] = {"beta_fast": 32.0, "beta_slow": 1.0, **scaling, "truncate": False}
    layers = range(config["num_hidden_layers"])
    return {
        **config,
        "intermediate_size": source.shape("blk.0.ffn_gate_exps.weight")[1],
        "num_local_experts": meta.integer("{arch}.expert_count"),
        "num_experts_per_tok": meta.integer("{arch}.expert_used_count"),
        "sliding_window": meta.integer("{arch}.attention.sliding_window"),
        "layer_types": ["full_attention" if i % 2 else "sliding_attention" for i in layers],
    }


def _deepseek(source: GgufSource) -> dict[str, Any]:
    meta = source.meta
    v3 = meta.integer("{arch}.expert_gating_func", 0) == _SIGMOID_GATING
    v3 = v3 or any(name.endswith(".exp_probs_b.bias") for name in source.tensors)
    version = 3 if v3 else 2
    config = decoder(source, model_type=f"deepseek_v{version}", class_name=f"DeepseekV{version}ForCausalLM")
    rope = meta.integer("{arch}.rope.dimension_count")
    # Files that keep keys and values compressed have the sizes of the full ones under names of their own.
    key = meta.integer("{arch}.attention.key_length_mla", meta.integer("{arch}.attention.key_length"))
    value = meta.integer("{arch}.attention.value_length_mla", meta.integer("{arch}.attention.value_length"))
    experts = meta.integer("{arch}.expert_count")
    groups = (8, 4) if v3 and experts == _V3_EXPERTS else (1, 1)
    config.pop("head_dim")
    _deepseek_rope(source, config)
    config |= {
        "num_key_value_heads": config["num_attention_heads"],
        "q_lora_rank": meta.integer("{arch}.attention.q_lora_rank", 0) or None,
        "kv_lora_rank": meta.integer("{arch}.attention.kv_lora_rank"),
        "qk_rope_head_dim": rope,
        "qk_nope_head_dim": key - rope,
        "v_head_dim": value,
        "n_routed_experts": experts,
        "n_shared_experts": meta.integer("{arch}.expert_shared_count"),
        "num_experts_per_tok": meta.integer("{arch}.expert_used_count"),
        "moe_intermediate_size": meta.integer("{arch}.expert_feed_forward_length"),
        "first_k_dense_replace": meta.integer("{arch}.leading_dense_block_count"),
        "routed_scaling_factor": meta.number("{arch}.expert_weights_scale", 1.0),
        "norm_topk_prob": meta.flag("{arch}.expert_weights_norm", False),
        "n_group": meta.integer("{arch}.expert_group_count", groups[0]),
        "topk_group": meta.integer("{arch}.expert_group_used_count", groups[1]),
    }
    if not v3:
        config["topk_method"] = "group_limited_greedy" if config["n_group"] > 1 else "greedy"
    return config


def _deepseek_rope(source: GgufSource, config: dict[str, Any]) -> None:
    """YaRN with DeepSeek's own factor, of which GGUF keeps a tenth."""
    scaling = config.get("rope_scaling")
    log_multiplier = source.meta.number("{arch}.rope.scaling.yarn_log_multiplier", 0.0)
    if scaling is not None and log_multiplier:
        config["rope_scaling"] = {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            **scaling,
            "mscale": round(10 * log_multiplier, 6),
            "mscale_all_dim": round(10 * log_multiplier, 6),
        }


_LAYER = "model.layers.{n}"
_EXPERTS = {f"blk.{{n}}.ffn_{part}_exps": f"{_LAYER}.mlp.experts.{{e}}.{part}_proj" for part in ("gate", "up", "down")}
_SHARED = {f"blk.{{n}}.ffn_{part}_shexp": f"{_LAYER}.mlp.shared_experts.{part}_proj" for part in ("gate", "up", "down")}

MIXTURES: Mapping[str, Architecture] = {
    "gpt-oss": Architecture(
        config=_gpt_oss,
        names={
            **EMBEDDINGS,
            **ATTENTION,
            **NORMS,
            "blk.{n}.post_attention_norm": f"{_LAYER}.post_attention_layernorm",
            "blk.{n}.attn_sinks.weight": f"{_LAYER}.self_attn.sinks",
            "blk.{n}.ffn_gate_inp": f"{_LAYER}.mlp.router",
            "blk.{n}.ffn_down_exps.weight": f"{_LAYER}.mlp.experts.down_proj",
            "blk.{n}.ffn_down_exps.bias": f"{_LAYER}.mlp.experts.down_proj_bias",
        },
        transforms={"blk.{n}.ffn_down_exps.weight": "each_transposed"},
        merged={
            f"{_LAYER}.mlp.experts.gate_up_proj": (
                ("blk.{n}.ffn_gate_exps.weight", "blk.{n}.ffn_up_exps.weight"),
                "alternating_columns",
            ),
            f"{_LAYER}.mlp.experts.gate_up_proj_bias": (
                ("blk.{n}.ffn_gate_exps.bias", "blk.{n}.ffn_up_exps.bias"),
                "alternating",
            ),
        },
    ),
    "deepseek2": Architecture(
        config=_deepseek,
        names={
            **EMBEDDINGS,
            **NORMS,
            **GATED_MLP,
            **_SHARED,
            "blk.{n}.attn_q": f"{_LAYER}.self_attn.q_proj",
            "blk.{n}.attn_q_a": f"{_LAYER}.self_attn.q_a_proj",
            "blk.{n}.attn_q_a_norm": f"{_LAYER}.self_attn.q_a_layernorm",
            "blk.{n}.attn_q_b": f"{_LAYER}.self_attn.q_b_proj",
            "blk.{n}.attn_kv_a_mqa": f"{_LAYER}.self_attn.kv_a_proj_with_mqa",
            "blk.{n}.attn_kv_a_norm": f"{_LAYER}.self_attn.kv_a_layernorm",
            "blk.{n}.attn_kv_b": f"{_LAYER}.self_attn.kv_b_proj",
            "blk.{n}.attn_output": f"{_LAYER}.self_attn.o_proj",
            "blk.{n}.ffn_gate_inp": f"{_LAYER}.mlp.gate",
            "blk.{n}.exp_probs_b.bias": f"{_LAYER}.mlp.gate.e_score_correction_bias",
        },
        experts=_EXPERTS,
        merged={
            f"{_LAYER}.self_attn.kv_b_proj.weight": (
                ("blk.{n}.attn_k_b.weight", "blk.{n}.attn_v_b.weight"),
                "keys_and_values",
            )
        },
    ),
}
