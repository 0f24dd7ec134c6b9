"""Library code on the loop's own thread, with requests that come from others."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from kamado.engine.session import Session
from kamado.errors import Cancelled, GenerationFailed
from kamado.events import Event, Finished

from .toys import Denoiser, Hearth, denoise, denoised, end_of


class Sink:
    def __init__(self) -> None:
        self.events: list[Event] = []
        self.closed = threading.Event()
        self.ended_on: set[str] = set()

    def put(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Finished):
            self.ended_on.add(threading.current_thread().name)

    def close(self) -> None:
        self.closed.set()


@pytest.fixture
def hearth() -> Hearth:
    torch.manual_seed(5)
    return Hearth({"unet": Denoiser()})


def test_tasks_made_on_threads_that_have_gone(hearth: Hearth) -> None:
    session, sinks = Session(hearth.loop, torch.inference_mode), {str(seed): Sink() for seed in range(6)}

    def submit(name: str) -> None:
        session.submit(name, [hearth.task(name, denoise(4, int(name)))], sinks[name])

    threads = [threading.Thread(target=submit, args=(name,)) for name in sinks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, sink in sinks.items():
        assert sink.closed.wait(30)
        assert sink.ended_on == {"kamado-loop"}
        wanted = denoised(hearth.models["unet"], 4, int(name))
        assert torch.allclose(end_of(sink.events, name).output, wanted, atol=1e-5)
    session.close()


def test_code_that_wants_to_end_the_program_ends_its_request(hearth: Hearth) -> None:
    session, sinks = (
        Session(hearth.loop, torch.inference_mode),
        {name: Sink() for name in ("exits", "late exit", "good")},
    )

    def exits(script: Any, models: Any) -> None:
        raise SystemExit(1)

    def exits_late(script: Any, models: Any) -> None:
        try:
            while True:
                models.unet(torch.zeros(1, 3, 2, 2), 1)
        finally:
            raise SystemExit(1)

    for name, body in (("late exit", exits_late), ("exits", exits), ("good", denoise(2, 1))):
        session.submit(name, [hearth.task(name, body)], sinks[name])
    session.cancel("late exit")
    assert all(sink.closed.wait(30) for sink in sinks.values())
    assert isinstance(end_of(sinks["exits"].events, "exits").error, GenerationFailed)
    assert isinstance(end_of(sinks["late exit"].events, "late exit").error, Cancelled)
    assert end_of(sinks["good"].events, "good").reason == "complete"
    session.close()


def test_closing_ends_code_that_is_under_way(hearth: Hearth) -> None:
    session, sink = Session(hearth.loop, torch.inference_mode), Sink()
    running, ended = threading.Event(), threading.Event()

    def endless(script: Any, models: Any) -> None:
        try:
            while True:
                models.unet(torch.zeros(1, 3, 2, 2), 1)
                running.set()
        finally:
            ended.set()

    session.submit("a", [hearth.task("a", endless)], sink)
    assert running.wait(30)
    session.close()
    assert ended.is_set()
    assert end_of(sink.events, "a").reason == "cancelled"
    assert sink.closed.is_set()


def test_the_librarys_modes_on_that_thread_are_its_own(hearth: Hearth) -> None:
    """Some code switches inference mode off for itself; forwards stay inside it."""
    session, sinks = Session(hearth.loop, torch.inference_mode), {name: Sink() for name in "ab"}

    def switching(script: Any, models: Any) -> list[bool]:
        found = []
        with torch.inference_mode(False), torch.enable_grad():
            for _ in range(3):
                found.append(models.unet(torch.zeros(1, 3, 2, 2), 1).is_inference())
                found.append(torch.zeros(1).is_inference())
        found.append(torch.zeros(1).is_inference())
        return found

    for name, body in (("a", switching), ("b", switching)):
        session.submit(name, [hearth.task(name, body)], sinks[name])
    for name, sink in sinks.items():
        assert sink.closed.wait(30)
        assert end_of(sink.events, name).output == [True, False] * 3 + [True]
    session.close()
