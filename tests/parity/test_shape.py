"""Arithmetic on configurations against what transformers really allocates."""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import __version__ as transformers_version

from kamado.checkpoint.inspect import inspect
from kamado.errors import UnsupportedCheckpoint
from kamado_models.language.shape import active_parameters, describe, text_shape, weight_bytes
from kamado_models.language.shape_fields import ALIASES, class_defaults
from shape_defaults import collect
from tiny import ARCHITECTURES, Oracle, build
from tiny_configs import CAUSAL, CONTEXT, VOCAB, WINDOW

needs_measured_version = pytest.mark.skipif(
    not tuple(map(int, transformers_version.split(".")[:2])) >= (5, 23),
    reason="measured with transformers 5.23; older versions take other paths, and name layer types otherwise",
)
UNBOUNDED = {"mamba", "mamba2", "falcon_mamba", "bloom", "t5", "umt5"}


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


class _Peak(TorchDispatchMode):
    """Bytes of the tensors that operators make, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._live: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in given and storage._cdata not in self._live:
                    self._live[storage._cdata] = storage.nbytes()
                    self._now += storage.nbytes()
                    weakref.finalize(storage, self._drop, storage._cdata)
        self.peak = max(self.peak, self._now)
        return result

    def _drop(self, key: int) -> None:
        self._now -= self._live.pop(key, 0)


@needs_measured_version
@pytest.mark.parametrize("num_tokens", [64, 300])
def test_activations_lie_above_the_measured_peak_and_not_far(built: tuple[Path, Any], num_tokens: int) -> None:
    folder, model = built
    shape = text_shape(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    ids = torch.arange(num_tokens)[None] % 256 + 8
    inputs: dict[str, Any] = {"input_ids": ids}
    if shape.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    elif "logits_to_keep" in type(model).forward.__code__.co_varnames:
        inputs["logits_to_keep"] = 1
    watch = _Peak()
    with torch.inference_mode(), watch:
        model(use_cache=False, **inputs)
    estimate = shape.activation_bytes(tokens=num_tokens, rows=1, context=num_tokens, dtype_bytes=4)
    assert watch.peak <= estimate <= 4 * watch.peak


def test_describe_says_what_there_is(tmp_path: Path) -> None:
    folder = build("qwen3_moe", tmp_path)
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# Model\n", encoding="utf-8")
    checkpoint = inspect(folder)
    facts = describe(checkpoint, text_shape(checkpoint.config))
    assert facts["parameters"] == sum(p.numel() for p in Oracle(folder).model.parameters())
    assert facts["architecture"] == "Qwen3MoeForCausalLM"
    assert facts["stored_dtype"] == "float32"
    assert (facts["layers"], facts["heads"], facts["kv_heads"], facts["experts"]) == (3, 4, 2, 4)
    assert facts["kv_bytes_per_token"] == {"bfloat16": 3 * 2 * 2 * 16 * 2, "float32": 3 * 2 * 2 * 16 * 4}
    assert facts["chat_template"] is True
    assert facts["licence"] == "apache-2.0"
    # Two of four experts are chosen, each of three matrices of 64 x 32, in three layers.
    assert facts["parameters"] - facts["active_parameters"] == 3 * 2 * 3 * 64 * 32


@pytest.mark.parametrize("name", [name for name in CAUSAL if CAUSAL[name][1].keys() & set(ALIASES["num_experts"])])
def test_active_parameters_of_every_mixture(name: str, tmp_path: Path) -> None:
    checkpoint = inspect(build(name, tmp_path))
    shape = text_shape(checkpoint.config)
    active = active_parameters(checkpoint, shape)
    assert active is not None
    assert 0.3 * checkpoint.parameters < active < checkpoint.parameters


_CACHES = {
    "full_attention": "full",
    "indexed_attention": "full",
    "sliding_attention": "sliding",
    "chunked_attention": "chunked",
    "linear_attention": "linear",
    "conv": "conv",
    "hybrid": "hybrid",
    "hybrid_sliding": "hybrid_sliding",
    "dummy": "none",
}
# transformers plans these by a rule of their own, or has no rule; files of them state their layer types.
_UNRULED = {
    "beam", "cohere2_moe", "cohere_compass_text", "deepseek_v4", "dots3_note", "dots3_note_text", "flint", "fsmt",
    "inkling2_text", "inkling_text", "laguna", "lfm3", "longcat_flash", "mellum", "mimo_v2_flash", "nemo_speechlm",
    "nemotron_h", "rwkv", "t5gemma2", "xlm", "zaya",
}  # fmt: skip


@needs_measured_version
@pytest.mark.parametrize("model_type", sorted(class_defaults().keys() - _UNRULED))
def test_layer_kinds_are_those_of_transformers(model_type: str) -> None:
    """For the default configuration of every architecture, with its list of layer types and without."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers.cache_utils import get_layer_types_and_kwargs
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"this version of transformers has no {model_type}")
    try:
        config = CONFIG_MAPPING[model_type]()
        names, options = get_layer_types_and_kwargs(config.get_text_config(decoder=True))
    except (ValueError, TypeError, AttributeError, ImportError, StrictDataclassError) as error:
        pytest.skip(f"transformers itself has no such default: {error}")

    def without_types(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        hidden = ("layer_types", "layers_block_type")
        return {key: without_types(item) for key, item in value.items() if key not in hidden}

    for stated in (config.to_dict(), without_types(config.to_dict())):
        shape = text_shape(stated)
        assert list(shape.kinds) == [_CACHES[name] for name in names]
        assert list(shape.window) == [option.get("sliding_window") for option in options]


def test_class_defaults_are_those_of_transformers() -> None:
    if transformers_version != "5.23.0":
        pytest.skip("the table is that of transformers 5.23.0")
    expected = collect()
    assert {name: dict(values) for name, values in class_defaults().items()} == {
        name: {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        for name, values in expected.items()
    }


@pytest.mark.parametrize("field", ["num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"])
@pytest.mark.parametrize("value", [None, 0, -1, "many", 2**60, [], 1.5, True, {}])
def test_damaged_configuration_names_the_field(field: str, value: Any) -> None:
    config = {"model_type": "unheard_of", **CAUSAL["llama"][1], field: value}
    if value is None:
        del config[field]
    with pytest.raises(UnsupportedCheckpoint, match=field):
        text_shape(config)


def test_nested_configuration_may_lean_on_class_defaults() -> None:
    nested = {"model_type": "gemma3_text", "hidden_size": 2560, "num_hidden_layers": 34, "sliding_window": 1024}
    shape = text_shape({"model_type": "gemma3", "architectures": ["X"], "text_config": nested})
    assert (shape.num_heads, shape.num_kv_heads, shape.head_dim) == (8, 4, 256)
    assert shape.attention == {"sliding": 29, "full": 5}
    assert shape.kv_values_per_token == 34 * 2 * 4 * 256
    with pytest.raises(UnsupportedCheckpoint, match="num_attention_heads"):
        text_shape(nested)


def test_gemma4_has_other_heads_in_its_full_layers() -> None:
    values = {**CAUSAL["gemma4"][1], "model_type": "gemma4_text", "architectures": ["Gemma4ForCausalLM"]}
    window, full = 2 * 2 * 16, 2 * 2 * 32
    shape = text_shape(values)
    assert shape.kv_values_per_token == 5 * window + full
    newer = {name: value for name, value in values.items() if name != "global_head_dim"}
    assert text_shape(newer | {"per_layer_config": {"5": {"head_dim": 32}}}).kv_values_per_token == 5 * window + full
    shared = text_shape(values | {"num_kv_shared_layers": 2})
    assert shared.kv_values_per_token == 4 * window
