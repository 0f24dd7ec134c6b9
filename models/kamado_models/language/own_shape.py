"""The shape of a model whose classes are the checkpoint's own, measured on a copy that has no weights.

Names and defaults of its configuration are known to its own class alone, and what it remembers of a token to its
forward alone. So the model is built on torch's meta device, where tensors have shapes and no memory, and its cache is
looked at there. Where the code cannot do that, its configuration is taken as an ordinary one.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedConfig

from kamado.checkpoint.types import Checkpoint
from kamado.errors import UnsupportedCheckpoint

from .config import transformers_classes
from .materialize import library_call
from .own_code import failures_explained
from .rows_probe import measure_state
from .shape import TextShape, text_shape
from .shape_fields import ALIASES

_NEUTRAL = "own code"
"""Model type for the arithmetic: rules that hold for the library's models of a name need not hold for this one."""
_LAYER_NAMES = ("layer_types", "layers_block_type")
_SCORES_PER_HEAD = 5
"""As `shape_activations` has it, for attention that writes its scores to memory."""


class _Measured(NamedTuple):
    values_per_token: int
    values_per_sequence: int
    hidden_size: int
    vocab_size: int
    writes_scores: bool


def own_shape(checkpoint: Checkpoint) -> TextShape:
    """The shape of an allowed checkpoint's model. Runs its code.

    Raises UnsupportedCheckpoint where the code does not work, or keeps no state between tokens; UnsafeCheckpoint for
    code of another repository."""
    config, model_class = transformers_classes(checkpoint, own_code=True)
    with failures_explained(checkpoint, "its configuration class cannot be used"):
        values = _values(config)
    measured = _measure(model_class, config)
    if isinstance(measured, _Measured):
        values.setdefault("hidden_size", measured.hidden_size)
        values.setdefault("vocab_size", measured.vocab_size)
        values.setdefault("num_attention_heads", 1)
    values |= {"model_type": _NEUTRAL, "is_encoder_decoder": config.is_encoder_decoder}
    try:
        shape = _without_unknown_layers(values)
    except UnsupportedCheckpoint as error:
        if isinstance(measured, _Measured):
            raise
        with failures_explained(checkpoint, "its model cannot be built or run without weights, to measure it"):
            raise measured from error
    shape = replace(shape, model_type=checkpoint.config["model_type"], architecture=model_class.__name__)
    return _corrected(checkpoint, shape, measured) if isinstance(measured, _Measured) else shape


def _without_unknown_layers(values: dict[str, Any]) -> TextShape:
    try:
        return text_shape(values)
    except UnsupportedCheckpoint:  # kinds of layers, perhaps, that only its own code knows
        return text_shape({name: value for name, value in values.items() if name not in _LAYER_NAMES})


def _corrected(checkpoint: Checkpoint, shape: TextShape, measured: _Measured) -> TextShape:
    if not measured.values_per_token and not measured.values_per_sequence:
        raise UnsupportedCheckpoint(
            f"{checkpoint.reference}: {shape.architecture} keeps no state between tokens in a cache of transformers, "
            "so every token would cost the whole text again; take a model that has a cache"
        )
    scores = _SCORES_PER_HEAD * shape.num_heads if measured.writes_scores else 0
    return replace(
        shape,
        kv_values_per_token=measured.values_per_token,
        state_values_per_sequence=measured.values_per_sequence,
        state_exact=True,
        temporaries=replace(shape.temporaries, scores=max(shape.temporaries.scores, scores)),
    )


def _values(config: PreTrainedConfig) -> dict[str, Any]:
    """The fields of the decoder's configuration, also under the usual names where the class knows them by those."""
    text = config.get_text_config(decoder=True)
    values: dict[str, Any] = text.to_dict()
    for names in ALIASES.values():
        if all(values.get(name) is None for name in names):
            values |= {name: found for name in names if isinstance(found := getattr(text, name, None), int)}
    return {name: value for name, value in values.items() if value is not None}


def _measure(model_class: Any, config: PreTrainedConfig) -> _Measured | Exception:
    """What a model without weights shows; else why it shows nothing: its code may compute with values, which there are
    none of."""
    try:
        with library_call(), torch.device("meta"):
            model = model_class(copy.deepcopy(config)).eval()
        size = measure_state(model, model.config)
        vocab_size, hidden_size = model.get_input_embeddings().weight.shape
    except Exception as error:  # noqa: BLE001 - whatever foreign code raises; what matters comes again on loading
        return error
    width = model.dtype.itemsize
    return _Measured(
        values_per_token=size.per_token // width,
        values_per_sequence=size.per_sequence // width,
        hidden_size=hidden_size,
        vocab_size=vocab_size,
        writes_scores=model.config._attn_implementation == "eager",
    )
