"""GGUF files whose blocks stay packed, against the same files decoded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import kamado
from gguf_files import checkpoint_of
from gguf_writer import gguf_tensors, write_gguf
from kamado.quant import parse_quant
from kamado.weights.quantized.tensor import QuantTensor
from kamado_models.language.config import as_stored
from kamado_models.language.family import configured
from kamado_models.language.loading import read_model
from kamado_models.language.shape import weight_bytes

from .test_architectures import CASES, reference_model

STORED = parse_quant("stored")
# Between them: rows moved for the rotation of neighbours, (q, k, v) together in two ways, matrices turned around,
# stacked experts, rows cut into several matrices, and tensors that are put together.
WRITTEN = {
    "llama": "Q4_0",
    "llama_tied": "Q8_0",
    "mixtral": "Q4_1",
    "falcon": "Q5_0",
    "falcon_multi_query": "Q4_0",
    "bloom": "Q8_0",
    "gpt_neox": "Q5_1",
    "gpt2": "Q8_0",
    "phi": "Q8_0",
    "phi3": "Q4_1",
    "gemma3": "Q4_0",
    "deepseek_v2": "Q8_0",
    "mamba": "Q8_0",
}


@pytest.mark.parametrize("name", WRITTEN)
def test_the_same_weights_and_logits(name: str, tmp_path: Path) -> None:
    arch, metadata = CASES[name]
    reference, tensors = reference_model(name, tmp_path)
    config = reference.config
    file = write_gguf(
        tmp_path / "model.gguf", arch, gguf_tensors(arch, tensors, config), metadata(config), blocks=WRITTEN[name]
    )
    checkpoint = configured(checkpoint_of(file))
    plain, _ = read_model(checkpoint, dtype="float32", device="cpu")
    model, report = read_model(checkpoint, dtype="float32", device="cpu", quant=STORED)

    expected = dict(plain.named_parameters())
    packed = 0
    for key, parameter in model.named_parameters():
        weight = parameter.data
        if isinstance(weight, QuantTensor):
            packed += 1
            weight = weight.dequantize()
        assert torch.allclose(weight, expected[key], rtol=1e-5, atol=1e-6), key
    assert packed > 1
    ids = torch.tensor([[3, 17, 99, 250, 8, 41, 77, 5]])
    with torch.no_grad():
        assert (model(ids).logits - plain(ids).logits).abs().max() < 1e-4
    planned = weight_bytes(as_stored(checkpoint, STORED), "float32", STORED)
    assert report.weight_bytes == pytest.approx(planned, rel=0.01)
    assert planned < weight_bytes(checkpoint, "float32")


def test_rows_that_are_no_whole_heads(tmp_path: Path) -> None:
    arch, metadata = CASES["llama"]
    reference, tensors = reference_model("llama", tmp_path)
    file = write_gguf(
        tmp_path / "model.gguf",
        arch,
        gguf_tensors(arch, tensors, reference.config),
        metadata(reference.config),
        blocks="Q8_0",
    )
    checkpoint = checkpoint_of(file)
    name = "blk.0.attn_q.weight"
    entry = checkpoint.tensors[name]
    cut = replace(
        entry, shape=(entry.shape[0] - 3, entry.shape[1]), nbytes=entry.nbytes // entry.shape[0] * (entry.shape[0] - 3)
    )
    broken = configured(replace(checkpoint, tensors={**checkpoint.tensors, name: cut}))
    with pytest.raises(kamado.UnsupportedCheckpoint, match="no whole heads"):
        read_model(broken, dtype="float32", device="cpu", quant=STORED)


@pytest.mark.slow
def test_the_real_file(smollm2: Path) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]

    def answer(quant: str) -> tuple[Any, int]:
        with kamado.Runtime(device="cpu", memory="2GiB") as runtime:
            model = runtime.load(smollm2, quant=quant, kv_tokens=512)
            tokens = model.generate(messages=messages, max_tokens=16, temperature=0.0).tokens
            return tokens, model.plan.weight_bytes

    (plain, most), (stored, least) = answer("none"), answer("stored")
    assert stored == plain
    assert least < most / 3
