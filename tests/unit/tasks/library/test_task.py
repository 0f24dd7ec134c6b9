"""Library code in the loop: requests share forwards, and each ends by itself."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import greenlet
import pytest
import torch
from torch import Tensor

from kamado.contracts import Work
from kamado.errors import Cancelled, DeadlineExceeded, GenerationFailed, InvalidRequest, UnsupportedCheckpoint
from kamado.events import Event, Finished, Media, Progress, Started
from kamado.tasks.library.task import LibraryTask

from .toys import Denoiser, Hearth, denoise, denoised, end_of


@pytest.fixture(autouse=True)
def greenlets(monkeypatch: pytest.MonkeyPatch) -> Iterator[weakref.WeakSet[greenlet.greenlet]]:
    """All that were made. At the end none of them waits for anything."""
    made: weakref.WeakSet[greenlet.greenlet] = weakref.WeakSet()

    class Counted(greenlet.greenlet):  # type: ignore[misc]
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.add(self)

    monkeypatch.setattr(greenlet, "greenlet", Counted)
    yield made
    assert waiting(made) == 0


def waiting(made: Iterable[greenlet.greenlet]) -> int:
    return sum(bool(each) for each in made)


@pytest.fixture
def unet() -> Denoiser:
    torch.manual_seed(5)
    return Denoiser()


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("trusted", [True, False])
def test_requests_with_other_numbers_of_steps_share_forwards(unet: Denoiser, trusted: bool, inference: bool) -> None:
    steps = {"a": 3, "b": 5, "c": 7, "d": 5}
    with torch.inference_mode(inference), torch.no_grad():
        wanted = {name: denoised(unet, count, seed) for seed, (name, count) in enumerate(steps.items())}
        unet.batches.clear()
        hearth = Hearth({"unet": unet}, trusted=trusted)
        for seed, (name, count) in enumerate(steps.items()):
            hearth.add(name, denoise(count, seed))
        events = hearth.run()
    compared = [] if trusted else [1, 1, 1, 1]
    assert unet.batches == [4, *compared, 4, 4, 3, 3, 1, 1]
    assert hearth.loop.forwards.steps_by_lane == {"start": 1, "unet": 7}
    assert hearth.loop.forwards.rows_by_lane == {"start": 4, "unet": sum(steps.values())}
    for name in steps:
        end = end_of(events, name)
        assert (end.reason, end.error) == ("complete", None)
        assert torch.allclose(end.output, wanted[name], atol=1e-5)


def test_late_ones_join_and_those_with_other_rows_or_settings_do_what_they_can(unet: Denoiser) -> None:
    hearth = Hearth({"unet": unet}, trusted=True)
    hearth.add("first", denoise(6, 1))
    for _ in range(3):
        hearth.loop.step()
    hearth.add("double", denoise(4, 2, rows=2))
    hearth.add("strong", denoise(2, 3, strength=0.5))
    events = hearth.run()
    for name, body in {
        "first": (6, 1, 1, 1.0),
        "double": (4, 2, 2, 1.0),
        "strong": (2, 3, 1, 0.5),
    }.items():
        steps, seed, rows, strength = body
        wanted = denoised(unet, steps, seed, rows=rows, strength=strength)
        assert torch.allclose(end_of(events, name).output, wanted, atol=1e-5)
    assert max(unet.batches[:12]) == 3, "one row and two in a forward"


def test_a_batch_has_no_more_calls_than_the_lane_takes(unet: Denoiser) -> None:
    hearth = Hearth({"unet": unet}, trusted=True, max_rows=2)
    for seed in range(5):
        hearth.add(str(seed), denoise(2, seed))
    hearth.run()
    assert max(unet.batches) == 2
    assert sum(unet.batches) == 10


def test_events_come_in_order_and_the_last_once(unet: Denoiser) -> None:
    def body(script: Any, models: Any) -> str:
        assert (script.request_id, script.index) in (("a", 0), ("a", 1))
        for step in range(3):
            models.unet(torch.zeros(1, 3, 2, 2), 1)
            script.emit(Progress(script.request_id, step + 1, 3))
        script.emit(Media(script.request_id, script.index, "image", f"picture {script.index}"))
        return f"output {script.index}"

    hearth = Hearth({"unet": unet})
    for index in range(2):
        hearth.add("a", body, index=index)
    events = hearth.run()
    assert [type(event) for event in events].count(Started) == 1
    assert isinstance(events[0], Started)
    for index in range(2):
        assert end_of(events, "a", index).output == f"output {index}"
        position = {kind: i for i, kind in enumerate(events) if getattr(kind, "index", None) == index}
        kinds = [type(event) for event in position]
        assert kinds[-2:] == [Media, Finished]
    assert [event.step for event in events if isinstance(event, Progress)] == [1, 1, 2, 2, 3, 3]
    assert len(hearth.loop._started) == 0


def test_code_that_asks_for_nothing_ends_with_its_start(unet: Denoiser) -> None:
    hearth = Hearth({"unet": unet})
    task = hearth.add("a", lambda script, models: 7)
    events = hearth.loop.step()
    assert [type(event) for event in events] == [Started, Finished]
    assert (end_of(events, "a").output, task.output, task.work(1)) == (7, 7, None)
    assert len(hearth.loop.scheduler) == 0


def test_nothing_runs_before_its_turn(unet: Denoiser) -> None:
    ran: list[str] = []
    hearth = Hearth({"unet": unet})
    hearth.add("a", lambda script, models: ran.append("a"))
    assert ran == []
    hearth.loop.cancel("a")
    assert ran == []
    assert len(hearth.loop.scheduler) == 0


class Watched:
    """Library code that keeps account of what is still open."""

    def __init__(self, steps: int = 4) -> None:
        self.steps = steps
        self.open: set[str] = set()
        self.held: list[weakref.ref[Any]] = []

    def numbers(self) -> Iterator[int]:
        self.open.add("generator")
        try:
            yield from range(self.steps)
        finally:
            self.open.discard("generator")

    def body(self, script: Any, models: Any) -> Tensor:
        latents = torch.zeros(1, 3, 2, 2)
        self.held.append(weakref.ref(latents))
        self.open.add("function")
        try:
            with torch.autocast("cpu", torch.bfloat16), torch.enable_grad():
                for number in self.numbers():
                    latents = models.unet(latents, number + 1)
                    script.emit(Progress(script.request_id, number, self.steps))
        finally:
            self.open.discard("function")
            script.emit(Progress(script.request_id, 99, 99))
        return latents.sum()


@pytest.mark.parametrize("how", ["cancelled", "deadline", "failed"])
@pytest.mark.parametrize("after", range(9))
def test_a_request_that_is_ended_at_any_step_leaves_nothing(
    unet: Denoiser, after: int, how: str, greenlets: weakref.WeakSet[greenlet.greenlet]
) -> None:
    hearth, watched = Hearth({"unet": unet}), Watched()
    other = hearth.add("other", denoise(3, 1))
    task = hearth.add("a", watched.body)
    events: list[Event] = []
    for _ in range(after):
        events += hearth.loop.step()
    if not hearth.loop.has("a"):
        assert after == 8, "all the steps of both"
        return
    if how == "cancelled":
        events += hearth.loop.cancel("a")
    elif how == "failed":
        events += hearth.loop.cancel("a", GenerationFailed("from outside"))
    else:
        task.deadline = 0.0
        events += hearth.loop._expire()
    end = end_of(events, "a")
    assert end.reason == how
    assert isinstance(
        end.error, {"cancelled": Cancelled, "deadline": DeadlineExceeded, "failed": GenerationFailed}[how]
    )
    assert watched.open == set()
    assert all(reference() is None for reference in watched.held)
    assert waiting(greenlets) == (after > 0 and hearth.loop.has("other")), "others wait than the other request"
    assert hearth.loop.cancel("a") == []
    rest = hearth.run()
    assert not [event for event in rest if event.request_id == "a"]
    assert torch.allclose(end_of([*events, *rest], "other").output, denoised(unet, 3, 1), atol=1e-5)
    assert other.output is not None


def test_a_deadline_comes_between_steps(unet: Denoiser) -> None:
    hearth, watched = Hearth({"unet": unet}), Watched(steps=50)
    hearth.add("late", watched.body, deadline=20.0)
    end = end_of(hearth.run(), "late")
    assert end.reason == "deadline"
    assert 0 < len(unet.batches) < 50
    assert watched.open == set()


ERRORS: dict[str, tuple[Callable[[], BaseException], type[Exception], type[Exception]]] = {
    "value": (lambda: ValueError("height 7: must be a multiple of 8"), InvalidRequest, GenerationFailed),
    "type": (lambda: TypeError("no such argument"), InvalidRequest, GenerationFailed),
    "key": (lambda: KeyError("x"), GenerationFailed, GenerationFailed),
    "stop": (lambda: StopIteration(), GenerationFailed, GenerationFailed),
    "own": (lambda: UnsupportedCheckpoint("cannot"), UnsupportedCheckpoint, UnsupportedCheckpoint),
    "exit": (lambda: SystemExit(3), GenerationFailed, GenerationFailed),
    "empty": (lambda: ValueError(), InvalidRequest, GenerationFailed),
}


@pytest.mark.parametrize("forwards", [0, 2])
@pytest.mark.parametrize("kind", list(ERRORS))
def test_what_the_code_raises_ends_its_request_alone(unet: Denoiser, kind: str, forwards: int) -> None:
    make, early, late = ERRORS[kind]
    cause, held = make(), []

    def body(script: Any, models: Any) -> None:
        scratch = torch.zeros(1)
        held.append(weakref.ref(scratch))
        for _ in range(forwards):
            models.unet(torch.zeros(1, 3, 2, 2), 1)
        script.emit(Progress("bad", 1, 2))
        raise cause

    hearth = Hearth({"unet": unet})
    for name in ("x", "bad", "y"):
        hearth.add(name, body if name == "bad" else denoise(4, 1))
    events = hearth.run()
    end = end_of(events, "bad")
    assert end.reason == "failed"
    assert type(end.error) is (late if forwards else early)
    assert end.error is cause or end.error.__cause__ is cause
    assert str(end.error).strip()
    assert held[0]() is None, "the error keeps what the code computed with"
    for name in ("x", "y"):
        assert torch.allclose(end_of(events, name).output, denoised(unet, 4, 1), atol=1e-5)


def test_a_refusal_is_said_in_two_lines_at_most(unet: Denoiser) -> None:
    hearth = Hearth({"unet": unet})

    def body(script: Any, models: Any) -> None:
        raise ValueError("\n  first\n\n  second  \n third")

    hearth.add("a", body)
    assert str(end_of(hearth.run(), "a").error) == "first second"


@pytest.mark.parametrize("trusted", [True, False])
def test_a_forward_that_fails_ends_the_request_that_it_fails_for(unet: Denoiser, trusted: bool) -> None:
    closed: list[str] = []
    held: list[weakref.ref[Any]] = []
    fault = ArithmeticError("not with these numbers")

    class Faulty(Denoiser):
        def forward(self, sample: Tensor, timestep: Any, text: Tensor | None = None, *, strength: float = 1) -> Tensor:
            activations = sample * 2
            held.append(weakref.ref(activations))
            if (activations > 180).any():
                raise fault
            return super().forward(sample, timestep, text, strength=strength)

    def bad(script: Any, models: Any) -> None:
        try:
            sample = torch.zeros(1, 3, 2, 2)
            for step in torch.arange(3, 0, -1):
                models.unet(sample, step, torch.zeros(1, 4, 2), strength=1.0)
                sample = sample + 50
        except Exception:
            closed.append("caught")
            raise
        finally:
            closed.append("closed")

    model = Faulty()
    model.load_state_dict(unet.state_dict())
    hearth = Hearth({"unet": model}, trusted=trusted)
    for name in ("x", "bad", "y"):
        hearth.add(name, bad if name == "bad" else denoise(4, 1))
    events = hearth.run()
    end = end_of(events, "bad")
    assert end.reason == "failed"
    assert isinstance(end.error, GenerationFailed)
    assert end.error.__cause__ is fault
    assert closed == ["closed"]
    assert all(reference() is None for reference in held), "the error keeps what the model computed with"
    for name in ("x", "y"):
        assert end_of(events, name).reason == "complete"
        assert torch.allclose(end_of(events, name).output, denoised(unet, 4, 1), atol=1e-5)
    assert hearth.loop.forwards.splits > 0


def test_out_of_memory_halves_the_batch_and_ends_nobody(unet: Denoiser) -> None:
    class Large(Denoiser):
        def forward(self, sample: Tensor, timestep: Any, text: Tensor | None = None, *, strength: float = 1) -> Tensor:
            if len(sample) > 2:
                raise MemoryError
            return super().forward(sample, timestep, text, strength=strength)

    model = Large()
    model.load_state_dict(unet.state_dict())
    hearth = Hearth({"unet": model})
    for seed in range(6):
        hearth.add(str(seed), denoise(3, seed))
    events = hearth.run()
    for seed in range(6):
        assert torch.allclose(end_of(events, str(seed)).output, denoised(unet, 3, seed), atol=1e-5)
    assert max(model.batches) == 2


@pytest.mark.parametrize("seed", range(4))
def test_whatever_comes_and_goes_in_the_end_nothing_is_left(seed: int) -> None:
    """Fifty requests a seed: long and short, alone and with others, cancelled, late, faulty."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    model = Denoiser()
    hearth = Hearth({"unet": model}, max_rows=rng.choice([1, 3, 8]))
    wanted: dict[str, tuple[int, int, int]] = {}
    watches: list[Watched] = []
    events: list[Event] = []
    for number in range(50):
        name, kind = f"r{number}", rng.choice(["plain", "plain", "watched", "faulty", "late"])
        if kind == "plain":
            wanted[name] = rng.randrange(5), number, rng.choice([1, 2])
            hearth.add(name, denoise(*wanted[name][:2], rows=wanted[name][2]))
        elif kind == "faulty":
            hearth.add(name, lambda script, models: models.unet(torch.zeros(1, 2, 3, 4), 1))
        else:
            watches.append(Watched(rng.randrange(6)))
            deadline = hearth.loop.clock() + rng.randrange(20) if kind == "late" else None
            hearth.add(name, watches[-1].body, deadline=deadline)
        for _ in range(rng.randrange(3)):
            events += hearth.loop.step()
        if rng.random() < 0.3:
            events += hearth.loop.cancel(f"r{rng.randrange(number + 1)}")
    events += hearth.run()
    for number in range(50):
        end = end_of(events, f"r{number}")
        if end.reason == "complete" and end.request_id in wanted:
            steps, drawn, rows = wanted[end.request_id]
            assert torch.allclose(end.output, denoised(model, steps, drawn, rows=rows), atol=1e-5)
    assert {end.reason for end in events if isinstance(end, Finished)} == {
        "complete",
        "cancelled",
        "failed",
        "deadline",
    }
    assert all(watched.open == set() for watched in watches)
    assert len(hearth.loop.scheduler) == 0
    assert hearth.loop._started == set()


def test_a_task_that_is_never_run_goes_with_whoever_holds_it() -> None:
    class Held:
        pass

    held = Held()
    gone = weakref.ref(held)
    task = LibraryTask("a", lambda script, held=held: None, start_lane="start")  # type: ignore[misc]
    assert task.work(1) == Work("start", ("start",), 1, None)
    assert not task.holds()
    del held, task
    gc.collect()
    assert gone() is None


def test_a_task_is_ended_once() -> None:
    task = LibraryTask("a", lambda script: None, start_lane="start")
    task.release()
    assert task.accept(None).events == [Finished("a", "complete")]
    with pytest.raises(AssertionError, match="twice"):
        task.finish("cancelled")
