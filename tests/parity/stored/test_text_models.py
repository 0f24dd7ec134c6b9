"""Language models that are quantized already, against the same models with the weights that theirs stand for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import quantized_files as files
import tiny
from kamado.checkpoint.inspect import inspect
from kamado.memory.plan import PlanOptions
from kamado.quant import parse_quant
from kamado.weights.quantized.tensor import QuantTensor
from kamado_models.language.config import as_stored
from kamado_models.language.family import FAMILY, configured
from kamado_models.language.loading import read_model
from kamado_models.language.shape import weight_bytes

# Importing the modelling code sets an environment variable of torch's compiler: not within a test.
transformers.LlamaForCausalLM  # noqa: B018

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
BNB4 = {"quant_method": "bitsandbytes", "load_in_4bit": True}


PER_ROW = {"_type": "PerRow", "_version": 1, "_data": {"dim": -1}}
EVENLY = {"_type": "MappingType", "_data": "SYMMETRIC"}
OF_4_BITS = {"weight_dtype": {"_type": "torch.dtype", "_data": "int4"}}
TOKENS = {"num_bits": 8, "strategy": "token", "dynamic": True, "symmetric": True}


def compressed(layout: str, activations: Any = None, **group: Any) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": group, "input_activations": activations}},
        "ignore": ["lm_head"],
    }


FORMATS: dict[str, tuple[files.Writer, dict[str, Any]]] = {
    "gptq": (files.gptq(), GPTQ),
    "gptq 8 bits, one group": (files.gptq(8, -1), GPTQ | {"bits": 8, "group_size": -1}),
    "gptq asymmetric": (files.gptq(symmetric=False), GPTQ | {"sym": False}),
    "gptq asymmetric, act-order": (
        files.gptq(symmetric=False, act_order=True),
        GPTQ | {"sym": False, "desc_act": True},
    ),
    "gptq 8 bits, act-order": (files.gptq(8, act_order=True), GPTQ | {"bits": 8, "desc_act": True}),
    "gptq_v2": (
        files.gptq(symmetric=False, second=True),
        GPTQ | {"sym": False, "checkpoint_format": "gptq_v2"},
    ),
    "awq": (files.awq(), AWQ),
    "pack-quantized": (files.packed(), compressed("pack-quantized")),
    "pack-quantized 8 bits, rows": (files.packed(8, -1), compressed("pack-quantized")),
    "pack-quantized asymmetric": (files.packed(symmetric=False), compressed("pack-quantized")),
    "pack-quantized act-order": (files.packed(act_order=True), compressed("pack-quantized")),
    "int-quantized": (files.integers(), compressed("int-quantized")),
    "int-quantized groups": (files.integers("group", symmetric=False), compressed("int-quantized")),
    "naive-quantized": (files.integers("tensor"), compressed("naive-quantized")),
    "float-quantized": (files.float8("row", "weight_scale"), compressed("float-quantized")),
    "float-quantized blocks": (
        files.float8((32, 16), "weight_scale"),
        compressed("float-quantized", strategy="block", block_structure=[32, 16]),
    ),
    "fp8": (files.float8((24, 40)), {"quant_method": "fp8", "weight_block_size": [24, 40]}),
    "fp8 of one scale": (files.float8("tensor"), {"quant_method": "fp8", "activation_scheme": "static"}),
    "fbgemm_fp8": (files.float8("row", "weight_scale"), {"quant_method": "fbgemm_fp8"}),
    "modelopt": (files.float8("tensor", "weight_scale"), {"quant_method": "modelopt", "quant_algo": "FP8"}),
    "bitsandbytes nf4": (files.bnb4(), BNB4),
    "bitsandbytes nf4, in bfloat16": (
        files.bnb4(storage=torch.bfloat16),
        BNB4 | {"bnb_4bit_quant_storage": "bfloat16"},
    ),
    "bitsandbytes fp4": (files.bnb4("fp4"), BNB4),
    "bitsandbytes nf4, nested": (files.bnb4(nested=True), BNB4),
    "bitsandbytes 8 bits": (files.bnb8, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    "bitsandbytes 8 bits, another threshold": (
        files.bnb8,
        {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": 1.5},
    ),
    "int-quantized, activations too": (files.integers(), compressed("int-quantized", TOKENS | {"type": "int"})),
    "float-quantized, activations too": (
        files.float8("row", "weight_scale"),
        compressed("float-quantized", TOKENS | {"type": "float"}),
    ),
    "torchao int8": (files.torchao_integers(), files.torchao_config("Int8WeightOnlyConfig", granularity=PER_ROW)),
    "torchao int8, groups": (files.torchao_integers(8, 32), files.torchao_config("Int8WeightOnlyConfig")),
    "torchao int8, activations too": (
        files.torchao_integers(),
        files.torchao_config("Int8DynamicActivationInt8WeightConfig", granularity=PER_ROW, act_mapping_type=EVENLY),
    ),
    "torchao intx, 4 bits": (files.torchao_integers(4, 32), files.torchao_config("IntxWeightOnlyConfig", **OF_4_BITS)),
    "torchao intx, 4 bits, asymmetric": (
        files.torchao_integers(4, 32, symmetric=False),
        files.torchao_config("IntxWeightOnlyConfig", **OF_4_BITS, mapping_type={"_data": "ASYMMETRIC"}),
    ),
    "torchao int4": (files.torchao_int4(), files.torchao_config("Int4WeightOnlyConfig", group_size=32)),
    "torchao float8": (files.torchao_float8("row"), files.torchao_config("Float8WeightOnlyConfig")),
    "torchao float8 of one scale": (files.torchao_float8("tensor"), files.torchao_config("Float8WeightOnlyConfig")),
    "torchao float8, activations too": (
        files.torchao_float8("row"),
        files.torchao_config("Float8DynamicActivationFloat8WeightConfig", granularity=[PER_ROW, PER_ROW]),
    ),
}
ROUNDING: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "bitsandbytes 8 bits": lambda x: to_integers(x, 6.0),
    "bitsandbytes 8 bits, another threshold": lambda x: to_integers(x, 1.5),
    "int-quantized, activations too": lambda x: to_integers(x, float("inf")),
    "float-quantized, activations too": lambda x: to_floats(x),
    "torchao int8, activations too": lambda x: to_integers(x, float("inf")),
    "torchao float8, activations too": lambda x: to_floats(x),
}
"""What the method does to each row of the activations of its layers."""


def to_integers(x: torch.Tensor, outlier: float) -> torch.Tensor:
    usual = torch.where(x.abs() < outlier, x, 0.0)
    scale = usual.abs().amax(-1, keepdim=True) / 127
    return torch.where(x.abs() < outlier, (usual / scale).round() * scale, x)


def to_floats(x: torch.Tensor) -> torch.Tensor:
    scale = x.abs().amax(-1, keepdim=True) / 448
    return (x / scale).to(torch.float8_e4m3fn).float() * scale


@pytest.mark.parametrize("label", FORMATS)
def test_logits_and_bytes(label: str, tmp_path: Path) -> None:
    write, config = FORMATS[label]
    folder = tiny.build("llama", tmp_path)
    meant = files.quantize_folder(folder, write, config)
    model, report = read_model(inspect(folder), dtype="float32", device="cpu")
    plain = transformers.LlamaForCausalLM.from_pretrained(None, config=_plain_config(folder), state_dict=meant).eval()

    kept = [name for name, parameter in model.named_parameters() if isinstance(parameter.data, QuantTensor)]
    assert len(kept) == 7 * model.config.num_hidden_layers
    for name in kept:
        got, expected = model.get_parameter(name).data.dequantize(), meant[name]
        assert (got - expected).abs().max() <= 1e-6 * expected.abs().max(), name
    ids = torch.tensor([[5, 6, 7, 9, 200, 33], [12, 4, 250, 99, 8, 1]])
    if label in ROUNDING:
        for name in kept:
            layer = plain.get_submodule(name.removesuffix(".weight"))
            layer.register_forward_pre_hook(lambda _, given: ROUNDING[label](given[0]))
    with torch.no_grad():
        assert (model(ids).logits - plain(ids).logits).abs().max() < 1e-4

    checkpoint = configured(inspect(folder))
    planned = weight_bytes(as_stored(checkpoint), "float32")
    assert report.weight_bytes == pytest.approx(planned, rel=0.01)
    assert FAMILY.describe(checkpoint)["parameters"] == sum(tensor.numel() for tensor in meant.values())


def _plain_config(folder: Path) -> Any:
    config = transformers.AutoConfig.from_pretrained(folder)
    del config.quantization_config
    return config


def test_blocks_that_go_over_rows_are_read_in_full_precision(tmp_path: Path) -> None:
    folder = tiny.build("llama", tmp_path)
    meant = files.quantize_folder(folder, files.bnb4(block=64), BNB4)  # of down_proj's 96 columns
    model, report = read_model(inspect(folder), dtype="float32", device="cpu")
    for name, parameter in model.named_parameters():
        whole = "down_proj" not in name and "_proj" in name
        assert isinstance(parameter.data, QuantTensor) == whole
        got = parameter.data.dequantize() if whole else parameter.data
        assert torch.allclose(got, meant[name], atol=1e-6)
    planned = weight_bytes(as_stored(configured(inspect(folder))), "float32")
    assert report.weight_bytes == pytest.approx(planned, rel=0.01)


@pytest.mark.parametrize("name", ["gptq", "gptq asymmetric, act-order", "fp8", "bitsandbytes nf4"])
def test_experts_stay_as_they_are(name: str, tmp_path: Path) -> None:
    write, config = FORMATS[name]
    folder = tiny.build("mixtral", tmp_path)
    meant = files.quantize_folder(folder, write, config, of=".experts.")
    checkpoint = configured(inspect(folder))
    model, report = read_model(inspect(folder), dtype="float32", device="cpu")
    plain = transformers.MixtralForCausalLM.from_pretrained(None, config=_plain_config(folder), state_dict=meant).eval()
    ids = torch.tensor([[5, 6, 7, 9, 200, 33]])
    with torch.no_grad():
        assert (model(ids).logits - plain(ids).logits).abs().max() < 1e-4
    for name, parameter in model.named_parameters():
        assert isinstance(parameter.data, QuantTensor) == (".experts." in name)
    planned = weight_bytes(as_stored(checkpoint), "float32")
    assert report.weight_bytes == pytest.approx(planned, rel=0.01)
    assert planned < 0.6 * 4 * sum(tensor.numel() for tensor in meant.values())


def test_another_form_is_made_of_the_weights_that_are_meant(tmp_path: Path) -> None:
    folder = tiny.build("llama", tmp_path)
    meant = files.quantize_folder(folder, files.gptq(), GPTQ)
    quant = parse_quant("int8")
    model, report = read_model(inspect(folder), dtype="float32", device="cpu", quant=quant)
    name = "model.layers.0.mlp.up_proj.weight"
    got = model.get_parameter(name).data
    assert got.packed.bits == 8
    assert (got.dequantize() - meant[name]).abs().max() <= meant[name].abs().max() / 127
    checkpoint = as_stored(configured(inspect(folder)))
    assert report.weight_bytes == pytest.approx(weight_bytes(checkpoint, "float32", quant), rel=0.01)


def test_a_plan_and_a_load(tmp_path: Path) -> None:
    from kamado import Runtime

    folder = tiny.build("llama", tmp_path)
    files.quantize_folder(folder, files.awq(), AWQ)
    plan = FAMILY.plan(inspect(folder), PlanOptions(device="cpu", budget_bytes=1 << 30, good_dtypes=("float32",)))
    with Runtime(device="cpu") as runtime:
        model = runtime.load(folder, kv_tokens=256)
        assert model.plan.weight_bytes == plan.weight_bytes
        assert len(model.generate("a b", max_tokens=4, ignore_eos=True).text) > 0
