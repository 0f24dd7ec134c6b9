"""Stand-ins: like the model to whoever asks, while its entry points lead elsewhere."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kamado.tasks.library.standin import ModelCall, stand_in

from .toys import Autoencoder, Denoiser


class Calls(list[ModelCall]):
    """Diverts calls by noting them and making them."""

    def __call__(self, call: ModelCall) -> Any:
        self.append(call)
        return call.run()


def not_called(call: ModelCall) -> Any:
    raise AssertionError(call)


def test_it_is_like_the_model() -> None:
    model = Autoencoder()
    model.config = {"scaling": 2}  # type: ignore[assignment]
    view = stand_in(model, not_called)
    assert type(view) is Autoencoder
    assert isinstance(view, nn.Module)
    assert view.config is model.config
    assert model.training != view.eval().training
    assert [*view.state_dict()] == [*model.state_dict()]
    assert [name for name, _ in view.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert all(one is other for one, other in zip(view.parameters(), model.parameters(), strict=True))
    assert view.quant.weight.data_ptr() == model.quant.weight.data_ptr()
    assert view.weight.dtype == torch.float32
    assert isinstance(view.quant, nn.Linear)
    assert repr(view) == repr(model)


def test_libraries_look_up_what_it_takes() -> None:
    model = Denoiser()
    view = stand_in(model, not_called)
    assert inspect.signature(view.forward) == inspect.signature(model.forward)
    assert [*inspect.signature(view.forward).parameters] == ["sample", "timestep", "text", "strength"]
    assert "return_dict" in inspect.signature(stand_in(Autoencoder(), not_called).encode).parameters


def test_entry_points_lead_elsewhere_and_no_further_from_there() -> None:
    model, calls = Autoencoder(), Calls()
    view = stand_in(model, calls)
    x = torch.arange(4.0).reshape(2, 2)
    assert torch.equal(view(x), x)
    assert model.calls == ["forward", "encode", "decode"]
    assert torch.equal(view.encode(x).latents, 2 * x)
    assert torch.equal(view.decode(z=x), x / 2)
    assert [(call.method, [*call.arguments]) for call in calls] == [
        ("forward", ["x"]),
        ("encode", ["x"]),
        ("decode", ["z"]),
    ]
    assert all(call.module is model for call in calls)


def test_encode_alone_is_no_entry_point() -> None:
    class Tokenizing(nn.Module):
        def encode(self, text: str) -> int:
            return len(text)

        def forward(self, x: Tensor) -> Tensor:
            return x

    assert stand_in(Tokenizing(), not_called).encode("four") == 4


@pytest.mark.parametrize(
    "method", ["to", "half", "double", "float", "bfloat16", "cpu", "cuda", "xpu", "requires_grad_"]
)
@pytest.mark.parametrize("part", ["", "quant"])
def test_nothing_moves_or_converts_shared_weights(method: str, part: str) -> None:
    model = Autoencoder()
    before = [(value.data_ptr(), value.dtype, value.requires_grad) for value in model.parameters()]
    view = stand_in(model, not_called).get_submodule(part)
    arguments: tuple[Any, ...] = {"to": (torch.float16,), "requires_grad_": (False,)}.get(method, ())
    assert getattr(view, method)(*arguments) is view
    assert [(value.data_ptr(), value.dtype, value.requires_grad) for value in model.parameters()] == before


def test_nothing_moves_them_from_above_either() -> None:
    """As part of a module of the library's own."""
    model = Autoencoder()
    parent = nn.ModuleList([stand_in(model, not_called), nn.Linear(1, 1)])
    parent.half()
    assert parent[1].weight.dtype == torch.float16
    assert {value.dtype for value in model.parameters()} == {torch.float32}


def test_settings_stay_with_the_request() -> None:
    model, calls = Autoencoder(), Calls()
    tiled, tiled_too, plain = (stand_in(model, calls) for _ in range(3))
    tiled.enable_tiling()
    tiled_too.enable_tiling()
    z = torch.ones(1, 2)
    assert tiled.decode(z).tolist() == [[-0.5, -0.5]]
    assert tiled_too.decode(z).tolist() == [[-0.5, -0.5]]
    assert plain.decode(z).tolist() == [[0.5, 0.5]]
    assert model.use_tiling is False
    assert calls[0].settings == calls[1].settings == (("use_tiling", True),)
    assert calls[2].settings == ()
    tiled.enable_tiling(False)
    tiled.decode(z)
    assert calls[3].settings == ()
    assert calls[3].module is model


def test_a_setting_nobody_had_before_counts() -> None:
    calls = Calls()
    view = stand_in(Autoencoder(), calls)
    view.tile_size = 64
    view.anything = [1, 2]
    view.decode(torch.ones(1, 2))
    assert [name for name, _ in calls[0].settings] == ["anything", "tile_size"]
    assert calls[0].module.tile_size == 64


def test_weights_and_buffers_that_are_set_stay_with_the_request() -> None:
    model, calls = Autoencoder(), Calls()
    model.register_buffer("table", torch.zeros(1))
    view = stand_in(model, calls)
    view.weight = nn.Parameter(torch.tensor(4.0))
    view.register_buffer("table", torch.ones(1))
    assert view.decode(torch.ones(1, 1)).item() == 0.25
    assert model.decode(torch.ones(1, 1)).item() == 0.5
    assert model.table.item() == 0
    assert calls[0].settings != ()


def test_arguments_come_by_their_names() -> None:
    calls = Calls()
    view = stand_in(Denoiser(), calls)
    sample, text = torch.zeros(1, 3, 2, 2), torch.zeros(1, 4, 2)
    view(sample, 3, text, strength=2.0)
    view(text=text, strength=2.0, timestep=3, sample=sample)
    assert [[*call.arguments] for call in calls] == [["sample", "timestep", "text", "strength"]] * 2
    assert calls[1].arguments["sample"] is sample


def test_hooks_see_the_call_as_the_library_made_it() -> None:
    seen: list[Any] = []
    model = Denoiser()
    model.register_forward_pre_hook(lambda module, args, kwargs: seen.append((len(args), [*kwargs])), with_kwargs=True)
    view = stand_in(model, Calls())
    sample = torch.zeros(1, 3, 2, 2)
    view(sample, 3, strength=2.0)
    view(sample, timestep=3)
    view(timestep=3, sample=sample)
    assert seen == [(2, ["strength"]), (1, ["timestep"]), (0, ["sample", "timestep"])]


def test_further_keywords_are_arguments_like_others() -> None:
    class Open(nn.Module):
        def forward(self, x: Tensor, **kwargs: Any) -> Any:
            return kwargs

    calls = Calls()
    assert stand_in(Open(), calls)(torch.zeros(1, 1), a=1, b=2) == {"a": 1, "b": 2}
    assert [*calls[0].arguments] == ["x", "a", "b"]


def _starred(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def _starred_after(self: nn.Module, x: Any, *args: Any, **kwargs: Any) -> Any:
    return (x, *args), kwargs


def _by_place(self: nn.Module, x: Any, y: Any, /, *, a: Any = None) -> Any:
    return (x, y), {"a": a}


def _bare_decorated(*args: Any, **kwargs: Any) -> Any:
    """What a decorator without functools.wraps leaves."""
    return _starred(*args, **kwargs)


@pytest.mark.parametrize("method", [_starred, _starred_after, _by_place, _bare_decorated])
def test_arguments_without_a_name_are_diverted_too(method: Callable[..., Any]) -> None:
    kind = type("Kind", (nn.Module,), {"forward": method})
    model, calls = kind(), Calls()
    assert stand_in(model, calls)(5, 7, a=6) == ((5, 7), {"a": 6})
    assert calls[0].positional == (5, 7)
    assert calls[0].arguments == {"a": 6}


def test_only_names_by_keyword_even_if_the_method_is_open() -> None:
    kind = type("Kind", (nn.Module,), {"forward": _starred})
    calls = Calls()
    assert stand_in(kind(), calls)(a=6) == ((), {"a": 6})
    assert calls[0].positional == ()


def test_a_decorator_may_take_more_than_the_method() -> None:
    def with_output(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def wrapped(self: Any, *args: Any, return_dict: bool = False, **kwargs: Any) -> Any:
            found = method(self, *args, **kwargs)
            return {"found": found} if return_dict else found

        return wrapped

    class Decorated(nn.Module):
        @with_output
        def forward(self, x: int, y: int = 1) -> int:
            return x + y

    calls = Calls()
    view = stand_in(Decorated(), calls)
    assert [*inspect.signature(view.forward).parameters] == ["x", "y"]
    assert view(1, y=2) == 3
    assert view(x=1, return_dict=True) == {"found": 2}
    assert view(1, return_dict=True) == {"found": 2}
    assert [(call.positional, dict(call.arguments)) for call in calls] == [
        ((), {"x": 1, "y": 2}),
        ((), {"x": 1, "return_dict": True}),
        ((1,), {"return_dict": True}),
    ]


def test_a_call_that_cannot_be_is_the_models_error() -> None:
    with pytest.raises(TypeError, match="sample"):
        stand_in(Denoiser(), Calls())(timestep=1)


def test_a_call_is_made_under_the_autocast_of_who_made_it() -> None:
    class Which(nn.Module):
        def forward(self) -> Any:
            return [torch.is_autocast_enabled(device) for device in ("cpu", "cuda")], torch.get_autocast_dtype("cpu")

    calls: list[ModelCall] = []
    view = stand_in(Which(), calls.append)
    view()
    with torch.autocast("cpu", torch.float16):
        view()
    plain, cast = calls
    assert plain.autocast == ()
    assert cast.autocast == (("cpu", torch.float16),)
    assert plain.run() == ([False, False], torch.bfloat16)
    assert cast.run() == ([True, False], torch.float16)
    assert not torch.is_autocast_enabled("cpu")
    both = ModelCall(
        module=Which(),
        method="forward",
        arguments={},
        autocast=(("cpu", torch.bfloat16), ("cpu", torch.float16)),
        settings=(),
    )
    assert both.run() == ([True, False], torch.float16)


def test_a_stand_in_that_fails_says_so_to_the_library() -> None:
    class Broken(Exception):
        pass

    def divert(call: ModelCall) -> Any:
        raise Broken

    view = stand_in(Denoiser(), divert)
    with pytest.raises(Broken):
        view(torch.zeros(1, 3, 2, 2), 1)
