"""Google's Gemma: norms that multiply by 1 + weight, tied embeddings, soft caps, sliding windows. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .architecture import LLAMA_NAMES, QK_NORM, Architecture
from .common import decoder, head_dim
from .source import GgufSource

_LARGEST = {"gemma2": 46, "gemma3": 62}
"""Layers of the 27B models, which alone scale queries by width over heads."""


def _gemma(source: GgufSource) -> dict[str, Any]:
    return decoder(source, model_type="gemma", class_name="GemmaForCausalLM")


def _query_scalar(source: GgufSource) -> float:
    meta = source.meta
    if source.num_layers() == _LARGEST[source.architecture]:
        return meta.integer("{arch}.embedding_length") / meta.integer("{arch}.attention.head_count")
    return head_dim(source)


def _layer_types(source: GgufSource, period: int) -> list[str]:
    """Every `period`-th layer sees everything."""
    count = source.num_layers()
    return ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(count)]


def _gemma2(source: GgufSource) -> dict[str, Any]:
    meta = source.meta
    return {
        **decoder(source, model_type="gemma2", class_name="Gemma2ForCausalLM"),
        "attn_logit_softcapping": meta.number("{arch}.attn_logit_softcapping", 50.0),
        "final_logit_softcapping": meta.number("{arch}.final_logit_softcapping", 30.0),
        "sliding_window": meta.integer("{arch}.attention.sliding_window", 4096),
        "query_pre_attn_scalar": _query_scalar(source),
        "layer_types": _layer_types(source, 2),
    }


def _gemma3(source: GgufSource) -> dict[str, Any]:
    meta = source.meta
    config = decoder(source, model_type="gemma3_text", class_name="Gemma3ForCausalLM")
    config["rope_theta"] = meta.number("{arch}.rope.freq_base", 1_000_000.0)
    softcap = meta.number("{arch}.final_logit_softcapping", 0.0)
    return {
        **config,
        "rope_local_base_freq": meta.number("{arch}.rope.freq_base_swa", 10_000.0),
        "final_logit_softcapping": softcap or None,
        "sliding_window": meta.integer("{arch}.attention.sliding_window", 1024),
        "query_pre_attn_scalar": _query_scalar(source),
        "layer_types": _layer_types(source, 6),
    }


_OUTER_NORMS = {
    "blk.{n}.post_attention_norm": "model.layers.{n}.post_attention_layernorm",
    "blk.{n}.ffn_norm": "model.layers.{n}.pre_feedforward_layernorm",
    "blk.{n}.post_ffw_norm": "model.layers.{n}.post_feedforward_layernorm",
}
_NORMS_MINUS_ONE = {"output_norm": "minus_one", "blk.{n}.attn_norm": "minus_one", "blk.{n}.ffn_norm": "minus_one"}
_ALL_MINUS_ONE = {
    **_NORMS_MINUS_ONE,
    **dict.fromkeys((*_OUTER_NORMS, *QK_NORM), "minus_one"),
}

GEMMA: Mapping[str, Architecture] = {
    "gemma": Architecture(config=_gemma, names=LLAMA_NAMES, transforms=_NORMS_MINUS_ONE),
    "gemma2": Architecture(config=_gemma2, names={**LLAMA_NAMES, **_OUTER_NORMS}, transforms=_ALL_MINUS_ONE),
    "gemma3": Architecture(config=_gemma3, names={**LLAMA_NAMES, **_OUTER_NORMS, **QK_NORM}, transforms=_ALL_MINUS_ONE),
}
