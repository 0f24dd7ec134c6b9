"""Packed linear layers compute what plain ones compute."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kamado.weights.packed import PackedLinear, can_pack, pack, pack_linears


def _linear(num_in: int, num_out: int, bias: bool) -> nn.Linear:
    generator = torch.Generator().manual_seed(num_in)
    linear = nn.Linear(num_in, num_out, bias=bias, device="meta").to_empty(device="cpu").requires_grad_(False)
    for parameter in linear.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return linear


def test_this_torch_has_the_kernels() -> None:
    """On x86 at least; elsewhere plain layers stay, which is right but slower."""
    assert can_pack() or not torch.backends.mkldnn.is_available()


@pytest.mark.skipif(not can_pack(), reason="this torch has no oneDNN kernels for packed weights")
@pytest.mark.parametrize("rows", [1, 2, 5, 16, 100, 513])
@pytest.mark.parametrize(
    ("num_in", "num_out", "bias"), [(576, 1536, False), (33, 7, True), (1, 1, True), (64, 5000, False)]
)
def test_equal_to_plain(rows: int, num_in: int, num_out: int, bias: bool) -> None:
    linear = _linear(num_in, num_out, bias)
    x = torch.randn(1, rows, num_in, generator=torch.Generator().manual_seed(1))
    wanted, weight = linear(x), linear.weight.clone()
    (packed,) = pack(linear)
    assert torch.allclose(packed(x), wanted, rtol=1e-4, atol=1e-4)
    assert packed(x).shape == wanted.shape
    assert packed.nbytes == weight.nbytes
    assert torch.allclose(packed.weight, weight, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not can_pack(), reason="this torch has no oneDNN kernels for packed weights")
@pytest.mark.parametrize("rows", [1, 17])
@pytest.mark.parametrize("biases", [(False, False, False), (True, False, True)])
def test_siblings_are_computed_once(rows: int, biases: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    linears = [_linear(64, size, bias) for size, bias in zip((96, 32, 5), biases, strict=True)]
    x, other = (torch.randn(2, rows, 64, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    wanted = {id(y): [linear(y) for linear in linears] for y in (x, other)}
    packed = pack(*linears)
    product, calls = packed[0]._product, []
    forward = type(product).__call__
    monkeypatch.setattr(type(product), "__call__", lambda self, y: calls.append(y) or forward(self, y))

    def same(index: int, y: Tensor) -> bool:
        return torch.allclose(packed[index](y), wanted[id(y)][index], rtol=1e-4, atol=1e-4)

    assert all(same(index, x) for index in (0, 1, 2))
    assert len(calls) == 1
    assert product._input is None, "a result that was handed out is not kept alive"
    assert all(same(index, x) for index in (2, 0, 1))
    assert len(calls) == 2
    # Whatever the order, every layer gets the result of the input it was called with.
    assert same(0, x)
    assert same(1, other)
    assert same(2, x)
    assert same(0, other)
    assert same(0, other)


class _Named(nn.Module):
    def __init__(self, widths: dict[str, int]) -> None:
        super().__init__()
        for name, width in widths.items():
            self.add_module(name, nn.Linear(width, 8))


@pytest.mark.skipif(not can_pack(), reason="this torch has no oneDNN kernels for packed weights")
@pytest.mark.parametrize(
    ("widths", "products"),
    [
        ({"q_proj": 16, "k_proj": 16, "v_proj": 16, "o_proj": 16}, 2),
        ({"q_proj": 16, "k_proj": 24, "v_proj": 24}, 3),
        ({"q_proj": 16, "k_proj": 16}, 2),
        ({"gate_proj": 16, "up_proj": 16, "down_proj": 32}, 2),
    ],
)
def test_which_layers_are_siblings(widths: dict[str, int], products: int) -> None:
    with torch.random.fork_rng(), torch.no_grad():
        model = _Named(widths)
        inputs = {width: torch.randn(3, width) for width in widths.values()}
        wanted = {name: getattr(model, name)(inputs[width]) for name, width in widths.items()}
        pack_linears(model)
        assert len({id(layer._product) for layer in model.children() if isinstance(layer, PackedLinear)}) == products
        for name, width in widths.items():
            assert torch.allclose(getattr(model, name)(inputs[width]), wanted[name], rtol=1e-4, atol=1e-4)


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.inner = nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16))
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.inner(self.embedding(tokens)))
        return logits


@pytest.mark.skipif(not can_pack(), reason="this torch has no oneDNN kernels for packed weights")
def test_a_model_with_a_tied_output_matrix() -> None:
    with torch.random.fork_rng(), torch.no_grad():
        model = _Tied()
        tokens = torch.arange(20)[None]
        wanted = model(tokens)
        assert pack_linears(model) == model.embedding.weight.nbytes
        assert torch.allclose(model(tokens), wanted, rtol=1e-4, atol=1e-4)
    assert sum(isinstance(module, PackedLinear) for module in model.modules()) == 2
    assert {name for name, _ in model.named_parameters()} == {
        "embedding.weight",
        "inner.0.bias",
        "inner.1.weight",
        "inner.1.bias",
    }
