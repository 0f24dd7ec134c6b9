"""Guessed tokens change no answer: with and without, alone and in a crowd, greedy and drawn, float32."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kamado
import tiny
from kamado.errors import GenerationFailed, InvalidRequest
from kamado.results import Result
from kamado.speculation.costs import StepCosts

# Grouped heads; a softcap and windows; sinks; latents; one position embedding for each place.
NAMES = ("llama", "gemma2", "gpt_oss", "deepseek_v3", "gpt2")
PROMPTS = [[5 + i, 9, 40 + i, 7, 12, 33] * (2 + 3 * i) for i in range(5)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("tiny")
    return {name: tiny.build(name, base / name) for name in NAMES}


@pytest.fixture(autouse=True)
def _no_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Costs as they are taken for before any measurement: of models this small, times say nothing."""
    with monkeypatch.context() as patch:
        patch.setattr(StepCosts, "note", lambda self, num_tokens, seconds: None)
        yield


def _requests(**changes: Any) -> list[dict[str, Any]]:
    plain = {"max_tokens": 40, "temperature": 0.0, "ignore_eos": True}
    return [{"prompt_tokens": prompt, **plain, **changes} for prompt in PROMPTS]


VARIANTS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "drawn": {"temperature": 0.7, "top_k": 20, "seed": 5},
    "penalties": {"repetition_penalty": 1.02, "frequency_penalty": 0.05, "presence_penalty": 0.1},
    "drawn with penalties": {"temperature": 0.5, "frequency_penalty": 0.1, "logit_bias": {7: 1.5}, "seed": 9},
    "several": {"n": 3, "temperature": 0.4, "seed": 2},
    "logprobs": {"logprobs": 3},
}


def _close(one: Result, other: Result) -> None:
    assert [choice.tokens for choice in one.choices] == [choice.tokens for choice in other.choices]
    assert [choice.text for choice in one.choices] == [choice.text for choice in other.choices]
    for mine, theirs in zip(one.choices, other.choices, strict=True):
        for left, right in zip(mine.logprobs or (), theirs.logprobs or (), strict=True):
            assert left.chosen.logprob == pytest.approx(right.chosen.logprob, abs=1e-3)
            assert [each.logprob for each in left.top] == pytest.approx([each.logprob for each in right.top], abs=1e-3)


def _foresight(texts: list[list[int]]) -> Any:
    """Proposes what is known to follow, with every fourth token another one."""

    def propose(self: Any, tokens: list[int], num_made: int, most: int) -> tuple[int, ...]:
        known = next((text for text in texts if text[: len(tokens)] == tokens), [])
        coming = known[len(tokens) :][: min(7, max(most, 0))]
        start = len(tokens)
        return tuple(abs(token - 1) if (start + i) % 4 == 0 else token for i, token in enumerate(coming))

    return propose


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_without_guesses(
    name: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        plain = runtime.load(folders[name], kv_tokens=1024, speculation="off")
        guessing = runtime.load(folders[name], kv_tokens=1024)
        for variant in VARIANTS.values():
            requests = _requests(**variant)
            wanted = plain.generate_many(requests)
            texts = [
                [*request["prompt_tokens"], *choice.tokens]
                for request, result in zip(requests, wanted, strict=True)
                for choice in result.choices
            ]
            monkeypatch.setattr("kamado.tasks.text.Pace.propose", _foresight(texts))
            for one, other in zip([guessing.generate(**request) for request in requests], wanted, strict=True):
                _close(one, other)
                assert one.usage.proposed_tokens > one.usage.accepted_tokens > one.usage.completion_tokens // 3
            for one, other in zip(guessing.generate_many(requests), wanted, strict=True):
                _close(one, other)
        assert guessing.usage()["kv_tokens_free"] == guessing.usage()["kv_tokens_total"]
        assert "speculation" not in plain.usage()


@pytest.mark.parametrize("name", NAMES[:2])
def test_answers_with_tokens_that_were_looked_up(name: str, folders: dict[str, Path]) -> None:
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        plain = runtime.load(folders[name], kv_tokens=1024, speculation="off")
        guessing = runtime.load(folders[name], kv_tokens=1024)
        for variant in VARIANTS.values():
            requests = _requests(**variant)
            for one, other in zip(guessing.generate_many(requests), plain.generate_many(requests), strict=True):
                _close(one, other)
        figures = guessing.usage()["speculation"]
        assert figures["proposed_tokens"] >= figures["accepted_tokens"] > 0


def test_a_result_says_what_was_guessed(folders: dict[str, Path]) -> None:
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        model = runtime.load(folders["llama"], kv_tokens=1024)
        results = model.generate_many(_requests())
        used = [result.usage for result in results]
        figures = runtime.stats()["models"][model.owner]["speculation"]
        assert sum(usage.proposed_tokens for usage in used) == figures["proposed_tokens"] > 0
        assert sum(usage.accepted_tokens for usage in used) == figures["accepted_tokens"]
        answered = sum(usage.completion_tokens for usage in used)
        (lane,) = runtime.stats()["lanes"].values()
        assert lane["rows"] < answered


def test_too_few_pages_and_short_steps(folders: dict[str, Path]) -> None:
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        plain = runtime.load(folders["llama"], kv_tokens=1024, speculation="off")
        tight = runtime.load(folders["llama"], kv_tokens=160, step_budget=24)
        wanted = plain.generate_many(_requests())
        for one, other in zip(tight.generate_many(_requests()), wanted, strict=True):
            _close(one, other)
        assert runtime.stats()["preemptions"] > 0
        assert tight.usage()["speculation"]["accepted_tokens"] > 0


def test_pages_in_8_bits(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        plain, guessing = (
            runtime.load(folders["llama"], kv_tokens=1024, kv_dtype="int8", speculation=how) for how in ("off", "auto")
        )
        request = _requests()[3]
        wanted = plain.generate(**request)
        monkeypatch.setattr("kamado.tasks.text.Pace.propose", _foresight([[*request["prompt_tokens"], *wanted.tokens]]))
        found = guessing.generate(**request)
        _close(found, wanted)
        assert found.usage.accepted_tokens > 10


def test_deterministic_runtimes_do_not_guess(folders: dict[str, Path]) -> None:
    with kamado.Runtime(device="cpu", memory="1GiB", deterministic=True) as runtime:
        model = runtime.load(folders["llama"], kv_tokens=1024)
        assert model.generate(**_requests()[3]).usage.proposed_tokens == 0
        assert "speculation" not in model.usage()


def test_nonsense_is_refused(folders: dict[str, Path]) -> None:
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime, pytest.raises(InvalidRequest, match="always"):
        runtime.load(folders["llama"], speculation="always")


def test_nan_behind_a_guess_reaches_nobody(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A guess whose state is NaN and that is refused leaves no trace; one that holds fails as it would without."""
    request = _requests()[3]
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        model = runtime.load(folders["llama"], kv_tokens=256)
        plain = runtime.load(folders["llama"], kv_tokens=256, speculation="off")
        made = plain.generate(**request).tokens
        poison = next(token for token in range(100, 200) if token not in made)
        module: Any = model.loaded.module  # type: ignore[attr-defined]
        module.get_input_embeddings().register_forward_hook(
            lambda module, inputs, output: output.masked_fill((inputs[0] == poison)[..., None], float("nan"))
        )
        text = [*request["prompt_tokens"], *made]

        def propose(self: Any, tokens: list[int], num_made: int, most: int) -> tuple[int, ...]:
            right = text[len(tokens) : len(tokens) + 2]
            return (*right, poison, poison)[: max(most, 0)]

        monkeypatch.setattr("kamado.tasks.text.Pace.propose", propose)
        result = model.generate(**request)
        assert result.tokens == made
        store: Any = model.loaded.lanes[0].store  # type: ignore[attr-defined]
        assert not any(tensor.isnan().any() for tensor in (*store.keys, *store.values))

        monkeypatch.setattr("kamado.tasks.text.Pace.propose", lambda self, tokens, made, most: (poison,) * min(most, 3))
        with pytest.raises(GenerationFailed, match="NaN"):
            model.generate(**request, logit_bias={poison: 100.0})
        assert not any(tensor.isnan().any() for tensor in (*store.keys, *store.values))
        assert model.generate(**request).tokens == made
