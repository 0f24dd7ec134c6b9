"""A checkpoint's configuration as data: what of it is taken over, and into which transformers class.

The class is always one that transformers itself has for the model type. Nothing in the file can name code, a hub
repository or another way of computing attention.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from kamado.checkpoint.types import Checkpoint
from kamado.errors import UnsafeCheckpoint, UnsupportedCheckpoint

from .gguf import config_from_gguf

_SUFFIXES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "MTModel")
_SENSES = ("vision_config", "audio_config", "image_token_id", "speech_config")
# Names that would choose code, kernels or other files; everything that starts with an underscore goes with them.
_NEVER = re.compile(
    r"_.*|.*implementation.*|auto_map|trust_remote_code|custom_.*|.*kernel.*|name_or_path|(torch_)?dtype"
)
_NEVER_EXCEPT = frozenset(
    {"conv_kernel", "conv_kernel_size", "linear_conv_kernel_dim", "kernel_size", "short_conv_kernel_size"}
)


def language_config(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The configuration in the form of a `config.json`, or None where this is no language model. Imports no torch.

    Raises UnsupportedCheckpoint for a GGUF file of an architecture that is not known.
    """
    if checkpoint.layout == "gguf":
        return config_from_gguf(checkpoint)
    if checkpoint.layout != "transformers":
        return None
    config = checkpoint.config
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    if not name.endswith(_SUFFIXES) or not isinstance(config.get("model_type"), str):
        return None
    return None if any(sense in config for sense in _SENSES) else dict(config)


def check_runnable(checkpoint: Checkpoint) -> None:
    """Raises UnsafeCheckpoint for one that wants its own code run, UnsupportedCheckpoint for a quantized one."""
    if wants := checkpoint.metadata.get("wants_code"):
        raise UnsafeCheckpoint(
            f"{checkpoint.reference} wants its own code run ({', '.join(map(str, wants))}); "
            "this version runs no code out of a checkpoint"
        )
    quantized = checkpoint.config.get("quantization_config")
    if quantized:
        method = quantized.get("quant_method") if isinstance(quantized, Mapping) else quantized
        raise UnsupportedCheckpoint(
            f"{checkpoint.reference} is quantized ({method!r}), which this version cannot load; take the plain one"
        )


def cleaned(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without what must not come from a file, at any depth."""

    def clean(value: Any) -> Any:
        if isinstance(value, Mapping):
            if value.keys() == {"__float__"}:  # how transformers writes infinity, which JSON lacks
                return float(value["__float__"])
            return {
                key: clean(item)
                for key, item in value.items()
                if isinstance(key, str) and (key in _NEVER_EXCEPT or not _NEVER.fullmatch(key))
            }
        return [clean(item) for item in value] if isinstance(value, list) else value

    result = clean(config)
    assert isinstance(result, dict)
    return result


def transformers_classes(checkpoint: Checkpoint) -> tuple[Any, Any]:
    """(configuration object, model class). Raises UnsupportedCheckpoint."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    )

    model_type = checkpoint.config["model_type"]
    if model_type not in CONFIG_MAPPING:
        raise UnsupportedCheckpoint(
            f"{checkpoint.reference}: the installed transformers has no model type {model_type!r}; a newer one may"
        )
    try:
        made = CONFIG_MAPPING[model_type].from_dict(cleaned(checkpoint.config))
    except Exception as error:  # whatever a class makes of absurd values
        raise UnsupportedCheckpoint(
            f"{checkpoint.reference}: its configuration is not usable: {_first_line(error)}"
        ) from error
    mapping = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if made.is_encoder_decoder else MODEL_FOR_CAUSAL_LM_MAPPING
    if type(made) not in mapping:
        raise UnsupportedCheckpoint(
            f"{checkpoint.reference}: transformers has no text-generating class for {model_type!r}"
        )
    chosen = mapping[type(made)]
    return made, chosen[0] if isinstance(chosen, (list, tuple)) else chosen


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
