"""What transformers' configuration classes say about sizes that a `config.json` may leave out.

`python tests/shape_defaults.py FILE` writes them as the TOML file that the language family reads without transformers.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from kamado_models.language.shape_fields import ALIASES

FIELDS = frozenset(name for names in ALIASES.values() for name in names) | {
    "vocab_size", "tie_word_embeddings", "is_encoder_decoder", "multi_query", "new_decoder_architecture",
    "sliding_window", "use_sliding_window", "max_window_layers", "attention_chunk_size", "attention_window_size",
    "global_attn_every_n_layers", "sliding_window_pattern", "no_rope_layer_interval", "full_attention_interval",
    "num_kv_shared_layers", "attn_layer_period", "attn_layer_offset", "block_types", "state_size", "expand",
    "conv_kernel", "n_groups", "mamba_expand", "mamba_d_conv", "mamba_d_state", "mamba_n_heads", "mamba_d_head",
    "mamba_n_groups", "mamba_d_ssm", "n_mamba_heads", "mamba_ngroups", "mamba_num_heads", "mamba_head_dim",
    "ssm_state_size", "linear_conv_kernel_dim", "linear_key_head_dim", "linear_value_head_dim",
    "linear_num_key_heads", "linear_num_value_heads", "linear_head_dim", "linear_num_heads", "conv_L_cache",
    "lru_width", "conv1d_width", "attention_hidden_size", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim",
    "v_head_dim", "encoder_layers", "num_experts_per_tok", "chunk_size", "mamba_chunk_size", "index_head_dim",
}  # fmt: skip


def collect() -> dict[str, dict[str, Any]]:
    """model type -> field -> default, for every text model of the installed transformers."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    )

    found: dict[str, dict[str, Any]] = {}
    for model_type in sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES}):
        try:
            fields = dataclasses.fields(CONFIG_MAPPING[model_type])
        except (ImportError, TypeError):
            continue  # needs a package that is not installed
        values = {f.name: f.default for f in fields if f.name in FIELDS and _plain(f.default)}
        if values:
            found[model_type] = dict(sorted(values.items()))
    return found


def _plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(isinstance(item, str) for item in value)
    return value is not None and isinstance(value, int | float | str)


def render(table: dict[str, dict[str, Any]]) -> str:
    """The table as TOML, one model type a line."""
    lines = ["# Written by tests/shape_defaults.py from transformers' configuration classes; do not edit.", ""]
    for model_type, values in table.items():
        pairs = ", ".join(f"{name} = {_literal(value)}" for name, value in values.items())
        lines.append(f'"{model_type}" = {{ {pairs} }}')
    return "\n".join(lines) + "\n"


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return "[" + ", ".join(f'"{item}"' for item in value) + "]"
    return repr(value)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(render(collect()), encoding="utf-8")
