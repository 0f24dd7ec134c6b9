"""Quantized files whose tensors contradict each other: refused in words, or read as a matrix of the shape that the
header tells; nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import quantized_files as files
from kamado.checkpoint.safetensors_header import read_safetensors_header
from kamado.errors import UnsupportedCheckpoint
from kamado.weights.quantized.stored.methods import METHODS, method_of, understood
from kamado.weights.quantized.stored.reading import stored_tensors
from kamado.weights.quantized.tensor import QuantTensor

FORMATS: dict[str, tuple[files.Writer, dict[str, Any]]] = {
    "gptq": (files.gptq(act_order=True, symmetric=False), {"quant_method": "gptq", "desc_act": True, "sym": False}),
    "awq": (files.awq(), {"quant_method": "awq"}),
    "packed": (files.packed(symmetric=False, act_order=True), {"quant_method": "compressed-tensors"}),
    "integers": (files.integers("group", symmetric=False), {"quant_method": "compressed-tensors"}),
    "fp8": (files.float8((16, 24)), {"quant_method": "fp8", "weight_block_size": [16, 24]}),
    "bnb8": (files.bnb8, {"quant_method": "bitsandbytes"}),
    "bnb4": (files.bnb4(nested=True), {"quant_method": "bitsandbytes"}),
    "mxfp4": (files.mxfp4, {"quant_method": "mxfp4"}),
    "torchao int8": (files.torchao_integers(8, 32, symmetric=False), files.torchao_config("Int8WeightOnlyConfig")),
    "torchao intx": (
        files.torchao_integers(4, 32),
        files.torchao_config("IntxWeightOnlyConfig", weight_dtype={"_data": "int4"}),
    ),
    "torchao int4": (files.torchao_int4(), files.torchao_config("Int4WeightOnlyConfig")),
    "torchao float8": (files.torchao_float8("row"), files.torchao_config("Float8WeightOnlyConfig")),
}
TYPES = (torch.uint8, torch.int8, torch.int32, torch.int64, torch.float16, torch.float32, torch.float8_e4m3fn)
SIZES = st.integers(0, 9) | st.sampled_from([16, 32, 64, 96, 128])


def written(name: str, seed: int = 0) -> dict[str, torch.Tensor]:
    write, _ = FORMATS[name]
    random = np.random.default_rng(seed)
    return {
        f"x{ending}": tensor
        for ending, tensor in write(random.normal(size=(32, 96)).astype(np.float32), random)[0].items()
    }


def load(path: Path, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> None:
    """Read all; every weight must be of the shape that was announced."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    found = understood(read_safetensors_header(path).tensors, {"quantization_config": settings}, "it")
    for name, tensor in stored_tensors(found, torch.float32).items():
        read = tensor.read()
        assert tuple(read.shape) == found[name].shape
        assert (read + 0).shape == read.shape  # in full precision, too
        if isinstance(read, QuantTensor):
            assert all(part.is_contiguous() for part in read.packed.parts.values())


@pytest.mark.parametrize("name", FORMATS)
def test_sound_ones_can_be_read(name: str, tmp_path: Path) -> None:
    load(tmp_path / "file", written(name), FORMATS[name][1])


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_one_tensor_is_another(name: str, tmp_path: Path, data: st.DataObject) -> None:
    tensors = written(name)
    victim = data.draw(st.sampled_from(sorted(tensors)))
    what = data.draw(st.sampled_from(["missing", "shape", "type", "bytes"]))
    old = tensors.pop(victim)
    if what == "shape":
        shape = data.draw(st.lists(SIZES, max_size=3))
        tensors[victim] = torch.zeros(shape, dtype=old.dtype)
    elif what == "type":
        tensors[victim] = torch.zeros(old.shape, dtype=data.draw(st.sampled_from(TYPES)))
    elif what == "bytes":
        random = np.random.default_rng(data.draw(st.integers(0, 99)))
        raw = random.integers(0, 256, old.numel() * old.element_size(), dtype=np.uint8)
        tensors[victim] = torch.from_numpy(raw).view(old.dtype).view(old.shape)
    try:
        load(tmp_path / "file", tensors, FORMATS[name][1])
    except UnsupportedCheckpoint as error:
        assert "\n" not in str(error)


@given(
    state=st.dictionaries(
        st.sampled_from(["shape", "blocksize", "nested_blocksize", "nested_offset"]),
        st.none()
        | st.integers(-2, 300)
        | st.floats()
        | st.text(max_size=3)
        | st.lists(st.integers(-1, 2**70), max_size=3),
    )
)
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_absurd_states_of_bitsandbytes(tmp_path: Path, state: dict[str, Any]) -> None:
    tensors = written("bnb4")
    name = "x.weight.quant_state.bitsandbytes__nf4"
    told = json.loads(bytes(tensors[name].tolist())) | state
    tensors[name] = torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8)
    try:
        load(tmp_path / "file", tensors, FORMATS["bnb4"][1])
    except UnsupportedCheckpoint as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    "groups", [[0] * 96, [3] * 96, [-5] * 96, [2**31 - 1] * 96, [0] * 31 + [1] * 33 + [2] * 32], ids=str
)
@pytest.mark.parametrize("name", ["gptq", "packed"])
def test_indices_of_groups(name: str, groups: list[int], tmp_path: Path) -> None:
    tensors = written(name)
    place = next(key for key in tensors if key.endswith("g_idx"))
    tensors[place] = torch.tensor(groups, dtype=torch.int32)
    with pytest.raises(UnsupportedCheckpoint, match="3 groups of 32 columns"):
        load(tmp_path / "file", tensors, FORMATS[name][1])


@pytest.mark.parametrize("block", [[2**70, 2**70], [1, 1], [32, 96], [2**40, 96]], ids=str)
def test_absurd_blocks(block: list[int], tmp_path: Path) -> None:
    tensors = written("fp8")
    settings = {"quant_method": "fp8", "weight_block_size": block}
    with pytest.raises(UnsupportedCheckpoint, match="scales of the shape"):
        load(tmp_path / "file", tensors, settings)
    tensors["x.weight_scale_inv"] = torch.ones(32, 96) if block == [1, 1] else torch.ones(1, 1)
    load(tmp_path / "file", tensors, settings)


@pytest.mark.parametrize(
    ("name", "scales"), [("fp8", "weight_scale_inv"), ("bnb8", "SCB"), ("integers", "weight_scale")]
)
def test_values_without_scales(name: str, scales: str, tmp_path: Path) -> None:
    tensors = written(name)
    del tensors[f"x.{scales}"]
    with pytest.raises(UnsupportedCheckpoint, match=r"x\.weight is of type .*scales"):
        load(tmp_path / "file", tensors, FORMATS[name][1])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x._weight_act_pre_scale": torch.ones(96)}, "wants its input scaled"),
        ({"x._weight_qdata": torch.zeros((32, 12), dtype=torch.int32)}, r"I32 .*int4 \(plain"),
        ({"x._weight_qdata": torch.zeros((2, 32, 48), dtype=torch.int8)}, r"I8 of the shape \[2, 32, 48\]"),
        (
            {"y._weight_scale_and_zero": torch.ones(3, 32, 2)},
            "y._weight_scale_and_zero is of a layout that is not known",
        ),
        ({"y._gate_up_proj_qdata": torch.ones(3)}, "y._gate_up_proj_qdata is of a layout that is not known"),
        ({"x._weight_scale": torch.ones(32, 3)}, "contradict each other"),
        ({"x.weight": torch.ones(32, 96)}, "both quantized and plain"),
    ],
)
def test_layouts_of_torchao_that_are_not_known(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=message) as caught:
        load(tmp_path / "file", {**written("torchao int4"), **changed}, FORMATS["torchao int4"][1])
    assert "\n" not in str(caught.value)


def test_all_scales_of_mxfp4(tmp_path: Path) -> None:
    blocks = torch.full((1, 5, 51, 16), 0x12, dtype=torch.uint8)  # 1, then a half
    tensors = {"x_blocks": blocks, "x_scales": torch.arange(255, dtype=torch.uint8).view(1, 5, 51)}
    save_file(tensors, tmp_path / "file")
    config = {"quantization_config": {"quant_method": "mxfp4"}}
    found = understood(read_safetensors_header(tmp_path / "file").tensors, config, "it")
    read = stored_tensors(found, torch.float32)["x"].read()
    powers = 2.0 ** torch.arange(-127.0, 128.0, dtype=torch.float64)
    values = read.dequantize()[0].t().reshape(255, 32).double()
    assert torch.equal(values[:, 0], powers) and torch.equal(values[:, 1], powers / 2)
    tensors["x_scales"][0, 3, 3] = 255
    with pytest.raises(UnsupportedCheckpoint, match="no number"):
        load(tmp_path / "file", tensors, FORMATS["mxfp4"][1])


def test_four_bits_that_are_more(tmp_path: Path) -> None:
    tensors = written("torchao intx")
    tensors["x._weight_qdata"][3, 5] = 8
    with pytest.raises(UnsupportedCheckpoint, match="no 4-bit numbers"):
        load(tmp_path / "file", tensors, FORMATS["torchao intx"][1])


@given(
    told=st.recursive(
        st.none() | st.booleans() | st.integers(-2, 9) | st.sampled_from(["int4", "PerRow", "SYMMETRIC"]),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(
                st.sampled_from(["default", "_data", "_type", "granularity", "weight_dtype", "mapping_type"]), inner
            )
        ),
        max_leaves=8,
    )
)
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_absurd_settings_of_torchao(tmp_path: Path, told: Any) -> None:
    try:
        load(tmp_path / "file", written("torchao intx"), {"quant_method": "torchao", "quant_type": told})
    except UnsupportedCheckpoint as error:
        assert "\n" not in str(error)


def test_scales_that_are_no_numbers(tmp_path: Path) -> None:
    tensors = written("bnb8")
    tensors["x.SCB"][3] = math.nan
    with pytest.raises(UnsupportedCheckpoint, match="no number"):
        load(tmp_path / "file", tensors, FORMATS["bnb8"][1])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "hqq"}, "'hqq', which cannot be loaded; take the plain one, or one of awq, bitsandbytes"),
        ({"quant_method": "aqlm", "bits": 2}, "'aqlm'"),
        ({"quant_method": ["gptq"]}, "cannot be loaded"),
        ({"bits": 4}, "None"),
        ("gptq", "no table"),
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "only gptq and gptq_v2"),
        ({"quant_method": "awq", "version": "gemv"}, "only gemm"),
        ({"quant_method": "awq", "bits": 3}, "only 4"),
        ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, "nvfp4-pack-quantized"),
        ({"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsely"),
        ({"quant_method": "fp8", "weight_block_size": [128, 0]}, "rows, columns"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "only FP8"),
        ({"quant_method": "bitsandbytes", "llm_int8_threshold": "6"}, "is no threshold"),
        ({"quant_method": "bitsandbytes", "llm_int8_threshold": math.nan}, "is no threshold"),
    ],
)
def test_what_is_not_known_is_refused_before_reading(config: Any, message: str) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=message) as caught:
        understood({}, {"quantization_config": config}, "it")
    assert "\n" not in str(caught.value)


def test_methods_by_name() -> None:
    assert method_of({}, "it") is None
    assert method_of({"quantization_config": {}}, "it") is None
    assert {method_of({"quantization_config": {"quant_method": name}}, "it") for name in METHODS} == set(METHODS)
    assert method_of({"quantization_config": {"load_in_8bit": True}}, "it") == "bitsandbytes"
    with pytest.raises(UnsupportedCheckpoint, match="quantized gpt2 models"):
        method_of({"model_type": "gpt2", "quantization_config": {"quant_method": "gptq"}}, "it")
