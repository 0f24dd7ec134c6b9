"""Quantized weights on a CUDA device: its kernels compute what the restored matrix does, whoever shares the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

import kamado
import tiny
from kamado.quant import SCHEMES
from kamado.weights.quantized import bitsandbytes_gpu, dynamic, floats
from kamado.weights.quantized.codebook import quantize_codebook
from kamado.weights.quantized.floats import float8_values, quantize_floats, round_rows
from kamado.weights.quantized.forms import quantize

CUDA = torch.device("cuda")
HALVES = [torch.float32, torch.bfloat16, torch.float16]
ROWS = [1, 2, 16, 17, 33, 300]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(CUDA)


def can_floats() -> bool:
    return torch.cuda.get_device_capability() >= (8, 9)


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_the_gpu_rounds_as_the_cpu_does(name: str) -> None:
    weight = drawn(96, 256)
    here, there = quantize(weight.cpu(), SCHEMES[name]), quantize(weight, SCHEMES[name])
    off = (here.dequantize(torch.float32) - there.dequantize(torch.float32).cpu()).abs()
    assert off.max() <= 0.05 * float(weight.abs().max()) and (off > 1e-5).float().mean() < 1e-3
    for dtype in HALVES:
        again = here.to(CUDA).dequantize(dtype).cpu().float()
        torch.testing.assert_close(again, here.dequantize(torch.float32), rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("rows", ROWS)
def test_integer_products_are_exact(rows: int) -> None:
    assert dynamic.can_multiply(CUDA), "every GPU from capability 7.5 on has them"
    generator = torch.Generator().manual_seed(0)
    for out, columns in ((48, 256), (47, 256), (48, 250), (8, 4096)):
        left = torch.randint(-127, 128, (rows, columns), generator=generator, dtype=torch.int8)
        right = torch.randint(-127, 128, (out, columns), generator=generator, dtype=torch.int8)
        found = dynamic.integer_product(left.to(CUDA), right.to(CUDA)).cpu()
        assert torch.equal(found, left.int() @ right.int().t())


@pytest.mark.parametrize("rows", ROWS)
def test_float8_products(rows: int) -> None:
    if not can_floats():
        pytest.skip("this GPU does not compute in 8-bit floats")
    assert floats.can_multiply(CUDA)
    weight = quantize_floats(drawn(64, 128), group_size=0, dynamic=True)
    x = drawn(rows, 128, seed=1)
    rounded, scale = round_rows(x)
    wanted = functional.linear(rounded.float(), float8_values(weight.parts["values"]))
    wanted *= scale * weight.parts["scale"].view(1, -1)
    for dtype in HALVES:
        torch.testing.assert_close(weight.linear(x.to(dtype)).float(), wanted, rtol=0.05, atol=0.3)
    together = weight.linear(x)
    for row in (0, rows - 1):
        torch.testing.assert_close(weight.linear(x[row : row + 1])[0], together[row], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_bitsandbytes_products(kind: str, dtype: torch.dtype) -> None:
    assert bitsandbytes_gpu.can_multiply(CUDA, dtype, kind), "it is one of the project's dependencies"
    weight, bias = quantize_codebook(drawn(192, 256), kind=kind, block_size=64), drawn(192, seed=2).to(dtype)
    for rows in ROWS:
        x = drawn(rows, 256, seed=1).to(dtype)
        wanted = functional.linear(x.float(), weight.dequantize(torch.float32), bias.float())
        torch.testing.assert_close(weight.linear(x, bias).float(), wanted, rtol=0.02, atol=0.3)


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_text(scheme: str, tmp_path: Path) -> None:
    if scheme == "fp8-dynamic" and not can_floats():
        pytest.skip("this GPU does not compute in 8-bit floats")
    folder = tiny.build("llama", tmp_path / "llama", hidden_size=128, intermediate_size=256)
    requests: list[dict[str, Any]] = [
        {"prompt_tokens": [3, 1, 4, 1, 5][: 3 + index], "max_tokens": 8, "temperature": 0, "ignore_eos": True}
        for index in range(3)
    ]
    with kamado.Runtime(device="cuda", memory="2GiB") as runtime:
        model = runtime.load(folder, quant=scheme, dtype="float32")
        alone = [model.generate(**request).tokens for request in requests]
        assert [result.tokens for result in model.generate_many(requests)] == alone
        held = next(iter(runtime.ledger.snapshot().values()))[model.owner]["weights"]
        assert model.plan.weight_bytes == pytest.approx(held, rel=0.01)
        model.unload()
        assert runtime.stats()["held_bytes"] == 0
