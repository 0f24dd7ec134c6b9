"""Tiny models of each architecture, written as GGUF and loaded again: every weight and the logits must come back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny
from gguf_files import checkpoint_of, load
from gguf_writer import base_metadata, gguf_tensors, write_gguf
from kamado_models.language.gguf import ARCHITECTURES, config_from_gguf

Values = dict[str, Any]


def _experts(config: Any) -> Values:
    count = getattr(config, "num_local_experts", None) or config.num_experts
    values = {"{arch}.expert_count": count, "{arch}.expert_used_count": config.num_experts_per_tok}
    if getattr(config, "moe_intermediate_size", None):
        values["{arch}.expert_feed_forward_length"] = config.moe_intermediate_size
    return values


def _soft_caps(config: Any) -> Values:
    return {
        "{arch}.attn_logit_softcapping": config.attn_logit_softcapping,
        "{arch}.final_logit_softcapping": config.final_logit_softcapping,
    }


def _window(config: Any) -> Values:
    return {"{arch}.attention.sliding_window": config.sliding_window} if config.sliding_window else {}


def _granite(config: Any) -> Values:
    return {
        "{arch}.embedding_scale": float(config.embedding_multiplier),
        "{arch}.residual_scale": float(config.residual_multiplier),
        "{arch}.attention.scale": float(config.attention_multiplier),
        "{arch}.logit_scale": float(config.logits_scaling),
    }


def _mamba(config: Any) -> Values:
    return {
        "{arch}.block_count": config.num_hidden_layers,
        "{arch}.context_length": 512,
        "{arch}.embedding_length": config.hidden_size,
        "{arch}.ssm.state_size": config.state_size,
        "{arch}.ssm.conv_kernel": config.conv_kernel,
        "{arch}.ssm.inner_size": config.intermediate_size,
        "{arch}.ssm.time_step_rank": int(config.time_step_rank),
        "{arch}.attention.layer_norm_rms_epsilon": config.layer_norm_epsilon,
        "{arch}.ssm.dt_b_c_rms": config.model_type == "falcon_mamba",
        "tokenizer.ggml.eos_token_id": 2,
    }


def _with(*parts: Callable[[Any], Values]) -> Callable[[Any], Values]:
    return lambda config: {key: value for part in parts for key, value in part(config).items()}


def _bloom(config: Any) -> Values:
    return {
        "{arch}.context_length": 512,
        "{arch}.block_count": config.n_layer,
        "{arch}.embedding_length": config.hidden_size,
        "{arch}.feed_forward_length": 4 * config.hidden_size,
        "{arch}.attention.head_count": config.n_head,
        "{arch}.attention.layer_norm_epsilon": config.layer_norm_epsilon,
        "tokenizer.ggml.eos_token_id": 2,
    }


def _logit_scale(config: Any) -> Values:
    return {"{arch}.logit_scale": float(config.logit_scale)}


def _falcon(config: Any) -> Values:
    multi = config.num_kv_heads if config.new_decoder_architecture else 1
    return base_metadata(config) | {"{arch}.attention.head_count_kv": multi}


def _gpt_oss(config: Any) -> Values:
    rope = config.rope_parameters
    return (
        base_metadata(config)
        | _experts(config)
        | _window(config)
        | {
            "{arch}.rope.scaling.type": "yarn",
            "{arch}.rope.scaling.factor": float(rope["factor"]),
            "{arch}.rope.scaling.original_context_length": rope["original_max_position_embeddings"],
        }
    )


def _deepseek(config: Any) -> Values:
    return base_metadata(config) | {
        "{arch}.attention.head_count_kv": 1,
        "{arch}.attention.q_lora_rank": config.q_lora_rank,
        "{arch}.attention.kv_lora_rank": config.kv_lora_rank,
        "{arch}.attention.key_length": config.kv_lora_rank + config.qk_rope_head_dim,
        "{arch}.attention.value_length": config.kv_lora_rank,
        "{arch}.attention.key_length_mla": config.qk_nope_head_dim + config.qk_rope_head_dim,
        "{arch}.attention.value_length_mla": config.v_head_dim,
        "{arch}.rope.dimension_count": config.qk_rope_head_dim,
        "{arch}.expert_count": config.n_routed_experts,
        "{arch}.expert_used_count": config.num_experts_per_tok,
        "{arch}.expert_shared_count": config.n_shared_experts,
        "{arch}.expert_feed_forward_length": config.moe_intermediate_size,
        "{arch}.expert_weights_scale": float(config.routed_scaling_factor),
        "{arch}.expert_weights_norm": bool(config.norm_topk_prob),
        "{arch}.leading_dense_block_count": config.first_k_dense_replace,
    }


def _neox(config: Any) -> Values:
    rotated = int(config.rope_parameters["partial_rotary_factor"] * config.hidden_size // config.num_attention_heads)
    return base_metadata(config) | {
        "{arch}.rope.dimension_count": rotated,
        "{arch}.use_parallel_residual": config.use_parallel_residual,
    }


BASE = _with(base_metadata)
MOE = _with(base_metadata, _experts)
WINDOWED = _with(base_metadata, _window)

# name of the tiny model: (GGUF architecture, metadata)
CASES: dict[str, tuple[str, Callable[[Any], Values]]] = {
    "llama": ("llama", BASE),
    "llama_tied": ("llama", BASE),
    "mixtral": ("llama", MOE),
    "qwen2": ("qwen2", BASE),
    "qwen2_moe": ("qwen2moe", MOE),
    "qwen3": ("qwen3", BASE),
    "qwen3_moe": ("qwen3moe", MOE),
    "gemma": ("gemma", BASE),
    "gemma2": ("gemma2", _with(base_metadata, _window, _soft_caps)),
    "gemma3": ("gemma3", WINDOWED),
    "phi": ("phi2", BASE),
    "phi3": ("phi3", WINDOWED),
    "starcoder2": ("starcoder2", WINDOWED),
    "gpt2": ("gpt2", BASE),
    "falcon": ("falcon", _falcon),
    "falcon_multi_query": ("falcon", _falcon),
    "bloom": ("bloom", _bloom),
    "stablelm": ("stablelm", BASE),
    "mamba": ("mamba", _mamba),
    "falcon_mamba": ("mamba", _mamba),
    "granite": ("granite", _with(base_metadata, _granite)),
    "granitemoe": ("granitemoe", _with(base_metadata, _granite, _experts)),
    "olmo": ("olmo", BASE),
    "olmo2": ("olmo2", BASE),
    "olmoe": ("olmoe", MOE),
    "cohere": ("command-r", _with(base_metadata, _logit_scale)),
    "cohere2": ("cohere2", _with(base_metadata, _logit_scale, _window)),
    "smollm3": ("smollm3", BASE),
    "nemotron": ("nemotron", BASE),
    "glm4": ("glm4", BASE),
    "gpt_neox": ("gptneox", _neox),
    "gpt_oss": ("gpt-oss", _gpt_oss),
    "deepseek_v2": ("deepseek2", _deepseek),
    "deepseek_v3": ("deepseek2", _deepseek),
}

# What GGUF cannot say, or fixes to another value than the tiny model has.
FIXED: dict[str, Values] = {
    "gemma3": {"layer_types": ["sliding_attention"] * 4},
    "smollm3": {"no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0]},
}


def reference_model(name: str, folder: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    """The tiny model with weights that float16 holds exactly, and its tensors as `save_pretrained` names them."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tiny.build(name, folder / "plain")
    config = AutoConfig.from_pretrained(folder / "plain", **FIXED.get(name, {}))
    model = AutoModelForCausalLM.from_pretrained(folder / "plain", config=config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and "A_log" not in str(parameter.shape):
                parameter.copy_(parameter.half().float())
    model.save_pretrained(folder / "exact")
    tensors = {}
    for file in sorted((folder / "exact").glob("*.safetensors")):
        tensors |= load_file(file)
    return model.requires_grad_(False), tensors


def reference_and_file(name: str, folder: Path) -> tuple[Any, Path]:
    """transformers' model, and the GGUF file of its weights."""
    arch, metadata = CASES[name]
    reference, tensors = reference_model(name, folder)
    config = reference.config
    file = write_gguf(folder / "model.gguf", arch, gguf_tensors(arch, tensors, config), metadata(config))
    return reference, file


@pytest.mark.parametrize("name", CASES)
def test_round_trip(name: str, tmp_path: Path) -> None:
    reference, file = reference_and_file(name, tmp_path)
    model = load(checkpoint_of(file))

    assert type(model) is type(reference)
    expected, got = reference.state_dict(), model.state_dict()
    assert got.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(got[key], expected[key], rtol=2e-3, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")
    ids = torch.tensor([[3, 17, 99, 250, 8, 41, 77, 5, 130, 22, 61, 200, 9, 33, 180, 12, 55, 91, 160, 7, 29, 88]])
    torch.testing.assert_close(model(ids).logits, reference(ids).logits, rtol=1e-3, atol=1e-3)


def test_every_architecture_is_tested() -> None:
    assert {arch for arch, _ in CASES.values()} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", ["llama", "mixtral", "qwen3_moe", "gemma3", "phi3", "gpt2", "mamba", "bloom"])
def test_config_is_that_of_the_model(name: str, tmp_path: Path) -> None:
    reference, file = reference_and_file(name, tmp_path)
    config, got = reference.config, config_from_gguf(checkpoint_of(file))

    for key in ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "eos_token_id"):
        if key in got:
            assert got[key] == getattr(config, key), key
    assert got["architectures"] == [type(reference).__name__]
    assert got["tie_word_embeddings"] == config.tie_word_embeddings
