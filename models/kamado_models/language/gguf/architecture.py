"""The form in which one GGUF architecture is described. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .source import GgufSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How the files of one GGUF architecture become a transformers model.

    Names hold `{n}` for the number of the layer and `{e}` for that of an expert. Unless a name has `.weight` or `.bias`
    at its end, it stands for both.
    """

    config: Callable[[GgufSource], dict[str, Any]]
    """`config.json` as transformers would have it."""
    names: Mapping[str, str]
    """GGUF name -> name in a transformers checkpoint."""
    names_if: tuple[str, Mapping[str, str]] | None = None
    """A tensor, and the names that take the place of others when a file has it."""
    transforms: Mapping[str, str] = field(default_factory=dict)
    """GGUF name -> name of the function in `transforms.py` that undoes what the converter did."""
    experts: Mapping[str, str] = field(default_factory=dict)
    """GGUF name of a stack of experts -> name of one expert."""
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """GGUF name -> names of the equal parts into which its rows are cut."""
    merged: Mapping[str, tuple[tuple[str, ...], str]] = field(default_factory=dict)
    """Name in a transformers checkpoint -> GGUF names that are put together for it, and the function that does it."""
    ignored: tuple[str, ...] = ()
    """GGUF names that the model does not need."""


ALWAYS_IGNORED = (
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
    "blk.{n}.attn_rot_embd",
    "blk.{n}.rope_freqs.weight",
)
"""They are in the configuration already."""

EMBEDDINGS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}

ATTENTION = {
    "blk.{n}.attn_q": "model.layers.{n}.self_attn.q_proj",
    "blk.{n}.attn_k": "model.layers.{n}.self_attn.k_proj",
    "blk.{n}.attn_v": "model.layers.{n}.self_attn.v_proj",
    "blk.{n}.attn_output": "model.layers.{n}.self_attn.o_proj",
}

QK_NORM = {
    "blk.{n}.attn_q_norm": "model.layers.{n}.self_attn.q_norm",
    "blk.{n}.attn_k_norm": "model.layers.{n}.self_attn.k_norm",
}

GATED_MLP = {
    "blk.{n}.ffn_gate": "model.layers.{n}.mlp.gate_proj",
    "blk.{n}.ffn_up": "model.layers.{n}.mlp.up_proj",
    "blk.{n}.ffn_down": "model.layers.{n}.mlp.down_proj",
}

NORMS = {
    "blk.{n}.attn_norm": "model.layers.{n}.input_layernorm",
    "blk.{n}.ffn_norm": "model.layers.{n}.post_attention_layernorm",
}

LLAMA_NAMES = {**EMBEDDINGS, **ATTENTION, **GATED_MLP, **NORMS}
"""Names of Llama and the many that follow it."""

UNPERMUTED = {"blk.{n}.attn_q": "unpermute_q", "blk.{n}.attn_k": "unpermute_k"}
"""For models whose rows llama.cpp reorders, because it rotates neighbours where transformers rotates halves."""
