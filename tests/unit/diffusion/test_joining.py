"""Layers that are one product: what they give, what they hold, and when they are left alone."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from kamado.tasks.library.views import Views
from kamado.weights.outside.parked import ParkedModules
from kamado.weights.quantized.integers import quantize_integers
from kamado.weights.quantized.tensor import QuantTensor, as_parameter, held_bytes
from kamado_models.diffusion.joining import JoinedLayers

WIDTH = 16


class Projections(nn.Module):
    """Layers that are called as `order` says: names with numbers of inputs."""

    def __init__(self, order: str = "to_q0 to_k0 to_v0", *, bias: bool = True) -> None:
        super().__init__()
        self.order = [(each[:-1], int(each[-1])) for each in order.split()]
        for name in ("to_q", "to_k", "to_v"):
            setattr(self, name, nn.Linear(WIDTH, 12, bias=bias).requires_grad_(False))

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        return [getattr(self, name)(inputs[number]) for name, number in self.order]


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many outputs each product had that was made of all the rows given."""
    from kamado_models.diffusion import joining

    found: list[int] = []

    def counting(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if x.ndim == 3:  # rows that are compared come without
            found.append(len(weight))
        return nn.functional.linear(x, weight, bias)

    monkeypatch.setattr(joining, "linear", counting)
    return found


def _inputs(count: int = 1) -> list[Tensor]:
    return [torch.randn(2, 20, WIDTH, generator=torch.Generator().manual_seed(number)) for number in range(count)]


def _run(joined: JoinedLayers, module: nn.Module, *inputs: Tensor) -> Any:
    with torch.inference_mode(), joined.running():
        return module(*inputs)


def _plain(module: nn.Module, *inputs: Tensor) -> Any:
    with torch.inference_mode():
        return module(*inputs)


@pytest.mark.parametrize("bias", [True, False])
def test_one_product_and_one_tensor(bias: bool, products: list[int]) -> None:
    module = Projections(bias=bias)
    wanted, held = _plain(module, *_inputs()), held_bytes(module.parameters())
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    joined = JoinedLayers(module)
    assert len(joined) == 1 and held_bytes(module.parameters()) == held
    assert len({layer.weight.untyped_storage().data_ptr() for layer in module.children()}) == 1  # type: ignore[union-attr, operator]
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
    for _ in range(2):
        torch.testing.assert_close(_run(joined, module, *_inputs()), wanted)
    assert products == [36, 36]
    assert not any("forward" in vars(layer) for layer in module.modules())
    torch.testing.assert_close(_plain(module, *_inputs()), wanted, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("order", "first", "second", "is_alive"),
    [
        ("to_q0 to_k1 to_v1", [36, 24], [12, 24], True),  # looks at something else
        ("to_q0 to_k1 to_v2", [36, 24, 12], [12, 12, 12], False),
        ("to_q0 to_k0 to_v1", [36, 12], [12, 12, 12], False),
        ("to_q0 to_k0", [36], [12, 12], False),  # one is never called
        ("to_q0 to_q0 to_k0 to_v0", [36, 12, 12, 12], [12, 12, 12, 12], False),
        ("to_q0 to_k0 to_v0 to_v1", [36, 12], [36, 12], True),  # perturbed attention
    ],
)
def test_inputs_tell(order: str, first: list[int], second: list[int], is_alive: bool, products: list[int]) -> None:
    module, inputs = Projections(order), _inputs(3)
    wanted = _plain(module, *inputs)
    joined = JoinedLayers(module)
    for expected in (first, second):
        products.clear()
        torch.testing.assert_close(_run(joined, module, *inputs), wanted)
        assert products == expected or (not is_alive and products == []), "layers by themselves run torch's own forward"
    assert bool(len(joined)) is is_alive


def test_an_input_that_was_changed_in_place() -> None:
    class Changing(Projections):
        def forward(self, *inputs: Tensor) -> list[Tensor]:
            query = self.to_q(inputs[0])
            return [query, self.to_k(inputs[0].mul_(1.1)), self.to_v(inputs[0])]

    module = Changing()
    wanted = _plain(module, *_inputs())
    joined = JoinedLayers(module)
    torch.testing.assert_close(_run(joined, module, *_inputs()), wanted)
    assert len(joined) == 0
    torch.testing.assert_close(_run(joined, module, *_inputs()), wanted)


def test_nothing_is_held_longer_than_needed() -> None:
    first, second = Projections("to_q0 to_k0"), Projections("to_q0 to_k0 to_v0")
    joined = JoinedLayers(nn.ModuleList([first, second]))
    with torch.inference_mode(), joined.running():
        (x,) = _inputs()
        gone = weakref.ref(x)
        held = [weakref.ref(each) for each in first(x)]
        del x
        assert gone() is not None, "another one could have its identity"
        second(*_inputs())
        assert gone() is None and all(each() is None for each in held)
    group = joined._groups[1]
    assert len(joined) == 1 and not group.is_waiting and not group._parts


def test_a_forward_that_fails_says_nothing() -> None:
    module = Projections("to_q0 to_k5")
    joined = JoinedLayers(module)
    (x,) = _inputs()
    gone = weakref.ref(x)
    with pytest.raises(IndexError):
        _run(joined, module, x)
    del x
    gc.collect()
    assert gone() is None and len(joined) == 1
    assert not any("forward" in vars(layer) for layer in module.modules())


def test_a_layer_that_somebody_changed_runs_his_code() -> None:
    module = Projections()
    joined = JoinedLayers(module)
    module.to_k.forward = lambda x: torch.zeros(1)  # type: ignore[method-assign]
    module.to_v.register_forward_hook(lambda layer, args, output: output + 1)
    wanted = _plain(module, *_inputs())
    for _ in range(2):
        torch.testing.assert_close(_run(joined, module, *_inputs()), wanted)


def test_what_is_shared_or_quantized_stays_as_it_is() -> None:
    tied, part, packed = Projections(), Projections(), Projections()
    tied.to_k.weight = tied.to_q.weight
    part.to_k.weight = nn.Parameter(torch.randn(24, WIDTH)[:12], requires_grad=False)
    form = quantize_integers(packed.to_k.weight.data, bits=8, group_size=0, scale_dtype=torch.float32)
    packed.to_k.weight = as_parameter(QuantTensor(form, torch.float32))
    for module in (tied, part, packed):
        before = [(id(layer.weight), id(layer.bias)) for layer in module.children()]
        joined = JoinedLayers(module)
        assert len(joined) == 0
        assert before == [(id(layer.weight), id(layer.bias)) for layer in module.children()]


def test_a_shortage_leaves_the_rest_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = nn.ModuleList([Projections(), Projections()])
    wanted, usual, calls = [_plain(module, *_inputs()) for module in modules], torch.cat, []

    def cat(tensors: Any) -> Tensor:
        calls.append(1)
        if len(calls) > 3:  # the second one's bias
            raise torch.OutOfMemoryError("CUDA out of memory")
        return usual(tensors)

    monkeypatch.setattr(torch, "cat", cat)
    joined = JoinedLayers(modules)
    assert len(joined) == 1
    assert len({layer.weight.untyped_storage().data_ptr() for layer in modules[1].children()}) == 3  # type: ignore[union-attr, operator]
    torch.testing.assert_close([_run(joined, module, *_inputs()) for module in modules], wanted)


def test_weights_that_leave_and_come_back() -> None:
    module = Projections()
    wanted, held = _plain(module, *_inputs()), held_bytes(module.parameters())
    joined = JoinedLayers(module)
    gone = weakref.ref(joined._groups[0]._weight)
    del joined
    waiting = ParkedModules({"": module}, "cpu")
    assert gone() is None and waiting.nbytes < held + 8192
    waiting.back("cpu")
    assert held_bytes(module.parameters()) == held
    joined = JoinedLayers(module)
    assert len(joined) == 1 and held_bytes(module.parameters()) == held
    torch.testing.assert_close(_run(joined, module, *_inputs()), wanted)


def test_attention_that_one_request_has_set_up() -> None:
    """Its view of the model is first looked at during a forward."""
    from diffusers.models.attention_processor import AttnProcessor

    module = nn.ModuleDict({"attention": Attention(WIDTH, heads=2, dim_head=8)}).requires_grad_(False).eval()
    module.forward = lambda x: None  # type: ignore[method-assign]
    wanted = _plain(module["attention"], *_inputs())
    joined = JoinedLayers(module)
    views = Views(module, {})
    views.root["attention"].set_processor(AttnProcessor())  # type: ignore[operator]
    for _ in range(2):
        torch.testing.assert_close(_run(joined, views.module()["attention"], *_inputs()), wanted)
        torch.testing.assert_close(_plain(views.module()["attention"], *_inputs()), wanted)
        assert not joined._groups[0].is_waiting
    assert len(joined) == 1


def _wan() -> tuple[nn.Module, dict[str, Any]]:
    model = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, text_dim=16, freq_dim=16, ffn_dim=32, num_layers=2
    )
    return model, {"hidden_states": torch.randn(1, 16, 1, 8, 8), "encoder_hidden_states": torch.randn(1, 6, 16)}


def _ltx() -> tuple[nn.Module, dict[str, Any]]:
    sizes = {"in_channels": 8, "out_channels": 8, "num_attention_heads": 2, "attention_head_dim": 16}
    model = diffusers.LTXVideoTransformer3DModel(**sizes, cross_attention_dim=32, num_layers=2, caption_channels=16)
    call = {"hidden_states": torch.randn(1, 16, 8), "encoder_hidden_states": torch.randn(1, 6, 16)}
    shape = {"num_frames": 1, "height": 4, "width": 4}
    return model, {**call, **shape, "encoder_attention_mask": torch.ones(1, 6)}


@pytest.mark.parametrize(("make", "firsts"), [(_wan, {(3, 0), (2, 0)}), (_ltx, {(3, 0), (3, 1)})])
def test_models_of_videos(make: Any, firsts: set[tuple[int, int]]) -> None:
    """One says which of its attention looks at texts, one does not."""
    torch.manual_seed(0)
    model, call = make()
    model.eval().requires_grad_(False)

    def run() -> Tensor:
        found: Tensor = model(**call, timestep=torch.tensor([5]), return_dict=False)[0]
        return found

    with torch.inference_mode():
        wanted = run()
        joined = JoinedLayers(model)
        for _ in range(2):
            with joined.running():
                torch.testing.assert_close(run(), wanted, rtol=1e-5, atol=1e-5)
    assert {(len(group.layers), group._first) for group in joined._groups} == firsts and len(joined) == 4
