"""A quantized weight is a tensor: what libraries do with weights goes on working; what would change it is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kamado.quant import SCHEMES
from kamado.weights.quantized.forms import HANDLERS, quantize
from kamado.weights.quantized.tensor import QuantTensor, held_bytes, is_quantized

NAMES = sorted(HANDLERS)
EXACT = sorted(name for name in NAMES if not SCHEMES[name].dynamic)
"""Whose products are those of the restored matrix."""


def made(
    name: str = "int8-weight-only", dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = (48, 128)
) -> QuantTensor:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return QuantTensor(quantize(weight.flatten(1), SCHEMES[name]), dtype, shape)


def some(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)


def test_every_scheme_has_its_code() -> None:
    assert set(HANDLERS) == set(SCHEMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_takes_what_the_scheme_says(name: str) -> None:
    weight = made(name)
    assert weight.packed.nbytes - SCHEMES[name].num_bytes((48, 128)) in (0, 64)  # a table, which all share
    assert held_bytes([weight, weight, nn.Parameter(weight, requires_grad=False), None]) == weight.packed.nbytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", EXACT)
def test_linear(name: str, dtype: torch.dtype) -> None:
    weight, bias = made(name, dtype), some(48, dtype=dtype)
    for shape in ((128,), (3, 128), (2, 3, 128), (0, 128)):
        x = some(*shape, dtype=dtype)
        wanted = functional.linear(x, weight.dequantize(), bias)
        torch.testing.assert_close(functional.linear(x, weight, bias), wanted)
        torch.testing.assert_close(functional.linear(x, weight=weight, bias=bias), wanted)


@pytest.mark.parametrize("name", ["int8-weight-only", "int4", "nf4", "fp8"])
def test_linear_in_pieces(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x, bias = made(name), some(5, 128), some(48)
    wanted = functional.linear(x, weight.dequantize(), bias)
    monkeypatch.setattr("kamado.weights.quantized.packed.PIECE_VALUES", {"cpu": 128 * 7, "cuda": 1})
    torch.testing.assert_close(functional.linear(x, weight, bias), wanted)
    torch.testing.assert_close(functional.linear(x, weight), wanted - bias)


@pytest.mark.parametrize("name", EXACT)
def test_embedding(name: str) -> None:
    table = made(name)
    places = torch.tensor([[0, 47, 3], [3, 3, 1]])
    assert torch.equal(functional.embedding(places, table), table.dequantize()[places])
    assert torch.equal(functional.embedding(places, table, 0), table.dequantize()[places])
    assert functional.embedding(places[:0], table).shape == (0, 3, 128)


@pytest.mark.parametrize("name", EXACT)
def test_convolution(name: str) -> None:
    kernel = made(name, shape=(8, 64, 3, 3))
    x = some(2, 64, 7, 7)
    wanted = functional.conv2d(x, kernel.dequantize(), padding=1)
    torch.testing.assert_close(functional.conv2d(x, kernel, padding=1), wanted)


MODULES: list[tuple[Callable[[], nn.Module], Callable[[], Tensor], tuple[int, ...]]] = [
    (lambda: nn.Linear(128, 48), lambda: some(3, 128), (48, 128)),
    (lambda: nn.Embedding(48, 128), lambda: torch.tensor([1, 5, 47]), (48, 128)),
    (lambda: nn.Conv2d(64, 8, 3), lambda: some(1, 64, 5, 5), (8, 64, 3, 3)),
]


@pytest.mark.parametrize(("module", "argument", "shape"), MODULES, ids=["Linear", "Embedding", "Conv2d"])
def test_modules_take_it_as_a_parameter(
    module: Callable[[], nn.Module], argument: Callable[[], Tensor], shape: tuple[int, ...]
) -> None:
    layer: Any = module()
    layer.weight = nn.Parameter(made(shape=shape), requires_grad=False)
    plain = copy.deepcopy(layer)
    plain.weight = nn.Parameter(layer.weight.data.dequantize(), requires_grad=False)
    assert is_quantized(layer.weight.data) and not is_quantized(plain.weight)
    with torch.inference_mode():
        torch.testing.assert_close(layer(argument()), plain(argument()))
    torch.testing.assert_close(layer(argument()), plain(argument()))


def test_state_dicts_hold_it_as_it_is() -> None:
    layer = nn.Linear(128, 48, bias=False)
    layer.load_state_dict({"weight": made()}, assign=True)
    state = layer.state_dict()
    assert is_quantized(state["weight"]) and state["weight"].packed is layer.weight.data.packed  # type: ignore[union-attr]
    other = nn.Linear(128, 48, bias=False, device="meta")
    other.load_state_dict(state, assign=True)
    torch.testing.assert_close(other(some(2, 128)), layer(some(2, 128)))


def test_tied_weights_are_held_once() -> None:
    table, head = nn.Embedding(48, 128), nn.Linear(128, 48, bias=False)
    table.weight = nn.Parameter(made(), requires_grad=False)
    head.weight = table.weight
    model = nn.ModuleList([table, head])
    assert held_bytes(model.parameters()) == held_bytes([table.weight]) == made().packed.nbytes
    copied = copy.deepcopy(model)
    assert copied[0].weight is copied[1].weight
    torch.testing.assert_close(copied[1](some(2, 128)), head(some(2, 128)))


@pytest.mark.parametrize("name", NAMES)
def test_another_compute_precision(name: str) -> None:
    weight = made(name)
    half = weight.to(torch.bfloat16)
    assert is_quantized(half) and half.dtype == torch.bfloat16 and half.packed is weight.packed
    assert functional.linear(some(2, 128, dtype=torch.bfloat16), half).dtype == torch.bfloat16
    layer = nn.Linear(128, 48, bias=False)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.to(torch.bfloat16)
    assert layer(some(2, 128, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert not is_quantized(weight.to(torch.int32)), "no form of integers is meant by that"


@pytest.mark.parametrize("name", NAMES)
def test_another_device(name: str) -> None:
    away = made(name).to("meta")
    assert is_quantized(away) and away.device.type == "meta" and type(away.packed) is type(made(name).packed)
    assert all(part.device.type == "meta" for part in away.packed.parts.values())
    assert held_bytes([away]) == 0
    layer = nn.Linear(128, 48, bias=False)
    layer.weight = nn.Parameter(made(name), requires_grad=False)
    assert layer.to("meta").weight.device.type == "meta"


def test_anything_else_gets_the_matrix_in_full() -> None:
    weight = made()
    full = weight.dequantize()
    assert torch.equal(weight.t(), full.t()) and torch.equal(weight[3:5], full[3:5])
    assert torch.equal(weight + 1, full + 1) and torch.equal(torch.cat([weight, weight]), torch.cat([full, full]))
    assert torch.equal(weight @ some(128, 2), full @ some(128, 2))
    assert torch.equal(weight.float().norm(), full.norm())
    assert torch.equal(functional.linear(weight, full), functional.linear(full, full))


@pytest.mark.parametrize(
    "change", [lambda w: w.mul_(2), lambda w: w.copy_(torch.zeros(48, 128)), lambda w: w.zero_(), lambda w: w.add_(w)]
)
def test_it_cannot_be_changed(change: Callable[[Tensor], Any]) -> None:
    weight = made()
    before = weight.dequantize()
    with pytest.raises(RuntimeError, match="cannot be changed"):
        change(weight)
    assert torch.equal(weight.dequantize(), before)


def test_what_is_done_to_a_plain_tensor_may_use_it() -> None:
    target = torch.zeros(48, 128)
    target.copy_(made())
    assert torch.equal(target, made().dequantize())


@pytest.mark.parametrize("name", NAMES)
def test_copies_and_detached_ones_share_what_is_held(name: str) -> None:
    weight = made(name)
    for other in (weight.detach(), weight.clone(), copy.deepcopy(weight), copy.copy(weight), weight.contiguous()):
        assert is_quantized(other) and torch.equal(other.dequantize(), weight.dequantize())
    assert weight.shape == (48, 128) and weight.dtype == torch.float32 and not weight.requires_grad
    assert name in NAMES and weight.packed.form in repr(weight)


def test_in_inference_mode() -> None:
    with torch.inference_mode():
        weight = made("int8-dynamic")
        found = functional.linear(some(2, 128), weight)
    torch.testing.assert_close(functional.linear(some(2, 128), weight), found)


def test_gradients_go_through_it() -> None:
    x = some(2, 128).requires_grad_()
    functional.linear(x, made()).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, made().dequantize().sum(0).expand(2, -1))
