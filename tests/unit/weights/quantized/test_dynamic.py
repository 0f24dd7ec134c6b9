"""Integers times integers: exact, whatever the CPU has; each row of activations for itself."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from kamado.kernels.tiles import rounded
from kamado.weights.quantized import dynamic
from kamado.weights.quantized.dynamic import DynamicIntegers, can_multiply, integer_product, quantize_dynamic
from kamado.weights.quantized.integers import Integers

CPU = torch.device("cpu")


def exact(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return left.int() @ right.int().t()


@given(st.integers(0, 20), st.integers(1, 50), st.integers(1, 2500), st.booleans(), st.integers(0, 2**31))
def test_products_are_exact(rows: int, out: int, columns: int, extreme: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    left = torch.randint(-127, 128, (rows, columns), generator=generator, dtype=torch.int8)
    right = torch.randint(-127, 128, (out, columns), generator=generator, dtype=torch.int8)
    if extreme:
        left, right = torch.full_like(left, 127), torch.full_like(right, -127)
    assert torch.equal(integer_product(left, right), exact(left, right))
    assert torch.equal(dynamic._float_product(left, right), exact(left, right))


@pytest.mark.parametrize("rows", [1, 3, 4, 5])
def test_few_rows_of_a_large_matrix(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    left = torch.randint(-127, 128, (rows, 2048), generator=generator, dtype=torch.int8)
    right = torch.randint(-127, 128, (520, 2048), generator=generator, dtype=torch.int8)
    assert torch.equal(integer_product(left, right), exact(left, right))


PROBE = """
import torch
from kamado.weights.quantized.dynamic import can_multiply, integer_product
left, right = torch.full((3, 256), 127, dtype=torch.int8), torch.full((40, 256), -127, dtype=torch.int8)
assert bool((integer_product(left, right) == -127 * 127 * 256).all()), can_multiply(torch.device("cpu"))
"""


@pytest.mark.parametrize("limit", ["AVX2", "SSE41"])
def test_cpus_without_instructions_for_whole_sums(limit: str) -> None:
    """Their kernels cut off what is too large for 16 bits, which must be found out."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": limit, "ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("outlier", [0.0, 6.0])
def test_close_to_full_precision(outlier: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn((96, 128), generator=generator), torch.randn(96, generator=generator)
    packed = quantize_dynamic(weight, outlier=outlier)
    assert isinstance(packed, DynamicIntegers) and isinstance(packed, Integers)
    x = torch.randn((2, 7, 128), generator=generator)
    wanted = functional.linear(x, weight, bias)
    found = packed.linear(x, bias)
    assert found.shape == wanted.shape
    assert bool((found - wanted).norm(dim=-1).max() < 0.012 * wanted.norm(dim=-1).mean())


@given(st.integers(1, 9), st.integers(0, 2**31), st.sampled_from([0.0, 6.0]))
def test_a_row_does_not_depend_on_the_others(rows: int, seed: int, outlier: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    packed = quantize_dynamic(torch.randn((24, 64), generator=generator), outlier=outlier)
    x = torch.randn((rows, 64), generator=generator) * 10.0 ** torch.randint(-3, 4, (rows, 1), generator=generator)
    together = packed.linear(x)
    for row in range(rows):
        alone = packed.linear(x[row : row + 1])[0]
        if outlier:  # the few columns of full precision are summed in other orders
            torch.testing.assert_close(alone, together[row], rtol=1e-5, atol=1e-5 * float(x[row].abs().max()))
        else:
            assert torch.equal(alone, together[row])


@pytest.mark.parametrize("group_size", [32, 16])
def test_groups(group_size: int) -> None:
    """Each group of activations is rounded for itself."""
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn((24, 64), generator=generator), torch.randn((2, 3, 64), generator=generator)
    x[..., :16] *= 1000  # in one scale with these, the others would be zeros
    packed = quantize_dynamic(weight, group_size=group_size)
    assert isinstance(packed, DynamicIntegers) and packed.parts["scale"].dtype == torch.float16
    assert packed.nbytes == weight.numel() + 2 * weight.numel() // group_size
    whole = rounded(x, 8, group_size)
    assert torch.equal(packed.linear(x), functional.linear(whole, packed.dequantize(torch.float32)))
    assert float((whole - x)[..., 32:].abs().max()) < 0.02


def test_outliers_keep_their_precision() -> None:
    """LLM.int8: one large value in a row would take the others' bits."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn((64, 256), generator=generator)
    x = torch.randn((4, 256), generator=generator)
    x[1, 17], x[3, 200] = 300.0, -80.0
    wanted = functional.linear(x, weight)

    def off(outlier: float) -> torch.Tensor:
        return (quantize_dynamic(weight, outlier=outlier).linear(x) - wanted).norm(dim=-1)

    rounded, kept = off(0.0), off(6.0)
    assert bool((kept[[1, 3]] < rounded[[1, 3]] / 4).all())
    torch.testing.assert_close(kept[[0, 2]], rounded[[0, 2]])


@pytest.mark.parametrize("outlier", [0.0, 6.0])
def test_zeros_and_what_is_no_number(outlier: float) -> None:
    packed = quantize_dynamic(torch.randn(8, 16), outlier=outlier)
    x = torch.zeros(4, 16)
    x[1, 3], x[2, 5] = float("nan"), float("inf")
    found = packed.linear(x)
    assert bool((found[[0, 3]] == 0).all())
    assert not bool(found[1].isfinite().any()) and not bool(found[2].isfinite().any())
    assert packed.linear(torch.empty(0, 16)).shape == (0, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_compute_precision(dtype: torch.dtype) -> None:
    packed = quantize_dynamic(torch.randn(8, 16).to(dtype), outlier=6.0)
    x = (torch.randn(3, 16) * 4).to(dtype)
    found = packed.linear(x, torch.ones(8, dtype=dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), packed.linear(x.float(), torch.ones(8)), rtol=2.0**-7, atol=0.01)


def test_it_stays_what_it_is_elsewhere() -> None:
    packed = quantize_dynamic(torch.randn(8, 16), outlier=6.0)
    assert isinstance(packed, DynamicIntegers)
    other = packed.like(packed.shape, packed.parts)
    assert other.outlier == 6.0 and packed.to("cpu") is packed


def test_so_many_columns_that_sums_could_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic, "MOST_COLUMNS", 32)
    assert not isinstance(quantize_dynamic(torch.randn(2, 64)), DynamicIntegers)
    assert dynamic.MOST_COLUMNS * 127 * 127 < 2**31 and 2**17 * 127 * 127 < 2**31


def test_this_cpu() -> None:
    """Newer processors have the instructions; others are served by the exact products in float32."""
    assert can_multiply(CPU) in (True, False)
