"""Integers in the kernels' order: the same matrix, and the same products but for the rounding of activations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from kamado.kernels.native import native
from kamado.kernels.tiles import rounded
from kamado.weights.quantized import tiled
from kamado.weights.quantized.dynamic import DynamicIntegers, quantize_dynamic
from kamado.weights.quantized.integers import Integers, quantize_integers
from kamado.weights.quantized.tensor import QuantTensor, stack_of
from kamado.weights.quantized.tiled import TiledIntegers, can_tile, tile, tile_weights

HALF = torch.float16


def matrix(out: int, columns: int, bits: int, group: int = 32, seed: int = 0) -> Integers:
    weight = torch.randn(out, columns, generator=torch.Generator().manual_seed(seed)) * 0.05
    return quantize_integers(weight, bits=bits, group_size=group, scale_dtype=HALF)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("out", [5, 64])
def test_the_same_matrix(bits: int, out: int) -> None:
    plain = matrix(out, 96, bits)
    made = tile(plain)
    assert made.shape == plain.shape and made.bits == bits
    assert made.nbytes == plain.nbytes * (-(-out // 16) * 16) // out
    assert torch.equal(made.dequantize(torch.float32), plain.dequantize(torch.float32))
    for index in (slice(1, 4), torch.tensor([4, 0, 4])):
        assert torch.equal(made.rows(index, torch.bfloat16), plain.rows(index, torch.bfloat16))
    again = made.to("meta").like(made.shape, made.parts)
    assert isinstance(again, TiledIntegers) and again.bits == bits


@pytest.mark.parametrize(("bits", "activation_bits"), [(8, 16), (8, 8), (4, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products(bits: int, activation_bits: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = matrix(50, 96, bits)
    made = tile(DynamicIntegers(plain.shape, plain.parts) if (bits, activation_bits) == (8, 8) else plain)
    assert made.activation_bits == made.like(made.shape, made.parts).activation_bits == activation_bits
    x = torch.randn(2, 7, 96, generator=torch.Generator().manual_seed(1)).to(dtype)
    bias = torch.randn(50, generator=torch.Generator().manual_seed(2)).to(dtype)
    wanted = functional.linear(rounded(x, activation_bits), made.dequantize(torch.float32), bias.float()).to(dtype)
    room = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
    found = {"kernels": made.linear(x, bias)} if native() is not None else {}
    monkeypatch.setattr(tiled, "native", lambda: None)
    found["torch"] = made.linear(x, bias)
    for name, result in found.items():
        assert result.dtype == dtype and result.shape == (2, 7, 50), name
        torch.testing.assert_close(result, wanted, **room, msg=name)


def test_what_the_kernels_do_not_know_stays() -> None:
    assert can_tile(matrix(16, 64, 8)) and can_tile(matrix(16, 64, 4))
    assert not can_tile(matrix(16, 64, 8, group=64))
    assert not can_tile(matrix(16, 48, 8, group=0))
    huge = quantize_integers(torch.full((16, 64), 1e9), bits=8, group_size=32, scale_dtype=HALF)
    assert huge.parts["scale"].dtype == torch.float32 and not can_tile(huge)
    assert can_tile(DynamicIntegers((16, 64), matrix(16, 64, 8).parts))
    assert not can_tile(quantize_dynamic(torch.randn(16, 32), outlier=6.0))
    parts = matrix(16, 64, 8).parts
    assert not can_tile(Integers((16, 64), {**parts, "offset": parts["scale"]}, bits=8))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 64)
        self.inner = nn.Linear(64, 64, bias=False)
        self.plain = nn.Linear(64, 64)
        self.head = nn.Linear(64, 50, bias=False)
        weight = nn.Parameter(QuantTensor(matrix(50, 64, 8), torch.float32), requires_grad=False)
        self.embedding.weight = self.head.weight = weight
        self.inner.weight = nn.Parameter(QuantTensor(matrix(64, 64, 4), torch.float32), requires_grad=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.plain(self.inner(self.embedding(ids))))


def test_layers_of_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = Tied().requires_grad_(False), torch.arange(0, 50, 7)
    monkeypatch.setattr(tiled, "native", lambda: None)
    assert tile_weights(model) == 0 and type(model.head.weight.packed) is Integers
    with torch.inference_mode():
        wanted = model(ids)
    monkeypatch.undo()
    if native() is None:
        pytest.skip("there are no kernels for this CPU")
    # The last of four panels has 14 outputs too many.
    assert tile_weights(model) == 14 * (64 + 4)
    assert tile_weights(model) == 0
    assert isinstance(model.inner.weight.packed, TiledIntegers) and not hasattr(model.plain.weight, "packed")
    assert model.embedding.weight.packed is model.head.weight.packed
    with torch.inference_mode():
        found = model(ids)
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.02)
    assert torch.equal(model.embedding(ids), model.head.weight.dequantize()[ids])


class Experts(nn.Module):
    def __init__(self, bits: int) -> None:
        super().__init__()
        pieces = [matrix(48, 64, bits, seed=seed) for seed in range(3)]
        pieces.append(matrix(48, 64, 8, group=64))  # the kernels do not know this one
        self.up_proj = nn.Parameter(stack_of(pieces, torch.float32), requires_grad=False)
        self.kernel = nn.Parameter(
            QuantTensor(matrix(16, 64, bits), torch.float32, (16, 16, 2, 2)), requires_grad=False
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([functional.linear(x, self.up_proj[number]) for number in range(4)])


@pytest.mark.parametrize("bits", [8, 4])
def test_stacks_of_experts(bits: int) -> None:
    if native() is None:
        pytest.skip("there are no kernels for this CPU")
    model, x = Experts(bits), torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    full = model.up_proj.dequantize()
    with torch.inference_mode():
        wanted = model(x)
    assert tile_weights(model, but={id(model.up_proj)}) == 0 and type(model.up_proj.packed.pieces[0]) is Integers
    assert tile_weights(model) == 0
    packed: Any = model.up_proj.packed
    assert [type(piece) for piece in packed.pieces] == [TiledIntegers] * 3 + [Integers]
    assert type(model.kernel.packed) is Integers  # convolutions are restored
    assert torch.equal(model.up_proj.dequantize(), full)
    with torch.inference_mode():
        found = model(x)
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.02)
    assert not torch.equal(found[0], wanted[0]) and torch.equal(found[3], wanted[3])


@pytest.mark.parametrize("rows", [(32, 50), (50, 32), (5, 5, 16)])
def test_matrices_below_each_other(rows: tuple[int, ...]) -> None:
    """Panels that are not full may only be the last ones of what is joined."""
    matrices = [matrix(count, 64, 8, seed=count + number) for number, count in enumerate(rows)]
    wanted = torch.cat([each.dequantize(torch.float32) for each in matrices])
    made = torch.cat([QuantTensor(tile(each), torch.float32) for each in matrices])
    assert isinstance(made, QuantTensor) and torch.equal(made.dequantize(), wanted)
    assert (made.packed.form == "tiled-integers") == all(count % 16 == 0 for count in rows[:-1])
