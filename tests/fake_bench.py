"""A model whose requests take exactly known times, on a clock of its own or on the real one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from PIL import Image

from fake_model import FakeRuntime, make_plan
from kamado.errors import InvalidRequest, KamadoError
from kamado.events import Event, Finished, Progress, Started, Token
from kamado.memory.devices import DeviceFacts, fake_device
from kamado.memory.plan import Plan
from kamado.memory.rates import Rates
from kamado.results import Result, Timings, Usage

RATES = Rates(read_bytes_per_s=1e10, copy_bytes_per_s=1e10, operations_per_s={"float32": 1e11, "int8": 4e11})


@dataclass
class TimedJob:
    """A request, with what came of it and when."""

    submitted_s: float
    events: list[tuple[Event, float]]
    images: tuple[Any, ...] = ()
    usage: Usage = field(default_factory=Usage)
    error: KamadoError | None = None
    after_s: float = 0.0
    """How long it really takes to end."""
    cancelled: bool = False
    on_result: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self._ended = threading.Event()
        self._callbacks: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        if self.after_s:
            threading.Timer(self.after_s, self._end).start()
        else:
            self._end()

    def _end(self) -> None:
        with self._lock:
            self._ended.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def when_done(self, callback: Callable[[], None]) -> None:
        with self._lock:
            if not self._ended.is_set():
                self._callbacks.append(callback)
                return
        callback()

    def result(self) -> Result:
        self._ended.wait()
        self.on_result()
        if self.error is not None:
            raise self.error
        total = self.events[-1][1] - self.submitted_s
        return Result(request_id="r1", images=self.images, usage=self.usage, timings=Timings(total_s=total))

    def arrivals(self) -> list[tuple[Event, float]]:
        return self.events

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class TimedModel:
    """A token of a prompt takes `read_s`, one of an answer `made_s`; a request that is submitted while others run does
    not slow them down. `failing`: numbers of requests, from 1, that fail."""

    read_s: float = 0.001
    made_s: float = 0.01
    reference: str = "fake"
    plan: Plan = field(default_factory=lambda: make_plan(context_tokens=2000, kv_tokens=20_000))
    capabilities: tuple[str, ...] = ("text",)
    takes: Any = None
    info: dict[str, Any] = field(
        default_factory=lambda: {"vocab_size": 1000, "hidden_size": 100, "parameters": 10_100_000}
    )
    loaded: Any = field(default_factory=SimpleNamespace)
    owner: str = "fake#1"
    real: bool = False
    """Whether the times pass for real."""
    failing: frozenset[int] = frozenset()
    takes_prompt: bool = True
    missing_tokens: int = 0
    guessed: tuple[int, int] = (0, 0)
    """Tokens of each answer that were proposed, and accepted."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    jobs: list[TimedJob] = field(default_factory=list)
    unloaded: bool = False
    held_bytes: int = 40_000_000
    steps: int = 0
    """Forwards up to now: ten for each group of requests that were submitted before anybody asked for a result."""
    rows: int = 0
    clock: Callable[[], float] = time.monotonic
    runtime: Any = None
    product_side: int = 0
    """Of two matrices that are multiplied for each picture."""
    _all_seen: bool = True

    def submit(self, **request: Any) -> TimedJob:
        if not self.takes_prompt and "prompt" in request:
            raise InvalidRequest("this model takes no prompt")
        self.requests.append(request)
        now = self.clock()
        job = self._picture(request, now) if "image" in self.capabilities else self._text(request, now)
        job.on_result = self._look
        self.jobs.append(job)
        self.steps += 10 if self._all_seen else 0
        self.rows += 10
        self._all_seen = False
        return job

    def _look(self) -> None:
        self._all_seen = True

    def generate(self, **request: Any) -> Result:
        return self.submit(**request).result()

    def _text(self, request: Mapping[str, Any], now: float) -> TimedJob:
        length = len(request.get("prompt_tokens") or request["prompt"].split())
        first = now + length * self.read_s
        number = request["max_tokens"] - self.missing_tokens
        tokens = [(Token("r1", 0, 7, "x"), first + i * self.made_s) for i in range(number)]
        end = tokens[-1][1] if tokens else first
        error = KamadoError("it broke") if len(self.requests) in self.failing else None
        events: list[tuple[Event, float]] = [(Started("r1"), now), *tokens, (Finished("r1", "length"), end)]
        return TimedJob(
            now,
            events,
            usage=Usage(
                prompt_tokens=length,
                completion_tokens=number,
                proposed_tokens=self.guessed[0],
                accepted_tokens=self.guessed[1],
            ),
            error=error,
            after_s=end - now if self.real else 0.0,
        )

    def _picture(self, request: Mapping[str, Any], now: float) -> TimedJob:
        steps = request.get("steps", 4)
        done = [(Progress("r1", i + 1, steps), now + (i + 1) * self.made_s) for i in range(steps)]
        end = done[-1][1] + self.made_s
        size = (request.get("width", 8), request.get("height", 8))
        if self.product_side:
            import torch

            matrix = torch.ones(self.product_side, self.product_side, dtype=torch.float32, device="cpu")
            torch.mm(matrix, matrix)
        return TimedJob(now, [*done, (Finished("r1", "complete"), end)], images=(Image.new("RGB", size),))

    def usage(self) -> Mapping[str, Any]:
        return {"compile_s": 1.5}

    def unload(self) -> None:
        self.unloaded = True


@dataclass
class BenchRuntime(FakeRuntime):
    """Knows how many rows its forwards had."""

    model: Any = field(default_factory=TimedModel)
    device: DeviceFacts = field(default_factory=lambda: replace(fake_device(), rates=RATES))

    def __post_init__(self) -> None:
        self.model.runtime = self
        self._session = SimpleNamespace(call=lambda function: function())
        self.written: list[int] = []
        """How many requests there had been when what is kept for later loads was written."""
        self._keeping = SimpleNamespace(finish=lambda: self.written.append(len(self.model.requests)))

    def stats(self) -> dict[str, Any]:
        own = {"steps": self.model.steps, "rows": self.model.rows}
        return {
            "ledger": {"cpu": {"fake#1": {"weights": self.model.held_bytes, "kv": 5}}},
            "lanes": {"fake#1/lm": own, "other#2/lm": {"steps": 1, "rows": 9}},
        }
