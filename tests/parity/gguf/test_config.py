"""Configurations out of GGUF key-values: RoPE scaling, odd files, hostile files."""

from __future__ import annotations

import math
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from gguf_files import checkpoint_of, load
from gguf_writer import write_gguf
from kamado.checkpoint.types import Checkpoint, TensorEntry
from kamado.errors import UnsupportedCheckpoint
from kamado_models.language.gguf import ARCHITECTURES, config_from_gguf
from kamado_models.language.gguf.tensors import tensors_from_gguf

BASE: dict[str, Any] = {
    "block_count": 1,
    "context_length": 4096,
    "embedding_length": 256,
    "feed_forward_length": 64,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "attention.layer_norm_epsilon": 1e-5,
    "rope.freq_base": 500000.0,
}
SHAPES = {
    "token_embd.weight": (100, 256),
    "output_norm.weight": (256,),
    "blk.0.attn_norm.weight": (256,),
    "blk.0.ffn_norm.weight": (256,),
    "blk.0.attn_q.weight": (256, 256),
    "blk.0.attn_k.weight": (128, 256),
    "blk.0.attn_v.weight": (128, 256),
    "blk.0.attn_output.weight": (256, 256),
    "blk.0.ffn_gate.weight": (64, 256),
    "blk.0.ffn_up.weight": (64, 256),
    "blk.0.ffn_down.weight": (256, 64),
}


def checkpoint(arch: str = "llama", shapes: dict[str, tuple[int, ...]] | None = None, **changes: Any) -> Checkpoint:
    """Header data without a file."""
    values = {f"{arch}.{key}": value for key, value in BASE.items()} | {"general.architecture": arch} | changes
    file = Path("model.gguf")
    tensors = {
        name: TensorEntry(name, "F32", shape, file, 0, 4 * math.prod(shape))
        for name, shape in (shapes or SHAPES).items()
    }
    metadata = {key: value for key, value in values.items() if value is not None}
    return Checkpoint(
        reference="model.gguf", root=file, layout="gguf", config={}, metadata=metadata, tensors=tensors, files={}
    )


def with_factors(path: Path, factors: list[float], name: str = "rope_freqs.weight", **changes: Any) -> Checkpoint:
    """The same, with one small tensor that can be read."""
    plain = checkpoint(**changes)
    path.write_bytes(struct.pack(f"<{len(factors)}f", *factors))
    entry = TensorEntry(name, "F32", (len(factors),), path, 0, 4 * len(factors))
    return Checkpoint(
        reference="model.gguf",
        root=path,
        layout="gguf",
        config={},
        metadata=plain.metadata,
        tensors={**plain.tensors, name: entry},
        files={},
    )


def frequencies(config: dict[str, Any]) -> torch.Tensor:
    result: torch.Tensor = LlamaRotaryEmbedding(LlamaConfig(**config)).inv_freq
    return result


@pytest.mark.parametrize(
    ("factor", "low", "high", "context"), [(8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192), (4.0, 2.0, 6.0, 4096)]
)
def test_llama3_scaling_is_found_again(factor: float, low: float, high: float, context: int, tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": context,
    }
    plain = config_from_gguf(checkpoint())
    wanted = frequencies(plain | {"rope_scaling": scaling})
    factors = (frequencies(plain) / wanted).tolist()
    config = config_from_gguf(with_factors(tmp_path / "f", factors))
    torch.testing.assert_close(frequencies(config), wanted, rtol=2e-3, atol=0)
    if (low, high) == (1.0, 4.0):
        assert config["rope_scaling"] == scaling


def test_rope_factors_without_a_rule_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpoint, match="follow no rule"):
        config_from_gguf(with_factors(tmp_path / "f", [1.0, 7.0] * 16))
    with pytest.raises(UnsupportedCheckpoint, match="has 5 factors, not 32"):
        config_from_gguf(with_factors(tmp_path / "f", [1.0] * 5))
    assert "rope_scaling" not in config_from_gguf(with_factors(tmp_path / "f", [1.0] * 32))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"rope.scaling.type": "none"}, None),
        ({"rope.scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        (
            {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
            {"rope_type": "linear", "factor": 4.0},
        ),
        (
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 1024,
                "rope.scaling.yarn_beta_fast": 16.0,
            },
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "beta_fast": 16.0},
        ),
    ],
)
def test_rope_scaling_of_key_values(changes: dict[str, Any], expected: dict[str, Any] | None) -> None:
    config = config_from_gguf(checkpoint(**{f"llama.{key}": value for key, value in changes.items()}))
    assert config.get("rope_scaling") == expected
    assert config["rope_theta"] == 500000.0


def test_unknown_rope_scaling_is_refused() -> None:
    with pytest.raises(UnsupportedCheckpoint, match="RoPE scaling of type 'magic'"):
        config_from_gguf(checkpoint(**{"llama.rope.scaling.type": "magic"}))


def test_token_ids_and_small_numbers() -> None:
    config = config_from_gguf(
        checkpoint(
            **{
                "tokenizer.ggml.eos_token_id": 9,
                "tokenizer.ggml.eot_token_id": 7,
                "tokenizer.ggml.padding_token_id": 500,
                "llama.attention.layer_norm_rms_epsilon": struct.unpack("f", struct.pack("f", 1e-6))[0],
            }
        )
    )
    assert config["eos_token_id"] == [9, 7]
    assert config["pad_token_id"] is None  # beyond the vocabulary
    assert config["rms_norm_eps"] == 1e-6
    assert (config["vocab_size"], config["tie_word_embeddings"]) == (100, True)


def test_unknown_architecture_names_the_known_ones() -> None:
    with pytest.raises(UnsupportedCheckpoint) as caught:
        config_from_gguf(checkpoint("hyperion"))
    assert "'hyperion'" in str(caught.value) and all(name in str(caught.value) for name in ARCHITECTURES)


def test_a_file_that_does_not_say_what_it_is() -> None:
    with pytest.raises(UnsupportedCheckpoint, match=r"general\.architecture is missing"):
        config_from_gguf(checkpoint(**{"general.architecture": None}))


@pytest.mark.parametrize("key", [k for k in BASE if k not in ("attention.head_count_kv", "rope.freq_base")])
@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma3", "falcon"])
@pytest.mark.parametrize("value", [None, "text", -1, 2**62, float("nan"), [1, 2], True])
def test_wrong_values_raise_nothing_else(arch: str, key: str, value: Any) -> None:
    try:
        config_from_gguf(checkpoint(arch, **{f"{arch}.{key}": value}))
    except UnsupportedCheckpoint as error:
        assert "model.gguf" in str(error)


@given(layers=st.integers(2, 2**62))
def test_layers_that_are_not_there(layers: int) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=r"lacks the tensors of layer|must be a whole number"):
        config_from_gguf(checkpoint(**{"llama.block_count": layers}))


def test_unknown_tensors_are_refused() -> None:
    odd = checkpoint(shapes={**SHAPES, "blk.0.attn_mystery.weight": (3,)})
    config = LlamaConfig(**config_from_gguf(odd))
    with pytest.raises(UnsupportedCheckpoint, match=r"a tensor blk\.0\.attn_mystery\.weight is unknown in llama"):
        tensors_from_gguf(odd, config, torch.float32)


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    tensors = {name: torch.zeros(shape) for name, shape in SHAPES.items() if "attn_k" not in name}
    metadata = {f"{{arch}}.{key}": value for key, value in BASE.items()}
    file = write_gguf(tmp_path / "m.gguf", "llama", tensors, metadata)
    with pytest.raises(UnsupportedCheckpoint, match=r"1 missing: model\.layers\.0\.self_attn\.k_proj\.weight"):
        load(checkpoint_of(file))


def test_misshapen_tensors_are_named(tmp_path: Path) -> None:
    tensors = {name: torch.zeros(shape) for name, shape in SHAPES.items()} | {
        "blk.0.attn_q.weight": torch.zeros(3, 256)
    }
    metadata = {f"{{arch}}.{key}": value for key, value in BASE.items()}
    file = write_gguf(tmp_path / "m.gguf", "llama", tensors, metadata)
    with pytest.raises(UnsupportedCheckpoint, match=r"self_attn\.q_proj\.weight' cannot be made of tensors of shape"):
        load(checkpoint_of(file))


def test_old_files_with_one_tensor_for_each_expert() -> None:
    shapes = {name: shape for name, shape in SHAPES.items() if "ffn_" not in name or "norm" in name}
    shapes["blk.0.ffn_gate_inp.weight"] = (2, 256)
    for e in range(2):
        shapes |= {f"blk.0.ffn_{part}.{e}.weight": (64, 256) for part in ("gate", "up")}
        shapes[f"blk.0.ffn_down.{e}.weight"] = (256, 64)
    old = checkpoint(shapes=shapes, **{"llama.expert_count": 2, "llama.expert_used_count": 1})
    from transformers import MixtralConfig

    values = config_from_gguf(old)
    tensors = tensors_from_gguf(old, MixtralConfig(**values), torch.float32)
    assert values["model_type"] == "mixtral"
    assert "model.layers.0.block_sparse_moe.experts.1.w3.weight" in tensors


def test_configurations_need_no_torch() -> None:
    program = "import sys, kamado_models.language.gguf; sys.exit(int('torch' in sys.modules or 'numpy' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
