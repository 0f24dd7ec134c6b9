"""Views: what one request sets on a model or anywhere in it, and what the model notes about itself."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.modeling_utils import get_parameter_device
from diffusers.utils.torch_utils import get_module_execution_device
from torch import Tensor, nn

from kamado.tasks.library.standin import ModelCall, stand_in
from kamado.tasks.library.views import _View

from .toys import Hearth, end_of


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(2, 2, bias=False)
        self.processor: Callable[[Tensor], Tensor] = torch.tanh
        self.register_buffer("offset", torch.zeros(2))
        self.last: Any = None

    def forward(self, x: Tensor) -> Tensor:
        found = self.processor(self.lin(x)) + self.offset
        self.last = len(x)
        return found


class Net(nn.Module):
    """Parts in parts, and one of them under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block() for _ in range(3)])
        self.shared = nn.Linear(2, 2)
        self.shared_too = self.shared
        self.nothing = None
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        for block in self.blocks:
            x = block(x)
        return self.shared_too(self.shared(x))


CHANGES: dict[str, Callable[[Any], Any]] = {
    "attribute of a part": lambda net: setattr(net.blocks[1], "processor", torch.sin),
    "new attribute of a part": lambda net: setattr(net.blocks[2].lin, "label", "mine"),
    "hook on a part": lambda net: net.blocks[1].register_forward_hook(lambda module, args, output: output * 2),
    "hook before a part": lambda net: net.shared.register_forward_pre_hook(lambda module, args: (args[0] * 2,)),
    "buffer of a part": lambda net: setattr(net.blocks[0], "offset", torch.ones(2)),
    "weight of a part": lambda net: setattr(net.blocks[0].lin, "weight", nn.Parameter(torch.ones(2, 2))),
    "swapped part": lambda net: setattr(net, "shared_too", nn.Identity()),
    "swapped part of a part": lambda net: setattr(net.blocks[1], "lin", nn.Identity()),
    "swapped in a list": lambda net: net.blocks.__setitem__(1, nn.Identity()),
    "shorter list": lambda net: net.blocks.__delitem__(1),
    "longer list": lambda net: net.blocks.append(nn.Identity()),
    "another list": lambda net: setattr(net, "blocks", nn.ModuleList([nn.Identity()])),
    "training": lambda net: net.train(not net.training),
    "by way of apply": lambda net: net.apply(lambda module: setattr(module, "seen", True)),
    "by way of modules": lambda net: [setattr(module, "processor", torch.cos) for module in net.modules()],
    "by way of names": lambda net: setattr(dict(net.named_modules())["blocks.1"], "processor", torch.cos),
    "by way of children": lambda net: [setattr(child, "seen", True) for child in net.children()],
}


def fingerprint(model: nn.Module) -> list[Any]:
    """All that can be set on a model."""
    return [
        (name, {key: list(value.items()) if isinstance(value, dict) else value for key, value in vars(module).items()})
        for name, module in model.named_modules()
    ]


@pytest.mark.parametrize("what", list(CHANGES))
def test_whatever_is_changed_is_changed_for_one_request(what: str) -> None:
    torch.manual_seed(1)
    model, calls = Net(), []
    reference = Net()
    reference.load_state_dict(model.state_dict())
    before = fingerprint(model)
    view, other = (stand_in(model, lambda call: calls.append(call) or call.run()) for _ in range(2))
    CHANGES[what](view)
    CHANGES[what](reference)
    assert [(n, {k: v for k, v in d.items() if k != "runs"}) for n, d in fingerprint(model)] == [
        (n, {k: v for k, v in d.items() if k != "runs"}) for n, d in before
    ]
    x = torch.randn(3, 2)
    for number in range(2):
        assert torch.equal(view(x), reference(x))
        assert calls[number].settings != ()
        assert calls[number].module is not model
    plain = Net()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(other(x), plain(x))
    assert calls[2].settings == ()
    assert calls[2].module is model


def test_two_requests_with_changes_of_parts_never_share_a_forward() -> None:
    calls: list[ModelCall] = []
    model = Net()
    for _ in range(2):
        view = stand_in(model, calls.append)
        view.blocks[0].processor = torch.sin
        view(torch.zeros(1, 2))
    assert calls[0].settings != calls[1].settings


def test_two_requests_that_swap_in_the_same_part_may() -> None:
    calls: list[ModelCall] = []
    model, part = Net(), nn.Identity()
    for _ in range(2):
        view = stand_in(model, calls.append)
        view.shared = part
        assert view.shared is part
        view(torch.zeros(1, 2))
    assert calls[0].settings == calls[1].settings != ()


def test_what_is_set_back_is_no_change() -> None:
    calls: list[ModelCall] = []
    model = Net()
    view = stand_in(model, calls.append)
    before = [block.processor for block in view.blocks]
    handle = view.blocks[0].register_forward_hook(lambda *_: None)
    for block in view.blocks:
        block.processor = torch.sin
    view(torch.zeros(1, 2))
    for block, processor in zip(view.blocks, before, strict=True):
        block.processor = processor
    handle.remove()
    view(torch.zeros(1, 2))
    assert calls[0].settings != ()
    assert calls[1].settings == ()
    assert calls[1].module is model


def test_looking_changes_nothing() -> None:
    calls: list[ModelCall] = []
    model = Net()
    view = stand_in(model, calls.append)
    assert view.blocks[0] is view.blocks[0]
    assert view.shared is view.shared_too
    assert view.nothing is None
    assert [name for name, _ in view.named_children()] == [name for name, _ in model.named_children()]
    assert [name for name, _ in view.named_modules()] == [name for name, _ in model.named_modules()]
    assert next(view.modules()) is view
    assert view.get_submodule("blocks.1.lin") is view.blocks[1].lin
    assert len(view.blocks) == 3
    assert [type(block) for block in view.blocks[1:]] == [Block, Block]
    assert view._modules.get("blocks") is view.blocks
    assert view._modules.get("absent", 5) == 5
    assert "blocks" in view._modules
    assert torch.equal(view.shared(torch.ones(1, 2)), model.shared(torch.ones(1, 2)))
    assert view.eval().training is False
    view = stand_in(model.eval(), calls.append).eval()
    view(torch.zeros(1, 2))
    assert calls[0].settings == ()


def test_hooks_of_the_model_run_once_and_those_of_the_request_around_its_own_call() -> None:
    seen: list[tuple[str, int]] = []
    model = Net()
    model.register_forward_pre_hook(lambda module, args: seen.append(("model", len(args[0]))))
    model.register_forward_hook(lambda module, args, output: output + 1)
    plain = model(torch.zeros(2, 2))
    seen.clear()
    view = stand_in(model, lambda call: call.run({"x": torch.zeros(4, 2)})[:2])
    view.register_forward_hook(lambda module, args, output: (seen.append(("request", len(output))), output * 3)[1])
    assert torch.allclose(view(torch.zeros(2, 2)), plain * 3)
    assert seen == [("model", 4), ("request", 2)]
    seen.clear()
    model(torch.zeros(1, 2))
    assert seen == [("model", 1)]


def test_what_the_model_notes_about_itself_is_seen() -> None:
    model = Net()
    view = stand_in(model, lambda call: call.run())
    assert view.runs == 0
    assert view.blocks[0].last is None
    view(torch.zeros(2, 2))
    view(torch.zeros(3, 2))
    assert view.runs == model.runs == 2
    assert view.blocks[0].last == 3
    view.blocks[0].last = "mine"
    view(torch.zeros(4, 2))
    assert view.blocks[0].last == 4  # the request's own part has noted it
    assert model.blocks[0].last == 3


def test_one_request_does_not_hear_through_its_hook_what_another_computes() -> None:
    """As pipelines do that take hidden states from the middle of a text encoder."""
    model = Net()
    hearth = Hearth({"net": model})

    def body(number: int) -> Callable[[Any, Any], Any]:
        def run(script: Any, models: Any) -> Any:
            heard = []
            handle = models.net.blocks[1].register_forward_hook(lambda module, args, output: heard.append(output))
            models.net(torch.full((1, 2), float(number)))
            handle.remove()
            (only,) = heard
            return only

        return run

    for number in range(3):
        hearth.add(str(number), body(number))
    events = hearth.run()
    for number in range(3):
        x = torch.full((1, 2), float(number))
        for block in list(model.blocks)[:2]:
            x = block(x)
        assert torch.allclose(end_of(events, str(number)).output, x)


def test_nothing_of_a_view_is_left() -> None:
    model = Net()
    view = stand_in(model, lambda call: call.run())
    view.blocks[0].processor = torch.sin
    view(torch.zeros(1, 2))
    gone = [weakref.ref(view), weakref.ref(view.blocks), weakref.ref(view.blocks[0])]
    del view
    gc.collect()
    assert [reference() for reference in gone] == [None] * 3
    assert all(type(part) is Block for part in model.blocks)


def test_who_only_looks_makes_no_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pipelines ask where a model is by walking through all of it; what the request has set up itself they do see."""
    made: list[nn.Module] = []
    init = _View.__init__

    def counted(self: _View, original: nn.Module, view: Any) -> None:
        made.append(original)
        init(self, original, view)

    monkeypatch.setattr(_View, "__init__", counted)
    model, calls = Net(), []
    view = stand_in(model, calls.append)

    def reset_stateful_hooks(net: nn.Module) -> dict[str, nn.Module]:
        return dict(net.named_modules())

    assert get_module_execution_device(view) == get_parameter_device(view) == torch.device("cpu")
    found = reset_stateful_hooks(view)
    assert found[""] is view and found["blocks.1"] is model.blocks[1]
    assert made == [model]
    part = view.blocks[1]
    assert reset_stateful_hooks(view)["blocks.1"] is part and len(made) == 3
    view.shared_too = nn.Identity()
    found = reset_stateful_hooks(view)
    assert found["shared_too"] is view.shared_too and found["blocks.1"] is part
    other = stand_in(model, calls.append)
    made.clear()
    assert len([*other.modules()]) == len([*model.modules()]) == len(made) + 1
