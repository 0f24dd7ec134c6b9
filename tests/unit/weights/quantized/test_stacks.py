"""Stacks of quantized matrices: what transformers does with experts, in all of its implementations and orders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kamado.quant import SCHEMES, Quant
from kamado.weights.outside.blocks import rebuilt
from kamado.weights.quantized.forms import quantize
from kamado.weights.quantized.pieces import Pieces, joined
from kamado.weights.quantized.reading import quantizing
from kamado.weights.quantized.tensor import QuantTensor, held_bytes

EXPERTS, OUT, IN = 4, 48, 64
EXACT = "int8-weight-only"
SOME = (EXACT, "int4", "nf4", "fp8")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def matrix(name: str = EXACT, seed: int = 0, out: int = OUT) -> QuantTensor:
    return QuantTensor(quantize(drawn(out, IN, seed=seed), SCHEMES[name]), torch.float32)


def stack(name: str = EXACT, out: int = OUT) -> QuantTensor:
    made = torch.stack([matrix(name, seed, out) for seed in range(EXPERTS)])
    assert isinstance(made, QuantTensor)
    return made


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", SOME)
def test_experts_are_taken_out_by_number(name: str, inference: bool) -> None:
    experts = stack(name)
    full = experts.dequantize()
    assert experts.shape == full.shape == (EXPERTS, OUT, IN)
    x = drawn(3, IN, seed=9)
    with torch.inference_mode(inference):
        for number in (0, 3, -1, torch.tensor(2)):
            one = experts[number]
            assert isinstance(one, QuantTensor)
            torch.testing.assert_close(functional.linear(x, one), functional.linear(x, full[number]))
            torch.testing.assert_close(x @ one.t(), x @ full[number].t())
            torch.testing.assert_close(drawn(2, 3, IN) @ one.mT, drawn(2, 3, IN) @ full[number].T)
        with pytest.raises(IndexError):
            experts[EXPERTS]
        assert torch.equal(experts[torch.tensor([3, 0, 3])], full[[3, 0, 3]])
        assert torch.equal(experts[1:3], full[1:3]) and torch.equal(experts[1, 2:4], full[1, 2:4])


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("ends", [[2, 2, 5, 6], [0, 0, 0, 6], [6, 6, 6, 6], [0, 0, 0, 0]])
def test_rows_of_many_experts_at_once(ends: list[int], name: str, inference: bool) -> None:
    from transformers.integrations import moe

    experts, x, offsets = stack(name), drawn(6, IN, seed=9), torch.tensor(ends, dtype=torch.int32)
    full = experts.dequantize()
    with torch.inference_mode(inference):
        wanted = torch.zeros(6, OUT)
        for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            wanted[start:end] = functional.linear(x[start:end], full[number])
        turned = experts.transpose(-2, -1)
        assert isinstance(turned, QuantTensor) and turned.shape == (EXPERTS, IN, OUT)
        for product in (functional.grouped_mm, moe._grouped_mm_fallback, torch.ops.transformers.grouped_mm_fallback):
            torch.testing.assert_close(product(x, turned, offs=offsets), wanted)
        stacked = drawn(EXPERTS, 5, IN, seed=8)
        torch.testing.assert_close(torch.bmm(stacked, turned), torch.bmm(stacked, full.mT))
        torch.testing.assert_close(torch.einsum("bi,eoi->beo", x, experts), torch.einsum("bi,eoi->beo", x, full))


CONVERSIONS: dict[str, Callable[[Callable[[int], Any]], Any]] = {
    "stack": lambda of: torch.stack([of(0), of(1)]),
    "stack, turned": lambda of: torch.stack([of(0).t(), of(1).t()]),
    "stack, then turned": lambda of: torch.stack([of(0), of(1)]).transpose(1, 2).contiguous(),
    "two stacks, joined": lambda of: torch.cat(
        [torch.stack([of(0), of(1)]), torch.stack([of(2), of(3)])], dim=1
    ),
    "two turned stacks, joined": lambda of: torch.cat(
        [torch.stack([of(0), of(1)]).mT, torch.stack([of(2), of(3)]).mT], dim=-1
    ),
    "two stacks, one after the other": lambda of: torch.cat(
        [torch.stack([of(0), of(1)]), torch.stack([of(2), of(3)])]
    ),
    "below each other": lambda of: torch.cat([of(0), of(1), of(2)]),
    "below each other, turned": lambda of: torch.cat([of(0).T, of(1).T], dim=1),
}  # fmt: skip


@pytest.mark.parametrize("forms", [(EXACT,) * 4, ("nf4",) * 4, (EXACT, "nf4", "none", "int4"), ("none", "fp8") * 2])
@pytest.mark.parametrize("name", CONVERSIONS)
def test_what_a_loader_does_keeps_the_form(name: str, forms: tuple[str, ...]) -> None:
    given: list[Tensor] = [
        drawn(OUT, IN, seed=seed) if form == "none" else matrix(form, seed) for seed, form in enumerate(forms)
    ]
    plain = [each.dequantize() if isinstance(each, QuantTensor) else each for each in given]
    made, wanted = CONVERSIONS[name](given.__getitem__), CONVERSIONS[name](plain.__getitem__)
    assert isinstance(made, QuantTensor) and made.shape == wanted.shape
    assert torch.equal(made.dequantize(), wanted)
    assert torch.equal(nn.Parameter(made, requires_grad=False).data.dequantize(), wanted)
    rows = torch.tensor([0, OUT - 1, OUT, 2 * OUT - 1])
    whole = made.packed.dequantize(torch.float32)
    assert torch.equal(made.packed.rows(rows, torch.float32), whole[rows])
    assert torch.equal(made.packed.rows(slice(3, 2 * OUT - 5), torch.float32), whole[3 : 2 * OUT - 5])
    assert made.packed.rows(slice(5, 5), torch.float32).shape == (0, IN)
    for expert, its in [(made[n], wanted[n]) for n in range(len(made))] if made.ndim == 3 else [(made, wanted)]:
        x = drawn(3, IN, seed=9)
        found = x @ expert if made.turned else functional.linear(x, expert)
        torch.testing.assert_close(found, x @ its if made.turned else functional.linear(x, its))


def test_matrices_of_one_form_become_one_and_others_stay_pieces() -> None:
    one, other = matrix(EXACT, 0).packed, matrix(EXACT, 1).packed
    both = joined([one, other])
    assert type(both) is type(one) and both.nbytes == one.nbytes + other.nbytes
    mixed = joined([both, matrix("nf4").packed])
    assert isinstance(mixed, Pieces)
    bias, x = drawn(3 * OUT), drawn(5, IN, seed=9)
    torch.testing.assert_close(mixed.linear(x, bias), functional.linear(x, mixed.dequantize(torch.float32), bias))
    away = mixed.to("meta")
    assert away.device.type == "meta" and len(away.pieces) == 2 and away.parts.keys() == mixed.parts.keys()


def test_bytes_are_those_of_the_matrices() -> None:
    experts = stack()
    assert held_bytes([experts, experts.mT, experts[1]]) == EXPERTS * matrix().packed.nbytes
    assert SCHEMES[EXACT].num_bytes(experts.shape) == experts.packed.nbytes


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("turned", [False, True])
def test_a_stack_that_lies_elsewhere_is_the_same(turned: bool, name: str) -> None:
    experts = stack(name).mT if turned else stack(name)
    copied = rebuilt(nn.Parameter(experts, requires_grad=False), torch.clone)
    assert copied.shape == experts.shape and torch.equal(copied.data.dequantize(), experts.dequantize())
    x = drawn(EXPERTS, 3, experts.shape[1], seed=9)
    torch.testing.assert_close(torch.bmm(x, copied.data), torch.bmm(x, experts.dequantize()))


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("turned", [False, True])
def test_a_stack_is_quantized_matrix_by_matrix_as_it_is_read(turned: bool, name: str) -> None:
    value = drawn(EXPERTS, 64, 128)

    class Stored:
        name, nbytes, shape, dtype = "experts.gate_up_proj", value.nbytes, tuple(value.shape), value.dtype

        def read(self) -> Tensor:
            return value.clone()

    source: Any = {"l.0.mlp.experts.gate_up_proj": Stored(), "l.0.mlp.gates": Stored()}
    found = {
        key: each.read() for key, each in quantizing(source, Quant(scheme=name), torch.float32, turned=turned).items()
    }
    made = found["l.0.mlp.experts.gate_up_proj"]
    assert isinstance(made, QuantTensor) and made.shape == value.shape and made.turned == turned
    assert torch.equal(found["l.0.mlp.gates"], value)
    for expert, its in zip(made.packed.pieces, value, strict=True):  # type: ignore[attr-defined]
        alone = quantize((its.t() if turned else its).contiguous(), SCHEMES[name])
        assert all(torch.equal(expert.parts[part].float(), alone.parts[part].float()) for part in alone.parts)
