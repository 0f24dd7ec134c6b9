"""8-bit floats: how far they are off, and products with rounded activations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from kamado.weights.quantized.floats import LARGEST, DynamicFloats, Floats, can_multiply, quantize_floats
from kamado.weights.quantized.lookup import float8_values

CPU = torch.device("cpu")


def test_every_code_is_what_torch_says() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).view(16, 16)
    assert torch.equal(float8_values(codes), codes.float()) or torch.allclose(
        float8_values(codes), codes.float(), rtol=0, atol=0, equal_nan=True
    )
    assert torch.equal(float8_values(codes[:, 1:]).isnan(), codes[:, 1:].float().isnan())


@given(st.integers(1, 5), st.integers(1, 40), st.integers(-20, 20), st.integers(0, 2**31))
def test_no_value_is_farther_off_than_a_sixteenth(rows: int, columns: int, exponent: int, seed: int) -> None:
    """Three bits behind the leading one: half of the last is a sixteenth; or half of the smallest number, 2**-9."""
    weight = torch.randn((rows, columns), generator=torch.Generator().manual_seed(seed)) * 10.0**exponent
    found = quantize_floats(weight, group_size=0).dequantize(torch.float32)
    smallest = weight.abs().amax(-1, keepdim=True) / LARGEST * 2**-10
    assert bool(((found - weight).abs() <= torch.maximum(weight.abs() / 16, smallest) * 1.001).all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_is_not_hidden(bad: float) -> None:
    weight = torch.ones(3, 32)
    weight[1, 3], weight[2] = bad, 0.0
    found = quantize_floats(weight, group_size=0).dequantize(torch.float32)
    assert bool(found[1].isnan().all())
    torch.testing.assert_close(found[0], weight[0])
    assert bool((found[2] == 0).all())


def test_scales_of_groups() -> None:
    """As stored checkpoints have them: blocks of rows and columns, or one for all, repeated for each row."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn((6, 32), generator=generator).to(torch.float8_e4m3fn)
    blocks = torch.rand((2, 2), generator=generator)
    packed = Floats((6, 32), {"values": values, "scale": blocks.repeat_interleave(3, dim=0)})
    wanted = values.float() * blocks.repeat_interleave(3, 0).repeat_interleave(16, 1)
    assert torch.equal(packed.dequantize(torch.float32), wanted)
    assert torch.equal(packed.rows(slice(2, 5), torch.float32), wanted[2:5])
    assert torch.equal(packed.rows(torch.tensor([5, 0, 5]), torch.float32), wanted[[5, 0, 5]])
    x = torch.randn((4, 32), generator=generator)
    torch.testing.assert_close(packed.linear(x), functional.linear(x, wanted))
    assert packed.nbytes == 6 * 32 + 6 * 2 * 4


def test_dynamic_rounds_each_row_for_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn((48, 64), generator=generator), torch.randn(48, generator=generator)
    packed = quantize_floats(weight, group_size=0, dynamic=True)
    assert isinstance(packed, DynamicFloats)
    x = torch.randn((2, 5, 64), generator=generator) * torch.logspace(-6, 3, 5).view(1, 5, 1)
    found = packed.linear(x, bias)
    wanted = functional.linear(x, weight, bias)
    assert found.shape == wanted.shape
    assert bool(((found - bias - wanted + bias).norm(dim=-1) < 0.06 * (wanted - bias).norm(dim=-1)).all())
    for row in range(5):
        torch.testing.assert_close(packed.linear(x[:, row], bias), found[:, row], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dynamic_keeps_the_compute_precision_and_empty_inputs(dtype: torch.dtype) -> None:
    packed = quantize_floats(torch.randn(16, 32), group_size=0, dynamic=True)
    assert packed.linear(torch.randn(3, 32).to(dtype)).dtype == dtype
    assert packed.linear(torch.empty((0, 32), dtype=dtype)).shape == (0, 16)
    assert bool((packed.linear(torch.zeros((2, 32), dtype=dtype)) == 0).all())


def test_a_cpu_does_not_compute_in_them() -> None:
    assert not can_multiply(CPU)


def test_groups_are_never_dynamic() -> None:
    assert not isinstance(quantize_floats(torch.randn(4, 64), group_size=32, dynamic=True), DynamicFloats)
