"""Reading a model's configuration: one name for each fact, whatever the architecture calls it.

Class defaults of transformers stand in for what a file leaves out. The essential sizes may be left out of a nested
`text_config` only, where checkpoints do so; from a whole configuration their absence means that the file is damaged.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from kamado.errors import UnsupportedCheckpoint

MAX_VALUE = 2**40
"""No size in a configuration is above this; it bounds the arithmetic on hostile files."""
MAX_LAYERS = 10_000

ALIASES: dict[str, tuple[str, ...]] = {
    "num_layers": (
        "num_hidden_layers",
        "n_layer",
        "n_layers",
        "num_decoder_layers",
        "decoder_layers",
        "num_layers",
        "num_blocks",
    ),
    "hidden_size": ("hidden_size", "n_embd", "d_model", "n_embed", "dim", "embed_dim", "emb_dim"),
    "num_heads": (
        "num_attention_heads",
        "n_head",
        "n_heads",
        "decoder_attention_heads",
        "num_decoder_attention_heads",
        "attention_heads",
        "num_heads",
    ),
    "num_kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv", "kv_n_heads", "multi_query_group_num"),
    "head_dim": ("head_dim", "attention_head_dim", "d_kv", "kv_channels"),
    "intermediate_size": (
        "intermediate_size",
        "ffn_dim",
        "n_inner",
        "decoder_ffn_dim",
        "d_ff",
        "ffn_hidden_size",
        "ffn_intermediate_size",
    ),
    "context": (
        "max_position_embeddings",
        "n_positions",
        "max_seq_len",
        "max_sequence_length",
        "context_length",
        "model_max_length",
        "seq_length",
        "n_ctx",
        "max_target_positions",
    ),
    "num_experts": ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
    "experts_per_token": ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_k", "top_k_experts"),
    "expert_size": ("moe_intermediate_size", "expert_ffn_hidden_size"),
}
ESSENTIAL = {"num_layers": "num_hidden_layers", "hidden_size": "hidden_size", "num_heads": "num_attention_heads"}
_NESTED = ("text_config", "llm_config", "language_config", "decoder")
_INNER = ("attn_config", "ffn_config")


@functools.cache
def class_defaults() -> Mapping[str, Mapping[str, Any]]:
    """model type -> values that transformers' configuration class has for fields that a file leaves out."""
    text = resources.files(__package__).joinpath("defaults.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


class Fields:
    """One text model's configuration values. Wrong types and absurd sizes raise UnsupportedCheckpoint."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        nested = next((config[key] for key in _NESTED if isinstance(config.get(key), Mapping)), None)
        self.nested = nested is not None
        values: dict[str, Any] = dict(nested if nested is not None else config)
        for key in ("model_type", "architectures", "is_encoder_decoder"):
            values.setdefault(key, config.get(key))
        if nested is not None and "tie_word_embeddings" in config:
            values.setdefault("tie_word_embeddings", config["tie_word_embeddings"])
        for key in _INNER:
            if isinstance(values.get(key), Mapping):
                values |= {name: value for name, value in values[key].items() if name not in values}
        self._values = values
        model_type = values.get("model_type")
        if not isinstance(model_type, str) or not model_type:
            raise UnsupportedCheckpoint("The configuration has no model_type, so the architecture is unknown")
        self.model_type = model_type
        self._defaults = class_defaults().get(model_type, {})

    def of_layer(self, index: int) -> Fields:
        """The values that hold for one layer: newer files list what differs there in `per_layer_config`."""
        listed = self._values.get("per_layer_config")
        own = listed.get(str(index)) if isinstance(listed, Mapping) else None
        return Fields(self._values | dict(own)) if isinstance(own, Mapping) else self

    def get(self, name: str) -> Any:
        """The value of a field of exactly this name: the file's, null included, or else the class's, or else None."""
        return self._values[name] if name in self._values else self._defaults.get(name)

    def find(self, fact: str) -> int | None:
        """The value of a fact of ALIASES: the file's under any of its names, else the class's."""
        stated = self._stated(fact)
        if stated is not None:
            return stated
        for name in ALIASES[fact]:
            if name not in self._values and name in self._defaults:
                return self._number(name, self._defaults[name])
        return None

    def need(self, fact: str) -> int:
        """The value of an essential fact."""
        value = self.find(fact) if self.nested else self._stated(fact)
        if value is None or value < 1:
            raise UnsupportedCheckpoint(
                f"The configuration of this {self.model_type} model has no usable {ESSENTIAL[fact]}; "
                "the file may be damaged"
            )
        return value

    def _stated(self, fact: str) -> int | None:
        for name in ALIASES[fact]:
            if self._values.get(name) is not None:
                return self._number(name, self._values[name])
        return None

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number. Raises UnsupportedCheckpoint where there is none and no default."""
        value = self.get(name)
        if value is None:
            value = default
        if value is None:
            raise UnsupportedCheckpoint(f"The configuration of this {self.model_type} model lacks {name}")
        return self._number(name, value)

    def optional(self, name: str) -> int | None:
        """A whole number above 0, or None."""
        value = self.get(name)
        return None if value is None or value is False else self._number(name, value) or None

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.get(name)
        return default if value is None else bool(value)

    def names(self, name: str) -> list[str] | None:
        """A list of words, or None."""
        value = self.get(name)
        if not isinstance(value, Sequence) or isinstance(value, str) or not value:
            return None
        if len(value) > MAX_LAYERS or not all(isinstance(item, str) for item in value):
            raise UnsupportedCheckpoint(f"{name} in the configuration is not a list of names")
        return list(value)

    def numbers(self, name: str) -> list[int] | None:
        """A list of whole numbers, or None."""
        value = self.get(name)
        if not isinstance(value, Sequence) or isinstance(value, str):
            return None
        if len(value) > MAX_LAYERS:
            raise UnsupportedCheckpoint(f"{name} in the configuration has {len(value)} entries")
        return [self._number(name, item) for item in value]

    def _number(self, name: str, value: Any) -> int:
        if isinstance(value, (list, tuple)) and value and all(isinstance(item, int) for item in value):
            value = max(value)  # one value for each layer (feed-forward widths of some models)
        if isinstance(value, float) and value == value // 1:
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_VALUE:
            raise UnsupportedCheckpoint(f"{name} in the configuration is {value!r}, not a usable number")
        return int(value)
