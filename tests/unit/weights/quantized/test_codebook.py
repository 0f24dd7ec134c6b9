"""nf4 and fp4: bitsandbytes' formats, against bitsandbytes itself where that is installed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from kamado.weights.quantized import bitsandbytes_gpu
from kamado.weights.quantized.bitsandbytes_import import import_bitsandbytes
from kamado.weights.quantized.codebook import Codebook, quantize_codebook, table_of

KINDS = ["nf4", "fp4"]
CPU = torch.device("cpu")


def awkward(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Zeros, tiny and large blocks, one value alone, and values in the middle between two of the table."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn((32, 256), generator=generator) * 0.1
    weight[3, :64] = 0
    weight[4] *= 1e-6
    weight[5] *= 1e4
    weight[6, :64] = 2.0
    weight[7, ::2] = 0
    weight[8] = torch.linspace(-1, 1, 256)
    return weight.to(dtype)


@pytest.fixture(scope="module")
def functions() -> Any:
    if not import_bitsandbytes():
        pytest.skip("bitsandbytes is not installed")
    from bitsandbytes import functional as found

    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_bit_for_bit_what_bitsandbytes_makes(functions: Any, kind: str, dtype: torch.dtype) -> None:
    weight = awkward(dtype)
    codes, state = functions.quantize_4bit(weight, blocksize=64, quant_type=kind)
    packed = quantize_codebook(weight, kind=kind, block_size=64)
    assert torch.equal(packed.parts["values"].view(-1), codes.view(-1))
    assert torch.equal(packed.parts["scale"].view(-1), state.absmax)
    assert torch.equal(packed.parts["table"], state.code)
    assert torch.equal(packed.dequantize(dtype), functions.dequantize_4bit(codes, state))


@given(
    st.sampled_from(KINDS),
    st.integers(1, 4),
    st.sampled_from([8, 64, 128]),
    st.integers(-20, 20),
    st.integers(0, 2**31),
)
def test_the_nearest_number_is_taken(kind: str, rows: int, block: int, exponent: int, seed: int) -> None:
    weight = torch.randn((rows, 2 * block), generator=torch.Generator().manual_seed(seed)) * 10.0**exponent
    packed = quantize_codebook(weight, kind=kind, block_size=block)
    blocks = weight.view(-1, block)
    largest = blocks.abs().amax(-1, keepdim=True)
    nearest = (blocks.unsqueeze(-1) - largest.unsqueeze(-1) * table_of(kind, CPU)).abs().amin(-1)
    off = (packed.dequantize(torch.float32).view(-1, block) - blocks).abs()
    assert bool((off <= nearest + 1e-6 * largest).all())


@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_themselves_come_back(kind: str) -> None:
    weight = (table_of(kind, CPU) * 0.75).repeat(3, 4)
    packed = quantize_codebook(weight, kind=kind, block_size=64)
    assert torch.equal(packed.dequantize(torch.float32), weight)
    assert packed.block_size == 64 and packed.nbytes == 3 * 32 + 3 * 4 + 64


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_is_not_hidden(kind: str, bad: float) -> None:
    weight = torch.ones(2, 128)
    weight[1, 70] = bad
    found = quantize_codebook(weight, kind=kind, block_size=64).dequantize(torch.float32)
    assert not bool(found[1, 64:].isfinite().any())
    assert bool((found[0] == 1).all()) and bool((found[1, :64] == 1).all())


def test_tables_of_others() -> None:
    """A stored table: the even column is the high half of a byte."""
    table = torch.arange(16, dtype=torch.float32)
    values = torch.tensor([[0x01, 0x2F], [0xF0, 0x11]], dtype=torch.uint8)
    packed = Codebook((2, 4), {"values": values, "scale": torch.tensor([[1.0, 2.0], [0.5, 1.0]]), "table": table})
    wanted = torch.tensor([[0.0, 1.0, 4.0, 30.0], [7.5, 0.0, 1.0, 1.0]])
    assert torch.equal(packed.dequantize(torch.float32), wanted)
    x = torch.randn(3, 4)
    torch.testing.assert_close(packed.linear(x, torch.ones(2)), functional.linear(x, wanted, torch.ones(2)))
    assert torch.equal(packed.like(packed.shape, packed.parts).dequantize(torch.float32), wanted)


def test_matrices_share_one_table() -> None:
    first, second = (quantize_codebook(torch.randn(2, 64), kind="nf4", block_size=64) for _ in range(2))
    assert first.parts["table"].data_ptr() == second.parts["table"].data_ptr()


def test_nothing_is_imported_for_a_cpu() -> None:
    assert not bitsandbytes_gpu.can_multiply(CPU, torch.float32, "nf4")
