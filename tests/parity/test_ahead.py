"""Steps launched ahead change no answer, not by a bit, whoever comes and goes; on a CPU with a tape for a graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kamado
import tiny
from kamado.events import Finished, Token
from kamado.sampling import truncate
from kamado.sampling.sampler import Drawing, Sampler
from kamado.speculation.pace import Pace
from kamado_models.language import captured
from kamado_models.language.ahead import Ahead, Credit
from tape import TapeGraphs
from ticking import ticking_loop

PROMPTS = [[5 + i, 9, 40 + i, 7, 12, 33] * (2 + 3 * i) for i in range(5)]
EOS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes are recorded when they first come."""
    monkeypatch.setattr(captured, "_PATIENCE", 0)


@pytest.fixture
def runtime() -> Iterator[kamado.Runtime]:
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        yield runtime


def _ahead(model: kamado.Model) -> Ahead:
    lane: Any = model.loaded.lanes[0]  # type: ignore[attr-defined]
    assert isinstance(lane.ahead, Ahead)
    return lane.ahead


def _pair(runtime: kamado.Runtime, folder: Path, **changes: Any) -> tuple[kamado.Model, kamado.Model]:
    """With steps recorded alone, and launched ahead as well."""
    options = {"kv_tokens": 2048, "speculation": "off", **changes}
    plain, ahead = (runtime.load(folder, **options) for _ in range(2))
    if plain is ahead or plain.owner == ahead.owner:
        raise AssertionError("one model was loaded once")
    _ahead(plain).stop("not here")
    return plain, ahead


def _requests(**changes: Any) -> list[dict[str, Any]]:
    plain = {"max_tokens": 40, "temperature": 0.0, "ignore_eos": True}
    return [{"prompt_tokens": prompt, **plain, **changes} for prompt in PROMPTS]


def _answers(model: kamado.Model, requests: list[dict[str, Any]]) -> list[Any]:
    """Tokens, and logarithms but for their last bits: who comes when is for threads to say, and so are batches."""
    return [
        (choice.tokens, [pytest.approx(each.chosen.logprob, abs=1e-4) for each in choice.logprobs or ()])
        for result in model.generate_many(requests)
        for choice in result.choices
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.8, "seed": 3},
        {"temperature": 1.0, "top_p": 0.9, "seed": 1, "logprobs": 3},
        {"frequency_penalty": 0.4, "repetition_penalty": 1.2, "temperature": 0.7, "seed": 5, "n": 2},
        {"logit_bias": {17: 3.0}, "logprobs": 2},
    ],
)
def test_whatever_is_drawn(
    changes: dict[str, Any], tapes: list[TapeGraphs], runtime: kamado.Runtime, folder: Path
) -> None:
    plain, ahead = _pair(runtime, folder)
    assert _answers(ahead, _requests(**changes)) == _answers(plain, _requests(**changes))
    assert _ahead(plain).taken == 0
    assert _ahead(ahead).taken > 25 and _ahead(ahead).thrown <= 6, _ahead(ahead).figures()


def test_pages_in_8_bits(tapes: list[TapeGraphs], runtime: kamado.Runtime, folder: Path) -> None:
    plain, ahead = _pair(runtime, folder, kv_dtype="int8")
    assert _answers(ahead, _requests()) == _answers(plain, _requests())
    assert _ahead(ahead).taken > 25


def test_windows_whose_pages_are_given_back(tapes: list[TapeGraphs], runtime: kamado.Runtime, tmp_path: Path) -> None:
    plain, ahead = _pair(runtime, tiny.build("mistral", tmp_path / "mistral", sliding_window=24))
    assert _answers(ahead, _requests(max_tokens=70)) == _answers(plain, _requests(max_tokens=70))
    assert _ahead(ahead).taken > 50 and _ahead(ahead).thrown <= 6, _ahead(ahead).figures()


def test_one_after_the_other_reaches_its_end(tapes: list[TapeGraphs], runtime: kamado.Runtime, folder: Path) -> None:
    """That is known before, so the step of the others is what is launched."""
    requests = [{**request, "max_tokens": 20 + 9 * index} for index, request in enumerate(_requests())]
    plain, ahead = _pair(runtime, folder)
    assert _answers(ahead, requests) == _answers(plain, requests)
    assert _ahead(ahead).taken > 45 and _ahead(ahead).thrown <= 6, _ahead(ahead).figures()


def test_tokens_that_are_drawn_again(
    tapes: list[TapeGraphs], runtime: kamado.Runtime, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: whether a few tokens sufficed for top-p is told with the tokens, when the next step is launched."""
    plain, ahead = _pair(runtime, folder)
    requests = _requests(temperature=1.5, top_p=0.7, seed=4)
    wanted = _answers(plain, requests)
    redrawn = []
    result = Drawing.result

    def noted(self: Drawing) -> Any:
        drawn = result(self)
        redrawn.append([getattr(each, "token_id", None) for each in drawn] != self.first)
        return drawn

    monkeypatch.setattr(Drawing, "result", noted)
    monkeypatch.setattr(truncate, "_answers_late", lambda device: True)
    monkeypatch.setattr(truncate, "_NUM_CANDIDATES", 4)
    assert _answers(ahead, requests) == wanted
    assert any(redrawn) and _ahead(ahead).thrown > 0
    monkeypatch.setattr(truncate, "_NUM_CANDIDATES", 1024)
    assert _answers(ahead, requests) == wanted


def test_proposals_throw_guesses_away(
    tapes: list[TapeGraphs], runtime: kamado.Runtime, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = _pair(runtime, folder)
    wanted = _answers(plain, _requests())

    def every_third(self: Pace, tokens: list[int], num_made: int, most: int) -> tuple[int, ...]:
        return tuple(tokens[-2:])[: max(most, 0)] if len(tokens) % 3 == 0 else ()

    monkeypatch.setattr(Pace, "propose", every_third)
    guessing = runtime.load(folder, kv_tokens=2048)
    assert _answers(guessing, _requests()) == wanted
    assert _ahead(guessing).thrown > 0 and _ahead(guessing).figures()["resting"], "it does not pay there"


def test_what_goes_wrong_ends_guessing_alone(
    tapes: list[TapeGraphs], runtime: kamado.Runtime, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, ahead = _pair(runtime, folder)
    wanted = _answers(plain, _requests())

    def broken(self: Any, rows: Any, tokens: Any) -> Any:
        raise RuntimeError("the device is in a bad mood")

    monkeypatch.setattr(captured.CapturedSteps, "launch", broken)
    assert _answers(ahead, _requests()) == wanted
    figures = runtime.stats()["models"][ahead.owner]["ahead"]
    assert figures["taken"] == 0 and "bad mood" in figures["note"]


def test_hooks_and_trimming_between_two_steps(
    tapes: list[TapeGraphs], runtime: kamado.Runtime, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever hooks a module sees the very next forward; recordings that were let go of are not asked."""
    plain, ahead = _pair(runtime, folder)
    request = _requests()[1]
    wanted = plain.generate(**request).tokens
    loaded: Any = ahead.loaded  # type: ignore[attr-defined]
    seen: list[int] = []
    hooked: list[Any] = []
    taken: list[int] = []
    drawn = Ahead.drawn
    count = 0

    def meddling(self: Ahead, tokens: Any) -> None:
        nonlocal count
        drawn(self, tokens)
        count += 1
        if count == 10:
            taken.append(self.taken)
            hooked.append(loaded.module.model.layers[0].register_forward_hook(lambda *_: seen.append(count)))
        if count == 12:
            hooked[0].remove()
            taken.append(self.taken)
        if count == 20:
            assert loaded.trim() > 0

    monkeypatch.setattr(Ahead, "drawn", meddling)
    assert ahead.generate(**request).tokens == wanted
    assert seen == [10, 11] and taken[0] == taken[1] > 0
    assert _ahead(ahead).taken > 20


@dataclass
class Scenario:
    """Requests, each with the step in which it comes, and that in which somebody cancels it."""

    requests: list[dict[str, Any]] = field(default_factory=list)
    arrivals: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    """Prompts that share pages, answers that end by themselves, at their limit or by somebody's hand."""
    made = Scenario()
    for number in range(draw(st.integers(1, 6))):
        prompt = draw(st.sampled_from([PROMPTS[0], PROMPTS[1], [*PROMPTS[1], 8], PROMPTS[2][:15], PROMPTS[2][:16]]))
        request: dict[str, Any] = {"prompt_tokens": prompt, "max_tokens": draw(st.integers(1, 40)), "seed": number}
        request["temperature"] = draw(st.sampled_from([0.0, 1.0]))
        request["logprobs"] = draw(st.sampled_from([None, 2]))
        request["n"] = draw(st.sampled_from([1, 1, 2]))
        if draw(st.booleans()):
            request["logit_bias"] = {EOS: draw(st.sampled_from([0.0, 2.0, 4.0]))}
        made.requests.append(request)
        made.arrivals.append(draw(st.integers(0, 30)))
        made.ends.append(draw(st.one_of(st.just(10**6), st.integers(1, 60))))
    return made


class Driven:
    """A model whose lane is driven here, a step at a time."""

    def __init__(self, model: kamado.Model) -> None:
        self.loaded: Any = model.loaded  # type: ignore[attr-defined]
        self.lane: Any = self.loaded.lanes[0]
        self.bits: dict[tuple[str, int], bytes] = {}
        """Of the logits behind a sequence of some length."""
        self.lane._sampler = self

    def begin(self, logits: torch.Tensor, sequences: Any) -> Drawing:
        for row, sequence in zip(logits, sequences, strict=True):
            self.bits[sequence.id, len(sequence.tokens)] = row.numpy().tobytes()
        return Sampler().begin(logits, sequences)

    def run(self, scenario: Scenario) -> list[list[Any]]:
        """What each request got: tokens of its answers, and how they ended."""
        self.bits.clear()
        self.lane.ahead._credit = Credit()
        loop = ticking_loop([self.lane])
        got: list[list[Any]] = [[] for _ in scenario.requests]
        for step in range(2000):
            events = []
            for number, request in enumerate(scenario.requests):
                if scenario.arrivals[number] == step:
                    for task in self.loaded.prepare(str(number), request, 0.0):
                        events += loop.add(task)
                if scenario.ends[number] == step:
                    events += loop.cancel(str(number))
            events += loop.step()
            for event in events:
                if isinstance(event, Token):
                    got[int(event.request_id)].append((event.index, event.token_id))
                elif isinstance(event, Finished):
                    got[int(event.request_id)].append((event.index, event.reason))
            self.loaded.execution.memory.check_integrity()
            if step > max(scenario.arrivals) and not len(loop.scheduler):
                return [sorted(each, key=lambda pair: pair[0]) for each in got]
        raise AssertionError("it does not end")


@pytest.fixture
def driven(
    request: pytest.FixtureRequest, tapes: list[TapeGraphs], runtime: kamado.Runtime, folder: Path
) -> tuple[Driven, Driven]:
    """Where the token that ends an answer is computed, that gives NaN; nobody ever asks for that."""
    models = _pair(runtime, folder, kv_tokens=request.param)
    for model in models:
        module: Any = model.loaded.module  # type: ignore[attr-defined]
        with torch.inference_mode():
            module.get_input_embeddings().weight[EOS] = float("nan")
    return Driven(models[0]), Driven(models[1])


KEPT = settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("driven", [2048], indirect=True)
@KEPT
@given(scenario=scenarios())
def test_sequences_come_and_go(driven: tuple[Driven, Driven], scenario: Scenario) -> None:
    plain, ahead = driven
    with torch.inference_mode():
        assert ahead.run(scenario) == plain.run(scenario)
    assert ahead.bits == plain.bits


@pytest.mark.parametrize("driven", [144], indirect=True)
@KEPT
@given(scenario=scenarios())
def test_sequences_are_pre_empted(driven: tuple[Driven, Driven], scenario: Scenario) -> None:
    """Memory holds two or three of them. Batches may differ by who finds a page, so bits are not compared."""
    plain, ahead = driven
    with torch.inference_mode():
        assert ahead.run(scenario) == plain.run(scenario)


def test_it_rests_where_guesses_fail() -> None:
    credit = Credit()
    launched = 0
    for _ in range(100_000):
        if credit.may_guess():
            launched += 1
            credit.settle(held=False)
    assert launched < 40


@given(st.lists(st.booleans(), max_size=2000))
def test_what_failed_guesses_cost_is_bounded(outcomes: list[bool]) -> None:
    """Beyond what the others earn there is one for each rest, and each rest is longer than the one before until guesses
    have held for long."""
    credit = Credit()
    held = failed = rests = 0
    for outcome in outcomes:
        was_resting = credit.is_resting
        if credit.may_guess():
            credit.settle(held=outcome)
            held += outcome
            failed += not outcome
            rests += credit.is_resting and not was_resting
    assert failed * 8 <= 8 + held + 8 * rests
