"""Mixtures of experts with quantized weights, against transformers' own model whose weights were rounded by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import quantized_files as files
import tiny
from gguf_files import checkpoint_of
from gguf_writer import gguf_tensors, write_gguf
from kamado.checkpoint.inspect import inspect
from kamado.quant import Quant, parse_quant, stack_shape
from kamado.weights.quantized.forms import quantize
from kamado.weights.quantized.tensor import QuantTensor
from kamado_models.language.config import as_stored
from kamado_models.language.family import configured
from kamado_models.language.loading import read_model
from kamado_models.language.shape import stacks_turned, weight_bytes

from .gguf.test_architectures import CASES, reference_model

# Importing the modelling code sets an environment variable of torch's compiler: not within a test.
transformers.MixtralForCausalLM  # noqa: B018

MIXTURES = sorted(
    name
    for name, spec in tiny.ARCHITECTURES.items()
    if any(key in spec.config for key in ("num_experts", "num_local_experts", "n_routed_experts"))
)
FORMS: dict[str, Quant] = {
    "int8": Quant(scheme="int8"),
    "nf4": Quant(scheme="nf4"),
    "fp8": Quant(scheme="fp8"),
    "mixed": Quant(scheme="int4", overrides=(("*up_proj*", "nf4"), ("*.experts.1.*", "int8")), skip=("*.experts.2.*",)),
}
IDS = torch.tensor([[5, 6, 7, 9, 200, 33, 8, 41], [12, 4, 250, 99, 8, 1, 17, 3]])


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kamado.quant._MIN_VALUES", 64)


def round_by_hand(folder: Path, quant: Quant, *, turned: bool) -> None:
    """Each matrix of a file for itself, written again in full precision."""
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    for name, weight in tensors.items():
        turn = turned and weight.ndim == 3
        scheme = quant.scheme_for(name, stack_shape(weight.shape, turned=turn))
        if scheme is None:
            continue
        stack = weight if weight.ndim == 3 else weight.unsqueeze(0)
        stack = stack.mT if turn else stack
        rounded = torch.stack([quantize(each.contiguous(), scheme).dequantize(torch.float32) for each in stack])
        tensors[name] = (rounded.mT if turn else rounded).reshape(weight.shape).contiguous()
    save_file(tensors, file, metadata={"format": "pt"})


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return torch.as_tensor(model(IDS).logits)


@pytest.mark.parametrize("name", MIXTURES)
def test_every_mixture(name: str, tmp_path: Path) -> None:
    form = sorted(FORMS)[sum(name.encode()) % len(FORMS)]
    quant = FORMS[form]
    folder = tiny.build(name, tmp_path / name)
    checkpoint = configured(inspect(folder))
    model, report = read_model(checkpoint, dtype="float32", device="cpu", quant=quant)

    stacks = [weight.data for key, weight in model.named_parameters() if ".experts." in key and weight.ndim == 3]
    assert stacks and all(isinstance(stack, QuantTensor) for stack in stacks)
    planned = weight_bytes(as_stored(checkpoint), "float32", quant)
    assert report.weight_bytes == pytest.approx(planned, rel=0.01)
    assert planned < 0.45 * weight_bytes(checkpoint, "float32")
    found = logits(model)
    round_by_hand(folder, quant, turned=stacks_turned(checkpoint.config))
    torch.testing.assert_close(found, logits(tiny.Oracle(folder).model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_every_implementation_of_experts(name: str, implementation: str, tmp_path: Path) -> None:
    checkpoint = configured(inspect(tiny.build(name, tmp_path)))
    model, _ = read_model(checkpoint, dtype="float32", device="cpu", quant=FORMS["int8"])
    wanted = logits(model)
    model.set_experts_implementation(implementation)
    torch.testing.assert_close(logits(model), wanted, rtol=1e-4, atol=1e-4)


def test_no_class_of_the_library_has_its_experts_in_an_order_that_is_not_known() -> None:
    for name in MIXTURES:
        spec = tiny.ARCHITECTURES[name]
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(
                transformers.AutoConfig.for_model(spec.model_type, **spec.config)
            )
        hidden = model.config.get_text_config().hidden_size
        down = [weight for key, weight in model.named_parameters() if key.endswith("experts.down_proj")]
        turned = {tuple(weight.shape).index(hidden) == 2 for weight in down if weight.shape.count(hidden) == 1}
        assert turned == {stacks_turned({"model_type": spec.model_type})}, name


def test_gpt_oss_as_it_is_published(tmp_path: Path) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    folder = tiny.build("gpt_oss", tmp_path / "gpt_oss")
    (file,) = folder.glob("*.safetensors")
    stored, meant = {}, {}
    for name, weight in load_file(file).items():
        if weight.ndim != 3:
            stored[name] = meant[name] = weight
            continue
        tensors, matrix = files.mxfp4(weight.mT.numpy(), numpy.random.default_rng(0))
        stored |= {name + ending: tensor.contiguous() for ending, tensor in tensors.items()}
        meant[name] = torch.from_numpy(matrix.astype("float32")).contiguous()
        theirs = convert_moe_packed_tensors(tensors["_blocks"], tensors["_scales"], dtype=torch.float32)
        assert torch.equal(theirs, meant[name])
    save_file(meant, file, metadata={"format": "pt"})
    wanted = logits(tiny.Oracle(folder).model)
    save_file(stored, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "mxfp4"}}))

    checkpoint = configured(inspect(folder))
    for quant in (None, FORMS["int8"]):
        model, report = read_model(checkpoint, dtype="float32", device="cpu", quant=quant)
        assert report.weight_bytes == pytest.approx(weight_bytes(as_stored(checkpoint), "float32", quant), rel=0.01)
        for name, weight in meant.items():
            its = model.get_parameter(name).data
            if weight.ndim == 3:
                assert isinstance(its, QuantTensor) and (quant is not None or torch.equal(its.dequantize(), weight))
        if quant is None:
            torch.testing.assert_close(logits(model), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("quant", ["int8", "stored"])
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "deepseek_v2", "gpt_oss"])
def test_gguf_files(name: str, quant: str, tmp_path: Path) -> None:
    arch, metadata = CASES[name]
    reference, tensors = reference_model(name, tmp_path)
    written = gguf_tensors(arch, tensors, reference.config)
    file = write_gguf(tmp_path / "model.gguf", arch, written, metadata(reference.config), blocks="Q8_0")
    checkpoint = configured(checkpoint_of(file))
    form = parse_quant(quant)
    plain, _ = read_model(checkpoint, dtype="float32", device="cpu")
    model, report = read_model(checkpoint, dtype="float32", device="cpu", quant=form)
    planned = weight_bytes(as_stored(checkpoint, form), "float32", form)
    assert report.weight_bytes == pytest.approx(planned, rel=0.01)
    stacks = [weight.data for key, weight in model.named_parameters() if ".experts." in key and weight.ndim == 3]
    # gpt-oss's files have gate and up apart, and the model has them alternating.
    kept = quant != "stored" or name != "gpt_oss"
    assert stacks and all(isinstance(stack, QuantTensor) == kept for stack in stacks)
    with torch.no_grad():
        for key, weight in plain.named_parameters():
            its = model.get_parameter(key).data
            weight.copy_(its.dequantize() if isinstance(its, QuantTensor) else its)
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-4, atol=1e-4)


def test_text_is_the_same_alone_and_in_a_batch(tmp_path: Path) -> None:
    import kamado

    folder = tiny.build("olmoe", tmp_path)
    prompts = ([3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8], [5] * 11)
    requests = [{"prompt_tokens": each, "max_tokens": 8, "temperature": 0, "ignore_eos": True} for each in prompts]
    with kamado.Runtime(device="cpu", memory="2GiB") as runtime:
        model = runtime.load(folder, quant="int8", dtype="float32")
        alone = [model.generate(**request).tokens for request in requests]
        assert [result.tokens for result in model.generate_many(requests)] == alone
        held = runtime.ledger.snapshot()["cpu"][model.owner]["weights"]
    assert model.plan.weight_bytes == pytest.approx(held, rel=0.01)
