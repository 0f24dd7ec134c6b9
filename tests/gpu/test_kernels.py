"""Kernels for GPUs beside the same in torch's operations, in the sizes of real models."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from kamado.kernels.gpu import attention, has_kernels, layers
from kamado.weights.quantized import few_rows
from kamado.weights.quantized.floats import quantize_floats
from kamado.weights.quantized.integers import quantize_integers
from kamado.weights.quantized.packed import Packed

CUDA = torch.device("cuda:0")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def _device() -> None:
    if not has_kernels(CUDA):
        pytest.skip("this GPU is older than the kernels")


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(CUDA, dtype)


def close(found: Tensor, wanted: Tensor) -> None:
    assert found.dtype == wanted.dtype and found.shape == wanted.shape
    limit = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 2e-3}[found.dtype]
    assert (found.double() - wanted.double()).norm() <= limit * wanted.double().norm()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "heads", "shared", "dim", "pages", "window", "softcap", "sinks"),
    [
        (1, 32, 8, 128, 64, None, None, False),
        (64, 32, 8, 128, 16, None, None, False),
        (3, 16, 16, 64, 512, None, None, False),
        (5, 8, 4, 256, 100, 700, 50.0, False),
        (2, 64, 8, 64, 40, 128, None, True),
        (4, 9, 3, 80, 7, None, None, False),
    ],
)
def test_attention(rows: int, heads: int, shared: int, dim: int, pages: int, window: int | None,
                   softcap: float | None, sinks: bool, dtype: torch.dtype) -> None:  # fmt: skip
    keys = drawn(rows * pages, 16, shared, dim, seed=1, dtype=dtype)
    values = drawn(rows * pages, 16, shared, dim, seed=2, dtype=dtype)
    tables = torch.randperm(rows * pages, generator=torch.Generator().manual_seed(3)).view(rows, pages).to(CUDA)
    lengths = torch.tensor([1 + (pages * 16 - 1) * row // max(rows - 1, 1) for row in range(rows)], device=CUDA)
    query = drawn(heads, rows, dim, seed=4, dtype=dtype).transpose(0, 1)
    sink = drawn(heads, seed=5, dtype=dtype) if sinks else None
    found = attention.paged_attention(
        query, keys, values, tables, lengths, scale=dim**-0.5, window=window, softcap=softcap, sinks=sink
    )
    for row, length in enumerate(lengths.tolist()):
        first = max(length - window, 0) if window else 0
        key = keys[tables[row]].flatten(0, 1)[first:length].double().repeat_interleave(heads // shared, 1)
        value = values[tables[row]].flatten(0, 1)[first:length].double().repeat_interleave(heads // shared, 1)
        scores = torch.einsum("hd,khd->hk", query[row].double(), key) * dim**-0.5
        scores = torch.tanh(scores / softcap) * softcap if softcap else scores
        scores = torch.cat([scores, sink.double()[:, None]], 1) if sink is not None else scores
        weights = scores.softmax(1)[:, : length - first]
        close(found[row], torch.einsum("hk,khd->hd", weights, value).to(dtype))


@pytest.mark.parametrize("rows", [1, 2, 16, 17, 64])
@pytest.mark.parametrize(("form", "group"), [("int8", 32), ("int4", 32), ("int4", 128), ("int8", 0), ("fp8", 0)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_of_few_rows(form: str, group: int, rows: int, dtype: torch.dtype) -> None:
    if form == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU does not know 8-bit floats")
    for out, columns in ((4096, 4096), (1000, 1152), (14336, 512)):
        weight, bias = drawn(out, columns), drawn(out, seed=2).to(dtype)
        if form == "fp8":
            packed: Packed = quantize_floats(weight, group_size=group)
        else:
            packed = quantize_integers(weight, bits=int(form[3]), group_size=group, scale_dtype=torch.float16)
        parts = packed.parts
        x = drawn(rows, columns, seed=1, dtype=dtype)
        found = few_rows.product(x, parts["values"], parts["scale"], bias)
        assert found is not None, "there is a kernel for it"
        wanted = torch.nn.functional.linear(x.double(), packed.dequantize(dtype).double(), bias.double())
        close(found, wanted.to(dtype))
        assert torch.equal(packed.linear(x, bias), found)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_lies_between_products(dtype: torch.dtype) -> None:
    x, residual, weight = drawn(65, 4096, dtype=dtype), drawn(65, 4096, seed=1, dtype=dtype), drawn(4096, dtype=dtype)
    total, normed = layers.add_norm(x, residual, weight, 1e-5)
    assert torch.equal(total, x + residual)
    full = (x + residual).float()
    close(normed, weight * (full * torch.rsqrt(full.pow(2).mean(-1, keepdim=True) + 1e-5)).to(dtype))
    gate, up = drawn(65, 2 * 14336, dtype=dtype).chunk(2, 1)
    close(layers.silu_times(gate, up), torch.nn.functional.silu(gate) * up)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotation_and_writing(dtype: torch.dtype) -> None:
    tokens, heads, shared, dim = 33, 32, 8, 128
    query, key, value = drawn(tokens, (heads + 2 * shared) * dim, dtype=dtype).split(
        [heads * dim, shared * dim, shared * dim], 1
    )
    angle = drawn(tokens, dim, seed=1)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    zeros = torch.zeros(2, 8, 16, shared, dim, dtype=dtype, device=CUDA)
    pages = zeros[0], zeros[1]
    slots = torch.randperm(128, generator=torch.Generator().manual_seed(0))[:tokens].to(CUDA)
    found = layers.turn_and_write(query, key, value, (cos, sin), slots, pages)

    def turned(x: Tensor) -> Tensor:
        x = x.reshape(tokens, -1, dim).float()
        low, high = x.chunk(2, -1)
        return (x * cos[:, None].float() + torch.cat([-high, low], -1) * sin[:, None].float()).to(dtype)

    close(found, turned(query))
    close(pages[0].flatten(0, 1)[slots], turned(key))
    assert torch.equal(pages[1].flatten(0, 1)[slots], value.reshape(tokens, shared, dim))
