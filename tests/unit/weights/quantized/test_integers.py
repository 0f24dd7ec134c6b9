"""Integers with scales: how far they are off, what they take, and GGML's own blocks beside them."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from kamado.weights.quantized.integers import Integers, pack4, quantize_integers, unpack4

FINEST = 2.0**-24
"""The smallest number of float16, and so the smallest scale."""


@st.composite
def matrices(draw: st.DrawFn) -> tuple[Tensor, int]:
    """A matrix and the size of its groups: (rows, groups * size), of widely different magnitudes, some of it zero."""
    size = draw(st.sampled_from([8, 16, 32, 64]))
    rows, groups = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    weight = torch.randn((rows, groups, size), generator=generator)
    exponents = draw(st.lists(st.integers(-20, 4), min_size=rows * groups, max_size=rows * groups))
    weight *= 10.0 ** torch.tensor(exponents, dtype=torch.float32).view(rows, groups, 1)
    zeros = draw(st.lists(st.booleans(), min_size=rows * groups, max_size=rows * groups))
    weight[torch.tensor(zeros).view(rows, groups)] = 0.0
    return weight.view(rows, -1), size


@given(matrices(), st.sampled_from([torch.float16, torch.float32]))
def test_no_value_is_farther_off_than_half_a_step(given: tuple[Tensor, int], scale_dtype: torch.dtype) -> None:
    weight, size = given
    packed = quantize_integers(weight, bits=8, group_size=size, scale_dtype=scale_dtype)
    found = packed.dequantize(torch.float32).view(-1, size)
    groups = weight.view(-1, size)
    largest = groups.abs().amax(-1, keepdim=True)
    bound = largest / 127 * 0.51
    if packed.parts["scale"].dtype == torch.float16:
        bound = bound + FINEST
    assert bool(((found - groups).abs() <= bound).all())
    assert bool((found[largest.view(-1) == 0] == 0).all())


@given(matrices(), st.sampled_from([torch.float16, torch.float32]))
def test_four_bits_are_never_worse_than_plain_rounding(given: tuple[Tensor, int], scale_dtype: torch.dtype) -> None:
    """As GGML's Q4_0 rounds: the largest magnitude of a group becomes -8."""
    weight, size = given
    packed = quantize_integers(weight, bits=4, group_size=size, scale_dtype=scale_dtype)
    groups = weight.view(-1, size).double()
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    plain = torch.where(largest == 0, 0.0, (groups / largest * -8).round().clamp(-8, 7) * largest / -8)
    found = packed.dequantize(torch.float32).view(-1, size).double()
    slack = 8 * FINEST if packed.parts["scale"].dtype == torch.float16 else 0.0
    # A scale in float16 is off by up to a thousandth, and so are values of up to `largest`.
    slack = slack + largest.abs() * (2**-10 if slack else 1e-6)
    assert bool(((found - groups).norm(dim=-1) <= (plain - groups).norm(dim=-1) + slack.view(-1) * size**0.5).all())
    assert bool((found[largest.view(-1) == 0] == 0).all())


@given(matrices(), st.sampled_from([8, 4]))
def test_rounding_twice_changes_nothing(given: tuple[Tensor, int], bits: int) -> None:
    weight, size = given
    once = quantize_integers(weight, bits=bits, group_size=size, scale_dtype=torch.float32).dequantize(torch.float32)
    twice = quantize_integers(once, bits=bits, group_size=size, scale_dtype=torch.float32).dequantize(torch.float32)
    torch.testing.assert_close(twice, once, rtol=1e-5, atol=0)


@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 2**31))
def test_nibbles_come_back(rows: int, pairs: int, seed: int) -> None:
    values = torch.randint(-8, 8, (rows, 2 * pairs), generator=torch.Generator().manual_seed(seed), dtype=torch.int8)
    packed = pack4(values)
    assert packed.dtype == torch.uint8 and packed.shape == (rows, pairs)
    assert torch.equal(unpack4(packed), values)
    assert int(packed[0, 0]) & 15 == int(values[0, 0]) + 8, "the even column lies in the low half"


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_not_hidden(bits: int, bad: float) -> None:
    weight = torch.ones(2, 64)
    weight[1, 3] = bad
    found = quantize_integers(weight, bits=bits, group_size=32, scale_dtype=torch.float16).dequantize(torch.float32)
    assert bool(found[1, :32].isnan().all())
    good = torch.cat((found[0], found[1, 32:]))
    torch.testing.assert_close(good, torch.ones_like(good), rtol=2**-11, atol=0)


@pytest.mark.parametrize("bits", [8, 4])
def test_scales_too_large_for_half_precision_are_kept_in_full(bits: int) -> None:
    weight = torch.full((2, 32), 1e20)
    packed = quantize_integers(weight, bits=bits, group_size=32, scale_dtype=torch.float16)
    assert packed.parts["scale"].dtype == torch.float32
    torch.testing.assert_close(packed.dequantize(torch.float32), weight)


@pytest.mark.parametrize(
    ("bits", "size", "scale_dtype"), [(8, 32, torch.float16), (8, 0, torch.float32), (4, 64, torch.float16)]
)
def test_what_it_takes(bits: int, size: int, scale_dtype: torch.dtype) -> None:
    packed = quantize_integers(torch.randn(48, 128), bits=bits, group_size=size, scale_dtype=scale_dtype)
    assert packed.nbytes == 48 * 128 * bits // 8 + 48 * 128 // (size or 128) * scale_dtype.itemsize
    assert packed.group_size == (size or 128)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [8, 4])
def test_half_precision_is_rounded_once(bits: int, dtype: torch.dtype) -> None:
    packed = quantize_integers(torch.randn(8, 64), bits=bits, group_size=32, scale_dtype=torch.float32)
    assert torch.equal(packed.dequantize(dtype), packed.dequantize(torch.float32).to(dtype))


@pytest.mark.parametrize("bits", [8, 4])
def test_offsets_and_orders(bits: int) -> None:
    """As files of others have them: weight = scale * value + offset, in an order of columns of their own."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-8, 8, (3, 16), generator=generator, dtype=torch.int8)
    scale, offset = torch.rand((3, 2), generator=generator), torch.rand((3, 2), generator=generator)
    order = torch.randperm(16, generator=generator)
    parts = {"values": values if bits == 8 else pack4(values), "scale": scale, "offset": offset, "order": order}
    packed = Integers((3, 16), parts, bits=bits)
    wanted = torch.empty(3, 16)
    for row in range(3):
        for place in range(16):
            column = int(order[place])
            wanted[row, column] = scale[row, place // 8] * values[row, place] + offset[row, place // 8]
    torch.testing.assert_close(packed.dequantize(torch.float32), wanted)
    torch.testing.assert_close(packed.rows(torch.tensor([2, 0]), torch.float32), wanted[[2, 0]])


def test_four_bits_are_those_of_ggml() -> None:
    """Q4_0 and int4 have the same size, and the same levels: they are equally far off."""
    weight = torch.randn((64, 256), generator=torch.Generator().manual_seed(3)) * 0.05
    blocks = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType.Q4_0)
    theirs = torch.from_numpy(gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q4_0).astype(np.float32))
    packed = quantize_integers(weight, bits=4, group_size=32, scale_dtype=torch.float16)
    assert packed.nbytes == blocks.nbytes
    ours_off, theirs_off = (packed.dequantize(torch.float32) - weight).norm(), (theirs - weight).norm()
    assert ours_off <= theirs_off * 1.001


@given(st.integers(1, 70), st.integers(1, 300))
@example(3, 1 << 22)
def test_large_matrices_are_taken_in_pieces(rows: int, columns: int) -> None:
    columns = columns // 8 * 8 + 8
    weight = torch.randn((rows, columns), generator=torch.Generator().manual_seed(rows))
    packed = quantize_integers(weight, bits=8, group_size=0, scale_dtype=torch.float32)
    assert torch.equal(packed.parts["scale"], weight.abs().amax(-1, keepdim=True) / 127)
    assert int(packed.parts["values"].abs().max()) == 127
