"""A checkpoint's configuration as data: what of it is taken over, and into which transformers class.

The class is one that transformers itself has for the model type, or one of the checkpoint's own code where a person
allowed that by its name. Nothing in the file can name other code, a hub repository or another way to compute attention.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kamado.checkpoint.own_code import check_permission, names_class
from kamado.checkpoint.types import Checkpoint
from kamado.errors import UnsupportedCheckpoint
from kamado.quant import STORED, Quant
from kamado.weights.quantized.stored.methods import method_of, understood

from .gguf import config_from_gguf
from .gguf.names import packed_tensors
from .media.table import OUTSIDE, senses_of, text_part_of, thinker_of

_SUFFIXES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "MTModel")
_SENSES = ("vision_config", "audio_config", "image_token_id", "speech_config")
# Names that would choose code, kernels or other files; everything that starts with an underscore goes with them.
_NEVER = re.compile(
    r"_.*|.*implementation.*|auto_map|trust_remote_code|custom_.*|.*kernel.*|name_or_path|(torch_)?dtype"
    r"|quantization_config"
)
_NEVER_EXCEPT = re.compile(r"conv_kernel|linear_conv_kernel_dim|([a-z]\w*_)?kernel_sizes?")
# An architecture of its own has fields of its own, so of these only what transformers itself would follow.
_NEVER_OF_OWN_CODE = re.compile(
    r"_.*|.*implementation.*|auto_map|trust_remote_code|custom_(generate|pipelines?)|use_kernels|kernel_config"
    r"|name_or_path|(torch_)?dtype|quantization_config"
)
OWN_CLASSES = ("AutoConfig", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM")
"""What is taken from a checkpoint's own code, as `auto_map` calls it."""


def language_config(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The configuration in the form of a `config.json`, or None where this is no language model. Imports no torch.

    Raises UnsupportedCheckpoint for a GGUF file of an architecture that is not known, and for a model whose prompts a
    package makes that is not worked with.
    """
    if checkpoint.layout == "gguf":
        return config_from_gguf(checkpoint)
    if checkpoint.layout != "transformers":
        return None
    config = thinker_of(checkpoint.config) or text_part_of(checkpoint.config, checkpoint.tensors) or checkpoint.config
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    if not name.endswith(_SUFFIXES) or not isinstance(config.get("model_type"), str):
        return None
    if package := OUTSIDE.get(config["model_type"]):
        raise UnsupportedCheckpoint(
            f"{checkpoint.reference}: prompts of a {config['model_type']!r} model are made by the package {package}, "
            f"which Kamado does not work with yet; transformers itself runs it: pip install {package}"
        )
    unknown = any(sense in config for sense in _SENSES) and not senses_of(config)
    return None if unknown else dict(config)


def has_own_classes(checkpoint: Checkpoint) -> bool:
    """Whether the model's classes are to come from the checkpoint's own code."""
    return checkpoint.layout == "transformers" and any(names_class(checkpoint.config, kind) for kind in OWN_CLASSES)


def check_runnable(checkpoint: Checkpoint, allow_code: str | None) -> bool:
    """Whether its own code is needed to run it, and was allowed by its name.

    Raises UnsafeCheckpoint for one that wants its own code run and may not, UnsupportedCheckpoint for one that is
    quantized in a way that is not known.
    """
    allowed = check_permission(checkpoint, allow_code)
    method_of(checkpoint.config, checkpoint.reference)
    return allowed and has_own_classes(checkpoint)


def as_stored(checkpoint: Checkpoint, quant: Quant | None = None) -> Checkpoint:
    """The checkpoint with its quantized weights in place of the tensors that make them up. The blocks of a GGUF file
    count as quantized weights where `quant` is to keep what is stored. Raises UnsupportedCheckpoint."""
    if checkpoint.layout == "gguf":
        keeps = quant is not None and quant.scheme == STORED
        return replace(checkpoint, tensors=packed_tensors(checkpoint)) if keeps else checkpoint
    return replace(checkpoint, tensors=understood(checkpoint.tensors, checkpoint.config, checkpoint.reference))


def cleaned(config: Mapping[str, Any], *, own_code: bool = False) -> dict[str, Any]:
    """The configuration without what must not come from a file, at any depth. `own_code`: for a class of the
    checkpoint's own, which may have fields of any name."""
    never = _NEVER_OF_OWN_CODE if own_code else _NEVER

    def clean(value: Any) -> Any:
        if isinstance(value, Mapping):
            if value.keys() == {"__float__"}:  # how transformers writes infinity, which JSON lacks
                return float(value["__float__"])
            return {
                key: clean(item)
                for key, item in value.items()
                if isinstance(key, str) and (_NEVER_EXCEPT.fullmatch(key) or not never.fullmatch(key))
            }
        return [clean(item) for item in value] if isinstance(value, list) else value

    result = clean(config)
    assert isinstance(result, dict)
    return result


def transformers_classes(checkpoint: Checkpoint, *, own_code: bool = False) -> tuple[Any, Any]:
    """(configuration object, model class). Raises UnsupportedCheckpoint, UnsafeCheckpoint.

    `own_code`: take the classes that `auto_map` names from the checkpoint's own code, which runs it. Only for what
    `check_runnable` said so of."""
    own: Mapping[str, Any] = {}
    if own_code:
        from .own_code import own_classes

        own = own_classes(checkpoint)
    config_class = own.get("AutoConfig") or _library_config_class(checkpoint)
    try:
        made = config_class.from_dict(cleaned(checkpoint.config, own_code=own_code))
    except Exception as error:  # whatever a class makes of absurd values
        raise UnsupportedCheckpoint(
            f"{checkpoint.reference}: its configuration is not usable: {_first_line(error)}"
        ) from error
    kind = "AutoModelForSeq2SeqLM" if made.is_encoder_decoder else "AutoModelForCausalLM"
    return made, own.get(kind) or _library_model_class(checkpoint, made)


def _library_config_class(checkpoint: Checkpoint) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = checkpoint.config["model_type"]
    if model_type not in CONFIG_MAPPING:
        raise UnsupportedCheckpoint(
            f"{checkpoint.reference}: the installed transformers has no model type {model_type!r}; a newer one may"
        )
    return CONFIG_MAPPING[model_type]


def _library_model_class(checkpoint: Checkpoint, config: Any) -> Any:
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_MULTIMODAL_LM_MAPPING,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    )

    mapping = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if config.is_encoder_decoder else MODEL_FOR_CAUSAL_LM_MAPPING
    if senses_of(checkpoint.config):
        several = MODEL_FOR_MULTIMODAL_LM_MAPPING, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
        mapping = next((each for each in several if type(config) in each), several[0])
    if type(config) not in mapping:
        where = "auto_map" if has_own_classes(checkpoint) else "transformers"
        raise UnsupportedCheckpoint(
            f"{checkpoint.reference}: {where} has no text-generating class for {checkpoint.config['model_type']!r}"
        )
    chosen = mapping[type(config)]
    return chosen[0] if isinstance(chosen, (list, tuple)) else chosen


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
