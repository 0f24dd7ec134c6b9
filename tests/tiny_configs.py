"""Config values of the tiny checkpoints: the smallest that still use each architecture's peculiarities."""

from __future__ import annotations

from typing import Any

VOCAB = 264
"""8 special tokens and the 256 bytes."""
CONTEXT = 512
"""Positions of every checkpoint that has a limit."""
WINDOW = 16
"""Sliding windows: shorter than most test prompts."""

_IDS: dict[str, Any] = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_BASE: dict[str, Any] = _IDS | {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}
_MHA: dict[str, Any] = {key: value for key, value in _BASE.items() if key != "num_key_value_heads"}
_GPT: dict[str, Any] = _IDS | {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": CONTEXT, "n_ctx": CONTEXT}
_MOE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_MLA_DENSE: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
}
_MLA: dict[str, Any] = _MLA_DENSE | {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_MAMBA2: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_n_groups": 2,
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}
_DELTA_NET: dict[str, Any] = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
_SEQ2SEQ: dict[str, Any] = _IDS | {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "max_position_embeddings": CONTEXT,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
    "dropout": 0.0,
}
_T5: dict[str, Any] = {
    "vocab_size": VOCAB,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 96,
    "num_layers": 3,
    "num_heads": 4,
    "dropout_rate": 0.0,
}

CAUSAL: dict[str, tuple[str, dict[str, Any]]] = {
    # name: (model_type, config values)
    "llama": ("llama", _BASE),
    "llama_tied": ("llama", _BASE | {"tie_word_embeddings": True, "head_dim": 24}),
    "qwen2": ("qwen2", _BASE),
    "qwen2_moe": (
        "qwen2_moe",
        _BASE | _MOE | {"shared_expert_intermediate_size": 48, "decoder_sparse_step": 1, "num_key_value_heads": 4},
    ),
    "qwen3": ("qwen3", _BASE | {"head_dim": 24}),
    "qwen3_moe": ("qwen3_moe", _BASE | _MOE | {"head_dim": 16, "norm_topk_prob": True}),
    "mistral": ("mistral", _BASE | {"sliding_window": WINDOW}),
    "mixtral": ("mixtral", _BASE | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    "gemma": ("gemma", _BASE | {"head_dim": 24, "num_key_value_heads": 1}),
    "gemma2": ("gemma2", _BASE | {"head_dim": 16, "sliding_window": WINDOW, "query_pre_attn_scalar": 16}),
    "gemma3": (
        "gemma3_text",
        _BASE
        | {
            "num_hidden_layers": 4,
            "head_dim": 16,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 16,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "gemma3n": (
        "gemma3n_text",
        _BASE
        | {
            "num_hidden_layers": 4,
            "head_dim": 16,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
            "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": VOCAB,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 8,
            "activation_sparsity_pattern": [0.0, 0.0, 0.0, 0.0],
        },
    ),
    "gemma4": (
        "gemma4_text",
        _BASE
        | {
            "num_hidden_layers": 6,
            "head_dim": 16,
            "global_head_dim": 32,
            "sliding_window": WINDOW,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": VOCAB,
            "num_kv_shared_layers": 0,
        },
    ),
    "phi": ("phi", _BASE | {"partial_rotary_factor": 0.5}),
    "phi3": ("phi3", _BASE | {"original_max_position_embeddings": CONTEXT, "sliding_window": None}),
    "phimoe": ("phimoe", _BASE | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    "gpt2": ("gpt2", _GPT),
    "gpt_neo": (
        "gpt_neo",
        _IDS
        | {
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 4,
            "window_size": WINDOW,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": CONTEXT,
        },
    ),
    "gpt_neox": ("gpt_neox", _MHA | {"rotary_pct": 0.5}),
    "gptj": ("gptj", _GPT | {"rotary_dim": 8}),
    "codegen": ("codegen", _GPT | {"rotary_dim": 8}),
    "gpt_bigcode": ("gpt_bigcode", _GPT | {"multi_query": True}),
    "opt": ("opt", _MHA | {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    "bloom": ("bloom", _IDS | {"hidden_size": 64, "n_layer": 3, "n_head": 4}),
    "mpt": ("mpt", _IDS | {"d_model": 64, "n_layers": 3, "n_heads": 4, "max_seq_len": CONTEXT}),
    "falcon": (
        "falcon",
        _MHA | {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False, "ffn_hidden_size": 96},
    ),
    "falcon_alibi": (
        "falcon",
        _MHA
        | {
            "new_decoder_architecture": False,
            "multi_query": False,
            "parallel_attn": False,
            "alibi": True,
            "bias": True,
        },
    ),
    "falcon_multi_query": ("falcon", _MHA | {"multi_query": True, "parallel_attn": True, "alibi": False}),
    "deepseek_v2": ("deepseek_v2", _BASE | _MLA),
    "deepseek_v3": ("deepseek_v3", _BASE | _MLA),
    "minicpm3": ("minicpm3", _BASE | _MLA_DENSE),
    "gpt_oss": (
        "gpt_oss",
        _BASE
        | {
            "num_hidden_layers": 4,
            "head_dim": 16,
            "sliding_window": WINDOW,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
    ),
    "starcoder2": ("starcoder2", _BASE | {"sliding_window": WINDOW}),
    "stablelm": ("stablelm", _BASE | {"partial_rotary_factor": 0.25}),
    "olmo": ("olmo", _BASE),
    "olmo2": ("olmo2", _BASE),
    "olmo3": ("olmo3", _BASE | {"num_hidden_layers": 4, "sliding_window": WINDOW}),
    "olmoe": ("olmoe", _BASE | {"num_experts": 4, "num_experts_per_tok": 2}),
    "cohere": ("cohere", _BASE | {"logit_scale": 0.25}),
    "cohere2": ("cohere2", _BASE | {"num_hidden_layers": 4, "logit_scale": 0.25, "sliding_window": WINDOW}),
    "granite": (
        "granite",
        _BASE
        | {"embedding_multiplier": 2.0, "logits_scaling": 2.0, "residual_multiplier": 0.7, "attention_multiplier": 0.2},
    ),
    "granitemoe": ("granitemoe", _BASE | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "glm": ("glm", _BASE | {"head_dim": 16, "partial_rotary_factor": 0.5}),
    "glm4": ("glm4", _BASE | {"head_dim": 16, "partial_rotary_factor": 0.5}),
    "glm4_moe": (
        "glm4_moe",
        _BASE
        | {
            "head_dim": 16,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
        },
    ),
    "smollm3": ("smollm3", _BASE | {"num_hidden_layers": 4, "no_rope_layer_interval": 2}),
    "nemotron": ("nemotron", _BASE | {"head_dim": 16}),
    "exaone4": ("exaone4", _BASE | {"num_hidden_layers": 4, "sliding_window": WINDOW, "sliding_window_pattern": 2}),
    "ernie4_5": ("ernie4_5", _BASE | {"head_dim": 16}),
    "minimax": (
        "minimax",
        _BASE
        | {
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "block_size": 8,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        },
    ),
    "llama4": (
        "llama4_text",
        _BASE
        | {
            "num_hidden_layers": 4,
            "head_dim": 16,
            "intermediate_size_mlp": 96,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "attention_chunk_size": WINDOW,
            "no_rope_layers": [1, 1, 1, 0],
            "interleave_moe_layer_step": 2,
        },
    ),
    "xglm": (
        "xglm",
        _IDS
        | {
            "d_model": 64,
            "ffn_dim": 96,
            "num_layers": 3,
            "attention_heads": 4,
            "max_position_embeddings": CONTEXT,
            "dropout": 0.0,
        },
    ),
    "biogpt": ("biogpt", _MHA),
    "mamba": ("mamba", _IDS | {"hidden_size": 64, "num_hidden_layers": 3, "state_size": 8}),
    "falcon_mamba": ("falcon_mamba", _IDS | {"hidden_size": 64, "num_hidden_layers": 3, "state_size": 8}),
    "mamba2": (
        "mamba2",
        _IDS
        | {
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "state_size": 8,
            "num_heads": 8,
            "head_dim": 16,
            "n_groups": 2,
            "chunk_size": 8,
        },
    ),
    "jamba": (
        "jamba",
        _BASE
        | {
            "num_hidden_layers": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "mamba_d_state": 8,
        },
    ),
    "bamba": ("bamba", _BASE | _MAMBA2 | {"attn_layer_indices": [1]}),
    "zamba2": (
        "zamba2",
        _MHA
        | {
            "num_hidden_layers": 4,
            "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
            "mamba_d_state": 8,
            "n_mamba_heads": 8,
            "mamba_ngroups": 2,
            "chunk_size": 8,
            "adapter_rank": 8,
            "num_mem_blocks": 1,
            "use_mem_rope": True,
        },
    ),
    "falcon_h1": (
        "falcon_h1",
        _BASE
        | _MAMBA2
        | {"mamba_d_ssm": 128, "ssm_multipliers": [1.0, 1.0, 1.0, 1.0, 1.0], "mlp_multipliers": [1.0, 1.0]},
    ),
    "granitemoehybrid": (
        "granitemoehybrid",
        _BASE
        | _MAMBA2
        | {
            "layer_types": ["mamba", "attention", "mamba"],
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 64,
            "position_embedding_type": "rope",
        },
    ),
    "nemotron_h": (
        "nemotron_h",
        _BASE
        | {
            "layers_block_type": ["mamba", "attention", "moe", "mamba"],
            "head_dim": 16,
            "ssm_state_size": 8,
            "mamba_num_heads": 8,
            "mamba_head_dim": 16,
            "n_groups": 2,
            "chunk_size": 8,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "moe_shared_expert_intermediate_size": 32,
        },
    ),
    "qwen3_next": (
        "qwen3_next",
        _BASE
        | _MOE
        | _DELTA_NET
        | {
            "num_hidden_layers": 4,
            "head_dim": 16,
            "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
            "shared_expert_intermediate_size": 32,
        },
    ),
    "qwen3_5": ("qwen3_5_text", _BASE | _DELTA_NET | {"num_hidden_layers": 4, "head_dim": 16}),
    "olmo_hybrid": ("olmo_hybrid", _BASE | _DELTA_NET | {"num_hidden_layers": 4}),
    "kimi_linear": (
        "kimi_linear",
        _BASE | _MLA | {"num_hidden_layers": 5, "linear_head_dim": 16, "linear_num_heads": 4, "num_local_experts": 4},
    ),
    "lfm2_moe": (
        "lfm2_moe",
        _BASE
        | {
            "num_hidden_layers": 4,
            "layer_types": ["conv", "full_attention", "conv", "conv"],
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "num_dense_layers": 1,
        },
    ),
    "lfm2": ("lfm2", _BASE | {"layer_types": ["conv", "full_attention", "conv"], "block_multiple_of": 32}),
    "recurrent_gemma": (
        "recurrent_gemma",
        _BASE
        | {
            "num_hidden_layers": 4,
            "lru_width": 64,
            "attention_window_size": WINDOW,
            "block_types": ["recurrent", "attention"],
        },
    ),
    "rwkv": (
        "rwkv",
        _IDS | {"hidden_size": 64, "num_hidden_layers": 3, "attention_hidden_size": 64, "context_length": CONTEXT},
    ),
}

SEQ2SEQ: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("t5", _T5),
    "umt5": ("umt5", _T5),
    "t5_gated": ("t5", _T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "bart": ("bart", _SEQ2SEQ),
    "mbart": ("mbart", _SEQ2SEQ),
    "marian": ("marian", _SEQ2SEQ | {"scale_embedding": True}),
    "pegasus": ("pegasus", _SEQ2SEQ),
    "m2m_100": ("m2m_100", _SEQ2SEQ),
}
