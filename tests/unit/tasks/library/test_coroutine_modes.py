"""What torch keeps per thread belongs to whoever runs: the coroutine, another one, or the code that resumes them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch

from kamado.tasks.library.coroutine import Coroutine, Ended, active_autocast


def modes() -> tuple[Any, ...]:
    """All that torch keeps per thread and library code changes."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        active_autocast(),
        *(torch.get_autocast_dtype(device) for device in ("cpu", "cuda")),
    )


CONTEXTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "nothing": nullcontext,
    "no grad": torch.no_grad,
    "grad": torch.enable_grad,
    "inference": torch.inference_mode,
    "no inference": lambda: torch.inference_mode(False),
    "bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "float16": lambda: torch.autocast("cpu", torch.float16),
    "cuda": lambda: _cuda_autocast(),
}


def _cuda_autocast() -> AbstractContextManager[Any]:
    """As torch.autocast("cuda") is, also where there is none."""

    class Switched:
        def __enter__(self) -> None:
            self.before = torch.is_autocast_enabled("cuda")
            torch.set_autocast_enabled("cuda", True)

        def __exit__(self, *_: Any) -> None:
            torch.set_autocast_enabled("cuda", self.before)

    return Switched()


@pytest.mark.parametrize("swallowed", [1, 3, 10**6])
def test_code_that_swallows_its_end_is_dropped(swallowed: int) -> None:
    """Also where it never lets go. The thread's modes are its own again."""
    asked = 0

    def function(coroutine: Coroutine) -> None:
        nonlocal asked
        with torch.no_grad(), torch.autocast("cpu", torch.float16):
            for _ in range(swallowed + 1):
                try:
                    asked += 1
                    coroutine.ask(asked)
                except BaseException:  # noqa: BLE001 - as bad code does
                    pass

    before = modes()
    coroutine = Coroutine(function)
    coroutine.resume()
    coroutine.close()
    assert not coroutine.running
    assert asked <= 20
    assert modes() == before


@pytest.mark.parametrize("outside", ["nothing", "no grad", "inference", "bfloat16", "cuda"])
@pytest.mark.parametrize("inside", list(CONTEXTS))
def test_modes_belong_to_whoever_runs(outside: str, inside: str) -> None:
    """Two that take turns, entering and leaving in an order that is not that of a stack."""
    seen: list[tuple[tuple[Any, ...], tuple[Any, ...]]] = []

    def function(coroutine: Coroutine, context: str) -> None:
        start = modes()
        coroutine.ask("before")
        with CONTEXTS[context]():
            entered = modes()
            for _ in range(2):
                coroutine.ask("within")
                seen.append((entered, modes()))
        coroutine.ask("after")
        seen.append((start, modes()))

    with CONTEXTS[outside]():
        before = modes()
        first = Coroutine(lambda coroutine: function(coroutine, inside))
        second = Coroutine(lambda coroutine: function(coroutine, "bfloat16"))
        order = [first, first, second, second, first, second, first, second, first, second]
        for coroutine in order:
            coroutine.resume()
            assert modes() == before
        assert not first.running
        assert not second.running
    assert len(seen) == 6
    assert all(wanted == found for wanted, found in seen)


@pytest.mark.parametrize("end", ["close", "raise", "return"])
@pytest.mark.parametrize("inside", list(CONTEXTS))
def test_modes_are_as_before_however_it_ends(inside: str, end: str) -> None:
    def function(coroutine: Coroutine) -> None:
        entered = CONTEXTS[inside]()
        entered.__enter__()
        coroutine.ask(1)
        if end == "raise":
            raise ValueError
        entered.__exit__(None, None, None)

    before = modes()
    coroutine = Coroutine(function)
    coroutine.resume()
    if end == "close":
        coroutine.close()
    elif end == "raise":
        with pytest.raises(ValueError):
            coroutine.resume()
    else:
        coroutine.resume()
    assert modes() == before


def test_gradients_of_the_one_are_not_switched_off_by_the_other() -> None:
    def trains(coroutine: Coroutine) -> float:
        weight = torch.ones(1, requires_grad=True)
        coroutine.ask(1)
        (weight * 3).sum().backward()
        assert weight.grad is not None
        return weight.grad.item()

    def infers(coroutine: Coroutine) -> bool:
        with torch.inference_mode():
            coroutine.ask(1)
            return torch.zeros(1).is_inference()

    one, other = Coroutine(trains), Coroutine(infers)
    one.resume()
    other.resume()
    assert one.resume().value == 3.0
    assert other.resume().value is True


def test_resuming_may_go_from_one_place_to_another() -> None:
    """Started outside of inference mode, ended inside of it: each has the mode that it had."""
    found = []
    coroutine = Coroutine(lambda coroutine: [found.append(modes()), coroutine.ask(1), found.append(modes())])
    coroutine.resume()
    with torch.inference_mode():
        before = modes()
        assert isinstance(coroutine.resume(), Ended)
        assert modes() == before
    assert found[0] == found[1]
