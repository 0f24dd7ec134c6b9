"""A model that answers at once and always the same: what commands need of `kamado.api`, without weights."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from kamado.errors import Cancelled, ContextOverflow, GenerationFailed, KamadoError
from kamado.events import Event, Finished, FinishReason, Started, Token, TokenLogprob
from kamado.memory.devices import DeviceFacts, fake_device
from kamado.memory.plan import LanePlan, Plan
from kamado.requests import TextOptions, resolve_text_options
from kamado.results import Choice, Failure, Result, Timings, TokenChoice, Usage

CONTEXT_TOKENS = 200


def make_plan(**changes: Any) -> Plan:
    """A plan of 100 MB that fits."""
    lane = LanePlan(lane="text", device="cpu", dtype="float32", weight_bytes=10**8, activation_bytes=10**6)
    facts: dict[str, Any] = {
        "reference": "fake",
        "family": "fakes",
        "architecture": "FakeForCausalLM",
        "device": "cpu",
        "dtype": "float32",
        "quant": None,
        "lanes": (lane,),
        "context_tokens": CONTEXT_TOKENS,
        "kv_tokens": 1000,
        "kv_bytes_per_token": 1024,
        "max_sequences": 0,
        "available_bytes": 10**9,
        "minimum_bytes": 102_000_000,
        "options": ("--quant int8 would make it smaller.",),
    }
    return Plan(**(facts | changes))


@dataclass
class FakeModel:
    """Says back what it was asked, word by word. A prompt with `boom` fails while it runs, `slow` sleeps per word."""

    delay_s: float = 0.0
    requests: list[dict[str, Any]] = field(default_factory=list)
    """Options of every request, in order."""
    closed_streams: int = 0
    interrupt_at: int | None = None
    """Raise KeyboardInterrupt instead of this token, as Ctrl-C would."""
    recipe_model: str = "fake"
    recipe_dtype: str = "float32"
    reference: str = "fake"
    plan: Plan = field(default_factory=make_plan)
    capabilities: tuple[str, ...] = ("text",)
    info: dict[str, Any] = field(default_factory=dict)
    failing: frozenset[int] = frozenset()
    """Answers of each request that fail after their first word."""

    def prepare(self, prompt: str | None, options: Mapping[str, Any]) -> tuple[TextOptions, str]:
        request = {**options} if prompt is None else {"prompt": prompt, **options}
        self.requests.append(request)
        resolved = resolve_text_options(request)
        asked = (
            resolved.prompt
            or " ".join(str(turn["content"]) for turn in resolved.messages)
            or str(resolved.prompt_tokens)
        )
        if len(asked.split()) > CONTEXT_TOKENS:
            raise ContextOverflow(
                f"the prompt has {len(asked.split())} tokens, but the model holds {CONTEXT_TOKENS}; shorten it",
                prompt_tokens=len(asked.split()),
                context_tokens=CONTEXT_TOKENS,
            )
        return resolved, asked

    def answer(self, resolved: TextOptions, asked: str, index: int) -> tuple[list[str], FinishReason]:
        last = resolved.messages[-1]["content"] if resolved.messages else asked
        words = f"You said: {last}".split(" ")
        if not resolved.sampling.greedy or resolved.n > 1:
            words.append(hashlib.sha256(f"{resolved.seed} {index}".encode()).hexdigest()[:6])
        pieces = [word if i == 0 else f" {word}" for i, word in enumerate(words)]
        if resolved.max_tokens is not None and resolved.max_tokens < len(pieces):
            return pieces[: resolved.max_tokens], "length"
        return pieces, "stop"

    def stream(self, prompt: str | None = None, **options: Any) -> Iterator[Event]:
        resolved, asked = self.prepare(prompt, options)
        return self._events(resolved, asked)

    def _events(self, resolved: TextOptions, asked: str) -> Iterator[Event]:
        try:
            yield Started("r1")
            answers = [self.answer(resolved, asked, index) for index in range(resolved.n)]
            for step in range(max(len(pieces) for pieces, _ in answers)):
                if self.delay_s:
                    time.sleep(self.delay_s)
                if step == self.interrupt_at:
                    raise KeyboardInterrupt
                if "boom" in "".join(answers[0][0]) and step == 2:
                    yield Finished("r1", "failed", error=GenerationFailed("the request failed: boom"))
                    return
                for index, (pieces, reason) in enumerate(answers):
                    if index in self.failing:
                        if step == 1:
                            yield Finished("r1", "failed", index, error=self._fault(index))
                        elif step == 0:
                            yield Token("r1", index, 7, pieces[step])
                        continue
                    if step < len(pieces):
                        yield Token("r1", index, 7, pieces[step])
                    if step == len(pieces) - 1:
                        yield Finished(
                            "r1", reason, index, prompt_tokens=len(asked.split()), completion_tokens=len(pieces)
                        )
        finally:
            self.closed_streams += 1

    def generate(self, prompt: str | None = None, **options: Any) -> Result:
        resolved, asked = self.prepare(prompt, options)
        if self.delay_s:
            time.sleep(self.delay_s)
        if "boom" in asked:
            raise GenerationFailed("the request failed: boom")
        choices = []
        failures = tuple(
            Failure(index=index, seed=None, error=self._fault(index))
            for index in range(resolved.n)
            if index in self.failing
        )
        if len(failures) == resolved.n:
            raise failures[0].error
        for index in range(resolved.n):
            if index in self.failing:
                continue
            pieces, reason = self.answer(resolved, asked, index)
            chosen = [TokenLogprob(7, piece, float("-inf") if piece == "You" else -0.5) for piece in pieces]
            logprobs = None if resolved.logprobs is None else tuple(TokenChoice(chosen=token) for token in chosen)
            tokens = tuple(7 for _ in pieces)
            choices.append(
                Choice(index=index, text="".join(pieces), tokens=tokens, finish_reason=reason, logprobs=logprobs)
            )
        made = sum(len(choice.tokens) for choice in choices)
        return Result(
            request_id="r1",
            choices=tuple(choices),
            usage=Usage(prompt_tokens=len(asked.split()), completion_tokens=made, cached_tokens=3),
            failures=failures,
            timings=Timings(queued_s=0.0, ttft_s=0.01, total_s=0.1),
            recipe={"model": self.recipe_model, "seed": resolved.seed, "device": "cpu", "dtype": self.recipe_dtype},
        )

    @staticmethod
    def _fault(index: int) -> GenerationFailed:
        return GenerationFailed(f"NaN in answer {index}")

    def check(self, requests: Iterable[Mapping[str, Any]]) -> None:
        for request in requests:
            resolve_text_options(request)

    def map(
        self, requests: Iterable[Mapping[str, Any]], concurrency: int | None = None
    ) -> Iterator[tuple[int, Result | KamadoError]]:
        """Answers come out of order, in groups of up to four."""
        group: list[tuple[int, Result | KamadoError]] = []
        try:
            for position, request in enumerate(requests):
                try:
                    group.append((position, self.generate(**request)))
                except KamadoError as error:
                    group.append((position, error))
                if len(group) == (concurrency or 4):
                    yield from reversed(group)
                    group = []
            yield from reversed(group)
        finally:
            self.closed_streams += 1


class CancellingModel(FakeModel):
    """Is closed by somebody else after three answers."""

    def generate(self, prompt: str | None = None, **options: Any) -> Result:
        if len(self.requests) >= 3:
            raise Cancelled("the runtime is closed")
        return super().generate(prompt, **options)


@dataclass
class FakeRuntime:
    """A runtime that loads nothing but the fake model."""

    model: Any = field(default_factory=FakeModel)
    plan_to_give: Plan = field(default_factory=make_plan)
    device: DeviceFacts = field(default_factory=fake_device)
    budget_bytes: int = 1 << 30
    loaded: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    closed: bool = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def load(self, reference: str, **options: Any) -> Any:
        self.loaded.append((reference, options))
        if "progress" in options:
            options["progress"](50, 100)
        return self.model

    def check(self, reference: str, requests: Iterable[Mapping[str, Any]], **options: Any) -> None:
        self.model.check(requests)

    def plan(self, reference: str, **options: Any) -> Plan:
        self.loaded.append((reference, options))
        return self.plan_to_give

    def stats(self) -> dict[str, Any]:
        return {"queued": 0}
