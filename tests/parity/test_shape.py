"""Arithmetic on configurations against what transformers really allocates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from kamado.checkpoint.inspect import inspect
from kamado.errors import UnsupportedCheckpoint
from kamado_models.language.shape import active_parameters, describe, text_shape, weight_bytes
from tiny import ARCHITECTURES, Oracle, build
from tiny_configs import CONTEXT, VOCAB, WINDOW

UNBOUNDED = {"mamba", "mamba2", "falcon_mamba", "bloom", "t5"}


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = build(request.param, tmp_path_factory.mktemp(request.param))
    return folder, Oracle(folder).model


def _tensors(value: Any) -> list[torch.Tensor]:
    """Every tensor inside caches, lists, dicts and their attributes."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in _tensors(item)]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _tensors(item)]
    if type(value).__module__.startswith("transformers.") and hasattr(value, "__dict__"):
        # A layer with a window keeps its size as a tensor too; that is no state.
        return _tensors({name: item for name, item in vars(value).items() if name != "_sliding_window_tensor"})
    return []


def _held(model: Any, num_tokens: int, num_source: int) -> int:
    """Numbers that are in memory after a forward of `num_tokens` tokens."""
    from transformers import DynamicCache

    ids = torch.arange(8, 8 + num_tokens)[None]
    inputs: dict[str, Any] = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        inputs = {"input_ids": torch.arange(8, 8 + num_source)[None], "decoder_input_ids": ids}
    if model.config.model_type == "recurrent_gemma":
        inputs["past_key_values"] = DynamicCache(config=model.config)
    with torch.inference_mode():
        output = model(use_cache=True, **inputs)
    held = [output.get(name) for name in ("past_key_values", "cache_params", "state")]
    inside = [(getattr(m, "conv1d_state", None), getattr(m, "recurrent_states", None)) for m in model.modules()]
    found = _tensors([held, inside, inputs.get("past_key_values")])
    return sum(tensor.numel() for tensor in {id(tensor): tensor for tensor in found}.values())


def test_kv_and_state_are_what_transformers_allocates(built: tuple[Path, Any]) -> None:
    folder, model = built
    shape = text_shape(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    # Below the windows, so that every layer that keeps keys still grows.
    short, long = WINDOW // 4, WINDOW // 2
    assert _held(model, long, 3) - _held(model, short, 3) == (long - short) * shape.kv_values_per_token
    if shape.is_encoder_decoder:
        assert _held(model, short, 9) - _held(model, short, 3) == 6 * shape.cross_values_per_token
    fixed = _held(model, short, 3) - short * shape.kv_values_per_token - 3 * shape.cross_values_per_token
    assert fixed == shape.state_values_per_sequence
    assert shape.state_exact


def test_windows_and_sizes(built: tuple[Path, Any]) -> None:
    folder, model = built
    config = model.config.get_text_config()
    shape = text_shape(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    assert shape.vocab_size == VOCAB
    assert shape.hidden_size == config.hidden_size == 64
    assert shape.context_tokens == (None if shape.model_type in UNBOUNDED else CONTEXT)
    assert len(shape.kinds) == len(shape.window) == shape.num_layers
    assert {window for window in shape.window if window is not None} <= {WINDOW}


def test_weight_bytes_are_those_of_the_loaded_model(built: tuple[Path, Any]) -> None:
    folder, model = built
    checkpoint = inspect(folder)
    tensors = {id(tensor): tensor for tensor in [*model.parameters(), *model.state_dict(keep_vars=True).values()]}
    loaded = sum(tensor.numel() for tensor in tensors.values())
    assert weight_bytes(checkpoint, "float32") == 4 * loaded
    assert weight_bytes(checkpoint, "bfloat16") == 2 * loaded
