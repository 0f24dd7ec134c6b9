"""Packed linear layers compute what plain ones compute."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kamado.weights.packed import PackedLinear, can_pack, pack_linears


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
    packed = PackedLinear(linear)
    assert torch.allclose(packed(x), wanted, rtol=1e-4, atol=1e-4)
    assert packed(x).shape == wanted.shape
    assert packed.nbytes == weight.nbytes
    assert torch.allclose(packed.weight, weight, rtol=1e-4, atol=1e-4)


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
