"""Architectures with layer norms or an order of their own: GPT-2, BLOOM, Falcon, Phi, Cohere, Mamba, ... No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .architecture import ATTENTION, EMBEDDINGS, GATED_MLP, LLAMA_NAMES, NORMS, QK_NORM, Architecture
from .common import decoder, general, has_bias, norm_eps, rotary
from .source import GgufSource


def _gpt2(source: GgufSource) -> dict[str, Any]:
    meta = source.meta
    config = general(source, model_type="gpt2", class_name="GPT2LMHeadModel")
    return {
        **config,
        "n_positions": source.shape("position_embd.weight")[0],
        "n_embd": meta.integer("{arch}.embedding_length"),
        "n_layer": source.num_layers(),
        "n_head": meta.integer("{arch}.attention.head_count"),
        "n_inner": meta.integer("{arch}.feed_forward_length"),
        "layer_norm_epsilon": norm_eps(source),
    }


def _bloom(source: GgufSource) -> dict[str, Any]:
    meta = source.meta
    return {
        **general(source, model_type="bloom", class_name="BloomForCausalLM"),
        "hidden_size": meta.integer("{arch}.embedding_length"),
        "n_layer": source.num_layers(),
        "n_head": meta.integer("{arch}.attention.head_count"),
        "layer_norm_epsilon": norm_eps(source),
    }


def _falcon(source: GgufSource) -> dict[str, Any]:
    meta = source.meta
    heads = meta.integer("{arch}.attention.head_count")
    kv_heads = meta.integer("{arch}.attention.head_count_kv", heads)
    new = kv_heads > 1
    config = {
        **general(source, model_type="falcon", class_name="FalconForCausalLM"),
        **rotary(source),
        "hidden_size": meta.integer("{arch}.embedding_length"),
        "num_hidden_layers": source.num_layers(),
        "ffn_hidden_size": source.shape("blk.0.ffn_up.weight")[0],
        "num_attention_heads": heads,
        "num_kv_heads": kv_heads,
        "layer_norm_epsilon": norm_eps(source),
        "new_decoder_architecture": new,
        "multi_query": kv_heads == 1,
        "parallel_attn": True,
        "bias": False,
        "alibi": False,
    }
    if new:
        config["num_ln_in_parallel_attn"] = 2 if source.has("blk.0.attn_norm_2.weight") else 1
    return config


def _layer_normed(source: GgufSource, *, model_type: str, class_name: str, partial: bool = True) -> dict[str, Any]:
    config = decoder(source, model_type=model_type, class_name=class_name, rms=False)
    return {**config, **rotary(source, partial=partial)}


def _phi2(source: GgufSource) -> dict[str, Any]:
    config = _layer_normed(source, model_type="phi", class_name="PhiForCausalLM")
    return {**config, "layer_norm_eps": norm_eps(source)}


def _stablelm(source: GgufSource) -> dict[str, Any]:
    return {
        **_layer_normed(source, model_type="stablelm", class_name="StableLmForCausalLM"),
        "layer_norm_eps": norm_eps(source),
        "use_qkv_bias": has_bias(source, "attn_q"),
        "qk_layernorm": source.has("blk.0.attn_q_norm.weight"),
        "use_parallel_residual": not source.has("blk.0.ffn_norm.weight"),
    }


def _starcoder2(source: GgufSource) -> dict[str, Any]:
    return {
        **_layer_normed(source, model_type="starcoder2", class_name="Starcoder2ForCausalLM", partial=False),
        "norm_epsilon": norm_eps(source),
        "use_bias": has_bias(source, "attn_q"),
        "sliding_window": source.meta.integer("{arch}.attention.sliding_window", 0) or None,
    }


def _nemotron(source: GgufSource) -> dict[str, Any]:
    config = _layer_normed(source, model_type="nemotron", class_name="NemotronForCausalLM")
    return {**config, "norm_eps": norm_eps(source), "attention_bias": has_bias(source, "attn_q")}


def _cohere(source: GgufSource) -> dict[str, Any]:
    return {
        **_layer_normed(source, model_type="cohere", class_name="CohereForCausalLM", partial=False),
        "layer_norm_eps": norm_eps(source),
        "logit_scale": source.meta.number("{arch}.logit_scale", 1.0),
        "use_qk_norm": source.has("blk.0.attn_q_norm.weight"),
        "attention_bias": has_bias(source, "attn_q"),
    }


def _cohere2(source: GgufSource) -> dict[str, Any]:
    layers = range(1, source.num_layers() + 1)
    return {
        **_layer_normed(source, model_type="cohere2", class_name="Cohere2ForCausalLM", partial=False),
        "layer_norm_eps": norm_eps(source),
        "logit_scale": source.meta.number("{arch}.logit_scale", 1.0),
        "sliding_window": source.meta.integer("{arch}.attention.sliding_window"),
        "layer_types": ["sliding_attention" if i % 4 else "full_attention" for i in layers],
        "attention_bias": has_bias(source, "attn_q"),
    }


def _gptneox(source: GgufSource) -> dict[str, Any]:
    config = _layer_normed(source, model_type="gpt_neox", class_name="GPTNeoXForCausalLM")
    config["rotary_pct"] = config.pop("partial_rotary_factor")
    config["rotary_emb_base"] = config.pop("rope_theta")
    return {
        **config,
        "layer_norm_eps": norm_eps(source),
        "use_parallel_residual": source.meta.flag("{arch}.use_parallel_residual", True),
        "attention_bias": has_bias(source, "attn_qkv"),
    }


def _mamba(source: GgufSource) -> dict[str, Any]:
    meta = source.meta
    falcon = meta.flag("{arch}.ssm.dt_b_c_rms", False)
    width = meta.integer("{arch}.embedding_length")
    inner = meta.integer("{arch}.ssm.inner_size")
    model_type, class_name = ("falcon_mamba", "FalconMambaForCausalLM") if falcon else ("mamba", "MambaForCausalLM")
    return {
        **general(source, model_type=model_type, class_name=class_name),
        "hidden_size": width,
        "num_hidden_layers": source.num_layers(),
        "state_size": meta.integer("{arch}.ssm.state_size"),
        "conv_kernel": meta.integer("{arch}.ssm.conv_kernel"),
        "time_step_rank": meta.integer("{arch}.ssm.time_step_rank"),
        "expand": inner // width if inner % width == 0 else inner / width,
        "intermediate_size": inner,
        "layer_norm_epsilon": meta.number("{arch}.attention.layer_norm_rms_epsilon"),
        "use_bias": has_bias(source, "ssm_in"),
        "use_conv_bias": has_bias(source, "ssm_conv1d"),
    }


def _transformer(prefix: str, names: Mapping[str, str]) -> dict[str, str]:
    """Block names under `transformer.h.{n}.` and its like."""
    return {f"blk.{{n}}.{key}": f"{prefix}.{{n}}.{value}" for key, value in names.items()}


_GPT2_NAMES = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    **_transformer(
        "transformer.h",
        {
            "attn_norm": "ln_1",
            "attn_qkv": "attn.c_attn",
            "attn_output": "attn.c_proj",
            "ffn_norm": "ln_2",
            "ffn_up": "mlp.c_fc",
            "ffn_down": "mlp.c_proj",
        },
    ),
}
_QUERY_KEY_VALUE = {
    "attn_qkv": "self_attention.query_key_value",
    "attn_output": "self_attention.dense",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}
_WORD_EMBEDDINGS = {
    "token_embd": "transformer.word_embeddings",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
_MAMBA_NAMES = {
    "token_embd": "backbone.embeddings",
    "output_norm": "backbone.norm_f",
    "output": "lm_head",
    **_transformer(
        "backbone.layers",
        {
            "attn_norm": "norm",
            "ssm_in": "mixer.in_proj",
            "ssm_conv1d": "mixer.conv1d",
            "ssm_x": "mixer.x_proj",
            "ssm_dt": "mixer.dt_proj",
            "ssm_a": "mixer.A_log",
            "ssm_d": "mixer.D",
            "ssm_out": "mixer.out_proj",
        },
    ),
}
_PLAIN_MLP = {"blk.{n}.ffn_up": "model.layers.{n}.mlp.up_proj", "blk.{n}.ffn_down": "model.layers.{n}.mlp.down_proj"}
_PHI = _transformer(
    "model.layers",
    {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.dense",
        "ffn_up": "mlp.fc1",
        "ffn_down": "mlp.fc2",
    },
)
_TRANSPOSED = ("blk.{n}.attn_qkv", "blk.{n}.attn_output", "blk.{n}.ffn_up", "blk.{n}.ffn_down")

CLASSIC: Mapping[str, Architecture] = {
    "gpt2": Architecture(config=_gpt2, names=_GPT2_NAMES, transforms=dict.fromkeys(_TRANSPOSED, "transposed")),
    "bloom": Architecture(
        config=_bloom,
        names={
            **_WORD_EMBEDDINGS,
            "token_embd_norm": "transformer.word_embeddings_layernorm",
            **_transformer(
                "transformer.h",
                {**_QUERY_KEY_VALUE, "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"},
            ),
        },
        transforms={"blk.{n}.attn_qkv": "interleave_qkv"},
    ),
    "falcon": Architecture(
        config=_falcon,
        names={
            **_WORD_EMBEDDINGS,
            **_transformer("transformer.h", {**_QUERY_KEY_VALUE, "attn_norm": "input_layernorm"}),
        },
        names_if=(
            "blk.0.attn_norm_2.weight",
            _transformer("transformer.h", {"attn_norm": "ln_mlp", "attn_norm_2": "ln_attn"}),
        ),
        transforms={"blk.{n}.attn_qkv": "group_qkv"},
    ),
    "phi2": Architecture(
        config=_phi2,
        names={**EMBEDDINGS, "output_norm": "model.final_layernorm", **_PHI},
        parts={"blk.{n}.attn_qkv": tuple(f"model.layers.{{n}}.self_attn.{name}_proj" for name in "qkv")},
    ),
    "stablelm": Architecture(
        config=_stablelm,
        names=LLAMA_NAMES,
        experts={
            "blk.{n}.attn_q_norm": "model.layers.{n}.self_attn.q_layernorm.norms.{e}",
            "blk.{n}.attn_k_norm": "model.layers.{n}.self_attn.k_layernorm.norms.{e}",
        },
    ),
    "starcoder2": Architecture(
        config=_starcoder2,
        names={
            **LLAMA_NAMES,
            "blk.{n}.ffn_up": "model.layers.{n}.mlp.c_fc",
            "blk.{n}.ffn_down": "model.layers.{n}.mlp.c_proj",
        },
    ),
    "nemotron": Architecture(
        config=_nemotron,
        names={**EMBEDDINGS, **ATTENTION, **NORMS, **_PLAIN_MLP},
        # Only the weights: a bias of the norm is stored as it is.
        transforms=dict.fromkeys(
            ("output_norm.weight", "blk.{n}.attn_norm.weight", "blk.{n}.ffn_norm.weight"), "minus_one"
        ),
    ),
    "command-r": Architecture(config=_cohere, names={**EMBEDDINGS, **ATTENTION, **QK_NORM, **GATED_MLP, **NORMS}),
    "cohere2": Architecture(config=_cohere2, names={**EMBEDDINGS, **ATTENTION, **GATED_MLP, **NORMS}),
    "gptneox": Architecture(
        config=_gptneox,
        names={
            "token_embd": "gpt_neox.embed_in",
            "output_norm": "gpt_neox.final_layer_norm",
            "output": "embed_out",
            **_transformer(
                "gpt_neox.layers",
                {
                    "attn_norm": "input_layernorm",
                    "ffn_norm": "post_attention_layernorm",
                    "attn_qkv": "attention.query_key_value",
                    "attn_output": "attention.dense",
                    "ffn_up": "mlp.dense_h_to_4h",
                    "ffn_down": "mlp.dense_4h_to_h",
                },
            ),
        },
        transforms={"blk.{n}.attn_qkv": "interleave_qkv"},
    ),
    "mamba": Architecture(
        config=_mamba,
        names=_MAMBA_NAMES,
        transforms={"blk.{n}.ssm_conv1d.weight": "one_channel", "blk.{n}.ssm_a": "log_of_negative"},
    ),
}
