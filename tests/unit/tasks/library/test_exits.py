"""Code that wants to end the program, wherever it runs, ends its own request; the thread goes on, or leaves nobody."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kamado.contracts import Work
from kamado.engine.session import Session
from kamado.errors import Cancelled, GenerationFailed
from kamado.events import Event, Finished

from .toys import Denoiser, Hearth, denoise, end_of

WAIT_S = 30


class Sink:
    def __init__(self) -> None:
        self.events: list[Event] = []
        self.closed = threading.Event()

    def put(self, event: Event) -> None:
        self.events.append(event)

    def close(self) -> None:
        self.closed.set()


class Exits(nn.Module):
    def forward(self, sample: Tensor) -> Tensor:
        raise SystemExit(3)


class Panic(BaseException):
    """As extensions written in Rust raise it."""


@pytest.mark.parametrize("where", ["model", "host"])
def test_a_lane_in_which_code_exits(where: str) -> None:
    hearth = Hearth({"unet": Denoiser(), "bad": Exits()})
    session, sinks = Session(hearth.loop, torch.inference_mode), {name: Sink() for name in ("bad", "good", "next")}

    def whole() -> None:
        raise SystemExit(3)

    def exits(script: Any, models: Any) -> Any:
        if where == "model":
            return models.bad(torch.zeros(1, 3))
        return script.ask(Work("start", object(), 1, whole))

    session.submit("bad", [hearth.task("bad", exits)], sinks["bad"])
    session.submit("good", [hearth.task("good", denoise(2, 1))], sinks["good"])
    assert sinks["bad"].closed.wait(WAIT_S)
    error = end_of(sinks["bad"].events, "bad").error
    assert isinstance(error, GenerationFailed) and "exit(3)" in str(error)
    session.submit("next", [hearth.task("next", denoise(2, 1))], sinks["next"])
    for name in ("good", "next"):
        assert sinks[name].closed.wait(WAIT_S)
        assert end_of(sinks[name].events, name).reason == "complete"
    session.close()


def test_a_step_that_panics_ends_those_in_flight_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    hearth = Hearth({"unet": Denoiser()})
    session, sinks = Session(hearth.loop, torch.inference_mode), {name: Sink() for name in ("first", "second")}
    step = hearth.loop.step

    def panics() -> list[Event]:
        monkeypatch.setattr(hearth.loop, "step", step)
        raise Panic("index out of bounds")

    monkeypatch.setattr(hearth.loop, "step", panics)
    for name, reason in (("first", "failed"), ("second", "complete")):
        session.submit(name, [hearth.task(name, denoise(2, 1))], sinks[name])
        assert sinks[name].closed.wait(WAIT_S)
        assert end_of(sinks[name].events, name).reason == reason
    session.close()


@pytest.mark.parametrize("broken_loop", [False, True])
def test_a_thread_that_cannot_start_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch, broken_loop: bool) -> None:
    @contextmanager
    def broken() -> Iterator[None]:
        raise SystemExit("no device")
        yield

    hearth, sink = Hearth({"unet": Denoiser()}), Sink()
    if broken_loop:
        monkeypatch.setattr(hearth.loop, "cancel", lambda *_: 1 / 0)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    session = Session(hearth.loop, broken)
    session.submit("a", [hearth.task("a", denoise(2, 1))], sink)
    assert sink.closed.wait(WAIT_S)
    assert broken_loop or [type(each) for each in sink.events if isinstance(each, Finished)] == [Finished]
    with pytest.raises(Cancelled):
        session.submit("b", [hearth.task("b", denoise(2, 1))], Sink())
    session.close()
