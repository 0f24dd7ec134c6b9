"""How many numbers a forward lays out for a while: estimates from the sizes, calibrated against measured peaks."""

from __future__ import annotations

from dataclasses import dataclass

from .shape_fields import Fields
from .shape_state import attention_heads, scan_chunk, scan_row_values, scan_values

_EXPLICIT = frozenset(
    {
        "bloom",
        "codegen",
        "cpmant",
        "fsmt",
        "gpt_neo",
        "gpt_neox_japanese",
        "gpt_oss",
        "gptj",
        "longt5",
        "mpt",
        "mt5",
        "nllb-moe",
        "openai-gpt",
        "prophetnet",
        "switch_transformers",
        "t5",
        "umt5",
        "xglm",
        "xlnet",
    }
)
"""Model types whose attention writes its scores to memory: a position bias or sinks go into them, or no fused path."""
_SLOW_ACTIVATIONS = frozenset({"gelu_new", "gelu_fast", "quick_gelu"})
"""Made of several elementwise steps, each with a result of its own."""
_SLOW_BY_DEFAULT = frozenset({"gpt2", "gpt_neo", "gptj", "codegen", "bloom", "phi"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Temporaries:
    """Numbers laid out at once, for each token of a forward unless said otherwise."""

    stream: int
    """Residual stream, norms and what else lives through a layer."""
    projections: int
    """Queries, keys and values, before and after rotation."""
    feed_forward: int
    scan: int
    """Of a recurrent layer that computes a prompt."""
    chunk: int
    """Each row's prompt counts as a multiple of so many tokens there."""
    scan_row: int
    """Of a recurrent layer, for each row of a forward."""
    expanded: int
    """Keys and values of one token of the context, repeated for every query head."""
    scores: int
    """For each pair of token and context token: scores of all heads where attention writes them out, else 0."""


def temporaries(fields: Fields, recurrent: bool) -> Temporaries:
    """What one layer's forward lays out."""
    hidden_size = fields.need("hidden_size")
    attends = fields.find("num_heads") is not None
    queries = expanded = num_heads = 0
    if attends:
        heads = attention_heads(fields, "full")
        num_heads = heads.num_heads
        query_dim, value_dim = heads.key_dim, heads.value_dim
        if fields.optional("qk_nope_head_dim"):
            query_dim = fields.integer("qk_nope_head_dim") + fields.integer("qk_rope_head_dim", 0)
            value_dim = fields.integer("v_head_dim", query_dim)
        queries = 4 * num_heads * query_dim + 4 * heads.num_kv_heads * (heads.key_dim + heads.value_dim)
        expanded = num_heads * (query_dim + value_dim)
    return Temporaries(
        stream=6 * hidden_size * (1 + (fields.optional("altup_num_inputs") or 0)),
        projections=queries,
        feed_forward=_feed_forward(fields, hidden_size),
        scan=scan_values(fields) if recurrent else 0,
        chunk=scan_chunk(fields) if recurrent else 1,
        scan_row=scan_row_values(fields) if recurrent else 0,
        expanded=expanded,
        scores=5 * num_heads if attends and _explicit(fields) else 0,
    )


def _explicit(fields: Fields) -> bool:
    softcap = fields.get("attn_logit_softcapping")
    return fields.model_type in _EXPLICIT or bool(softcap) or fields.flag("alibi")


def _feed_forward(fields: Fields, hidden_size: int) -> int:
    dense = dense_width(fields, hidden_size)
    activation = fields.get("hidden_act") or fields.get("activation_function")
    slow = activation in _SLOW_ACTIVATIONS if activation else fields.model_type in _SLOW_BY_DEFAULT
    dense_values = (5 if slow else 4) * dense
    num_experts = fields.find("num_experts") or 0
    if not num_experts:
        return dense_values
    # Llama 4 sends every token through every expert and weighs the results.
    chosen = num_experts if fields.model_type == "llama4_text" else (fields.find("experts_per_token") or 1)
    width = fields.find("expert_size") or dense
    return max(dense_values, chosen * (3 * hidden_size + 4 * width) + 4 * num_experts)


def dense_width(fields: Fields, hidden_size: int) -> int:
    """Width of the feed-forward part of a layer that is no mixture."""
    stated = fields.find("intermediate_size")
    if stated is not None:
        return stated
    ratio = fields.integer("expansion_ratio", 4) if fields.model_type == "mpt" else 4
    return ratio * hidden_size
