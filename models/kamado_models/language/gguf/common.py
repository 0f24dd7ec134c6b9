"""Configuration values that most architectures share. No torch."""

from __future__ import annotations

from typing import Any

from kamado.errors import UnsupportedCheckpoint

from .rope import rope_scaling, rope_theta
from .source import GgufSource

Config = dict[str, Any]


def token_ids(source: GgufSource) -> Config:
    """Ids of the special tokens; the end tokens are a list when the file names several."""
    meta = source.meta
    ends: list[int] = []
    for name in ("eos", "eot", "eom"):
        found = meta.optional_integer(f"tokenizer.ggml.{name}_token_id")
        if found is not None and found not in ends:
            ends.append(found)
    return {
        "bos_token_id": meta.optional_integer("tokenizer.ggml.bos_token_id"),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": meta.optional_integer("tokenizer.ggml.padding_token_id"),
    }


def general(source: GgufSource, *, model_type: str, class_name: str) -> Config:
    """What every language model has."""
    meta = source.meta
    vocab_size = source.shape("token_embd.weight")[0]
    ids = token_ids(source)
    ids["pad_token_id"] = ids["pad_token_id"] if (ids["pad_token_id"] or 0) < vocab_size else None
    return {
        "model_type": model_type,
        "architectures": [class_name],
        "vocab_size": vocab_size,
        "max_position_embeddings": meta.integer("{arch}.context_length"),
        "tie_word_embeddings": not source.has("output.weight"),
        **ids,
    }


def _intermediate_size(source: GgufSource) -> int:
    meta = source.meta
    if not meta.has("{arch}.feed_forward_length"):
        return meta.integer("{arch}.expert_feed_forward_length")
    return meta.integer("{arch}.feed_forward_length")


def sizes(source: GgufSource) -> Config:
    """Width, depth and heads, under the names that most configurations have."""
    meta = source.meta
    heads = meta.integer("{arch}.attention.head_count")
    if heads == 0:
        raise UnsupportedCheckpoint(f"{source.file}: {source.architecture}.attention.head_count is 0")
    return {
        "hidden_size": meta.integer("{arch}.embedding_length"),
        "num_hidden_layers": source.num_layers(),
        "intermediate_size": _intermediate_size(source),
        "num_attention_heads": heads,
        "num_key_value_heads": meta.integer("{arch}.attention.head_count_kv", heads),
    }


def head_dim(source: GgufSource) -> int:
    """Values of one attention head."""
    heads = source.meta.integer("{arch}.attention.head_count")
    return source.meta.integer(
        "{arch}.attention.key_length", source.meta.integer("{arch}.embedding_length") // max(heads, 1)
    )


def rotary(source: GgufSource, *, partial: bool = False) -> Config:
    """RoPE base and scaling; with `partial`, the rotated share of a head."""
    whole = head_dim(source)
    rotated = source.meta.integer("{arch}.rope.dimension_count", whole)
    config: Config = {"rope_theta": rope_theta(source)}
    if partial:
        config["partial_rotary_factor"] = rotated / whole
    scaling = rope_scaling(source, head_dim=rotated if partial else whole)
    if scaling is not None:
        config["rope_scaling"] = scaling
    return config


def rms_eps(source: GgufSource) -> float:
    """Epsilon of RMS norms."""
    return source.meta.number("{arch}.attention.layer_norm_rms_epsilon")


def norm_eps(source: GgufSource) -> float:
    """Epsilon of layer norms."""
    return source.meta.number("{arch}.attention.layer_norm_epsilon")


def decoder(source: GgufSource, *, model_type: str, class_name: str, rms: bool = True) -> Config:
    """A Llama-like decoder: the base of most architectures. `rms`: whether its norms have an epsilon of that name."""
    config = {
        **general(source, model_type=model_type, class_name=class_name),
        **sizes(source),
        **rotary(source),
        "head_dim": head_dim(source),
    }
    return {**config, "rms_norm_eps": rms_eps(source)} if rms else config


def has_bias(source: GgufSource, *layers: str) -> bool:
    """Whether one of these linear layers of the first block has a bias."""
    return source.has(*(f"blk.0.{layer}.bias" for layer in layers))
