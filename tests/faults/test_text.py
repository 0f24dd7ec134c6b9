"""Memory that runs out at any operation of forwards of text: who fails fails alone, and nothing is left behind."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kamado
import tiny
from failing_device import ERRORS, FailingDevice, failing_runtime, tensor_bytes, together

NUM_SINGLE, NUM_BURSTS = 40, 30
REQUESTS: list[dict[str, Any]] = [
    {"prompt_tokens": [9, 40, 7, 12, 30, 8], "temperature": 0.0},
    {"prompt_tokens": [11, 22, 33], "temperature": 0.9, "seed": 3, "frequency_penalty": 0.4},
    {"prompt_tokens": [9, 40, 7, 12, 30, 8, 21, 20, 17], "temperature": 0.0, "logprobs": 2, "n": 2},
]


@pytest.fixture(scope="module")
def device() -> FailingDevice:
    return FailingDevice()


@pytest.fixture(scope="module")
def models(device: FailingDevice, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[kamado.Model]]:
    """One of each kind of lane: pages, rows with keys and values, rows with a state."""
    folder = tmp_path_factory.mktemp("tiny")
    with failing_runtime(device, memory="8GiB") as runtime:
        yield [
            runtime.load(tiny.build(name, folder / name), pinned=True, **options)
            for name, options in {"llama": {"kv_tokens": 128}, "bloom": {"kv_tokens": 256}, "mamba": {}}.items()
        ]


def _requests(models: list[kamado.Model]) -> list[tuple[kamado.Model, dict[str, Any]]]:
    return [(model, {**request, "max_tokens": 3, "ignore_eos": True}) for request in REQUESTS for model in models]


def _answers(result: Any) -> Any:
    return [(choice.text, choice.tokens, choice.finish_reason) for choice in result.choices]


def _state(models: list[kamado.Model]) -> Any:
    for model in models:
        model.loaded.execution.memory.check_integrity()  # type: ignore[attr-defined]
    return [models[0].runtime.ledger.snapshot(), *(dict(model.usage()) for model in models)]


def test_any_operation_may_fail(models: list[kamado.Model], device: FailingDevice) -> None:
    requests = _requests(models)
    together(requests)
    before, held = _state(models), 0
    device.rest()
    wanted = [_answers(result) for result in together(requests)]
    total, rng = device.count, random.Random(0)
    assert total > 500
    cases = [range(n, n + 1) for n in rng.sample(range(1, total + 1), NUM_SINGLE)]
    for _ in range(NUM_BURSTS):
        start, length = rng.randrange(1, total), rng.choice((2, 3, 8, 50))
        cases.append(range(start, start + length))
    failures = 0
    for number, case in enumerate(cases):
        device.rest()
        device.fails, device.error = case, ERRORS[number % len(ERRORS)]
        found = together(requests)
        device.rest()
        assert _state(models) == before, f"something was left behind after {case}"
        for outcome, answers in zip(found, wanted, strict=True):
            if isinstance(outcome, kamado.Result) and not outcome.failures:
                assert _answers(outcome) == answers, f"a wrong answer after {case}"
                continue
            assert len(case) > 1, f"a single failure of {case} ended a request"
            failures += 1
            if isinstance(outcome, kamado.Result):  # one answer of several
                assert all(choice in answers for choice in _answers(outcome))
            else:
                assert isinstance(outcome, kamado.GenerationFailed)
                assert "out of memory on cpu" in str(outcome)
                assert "free now" in str(outcome)
        held = held or tensor_bytes()
    assert failures
    assert tensor_bytes() <= held + 4096
    assert [_answers(result) for result in together(requests)] == wanted


def test_a_prompt_that_is_too_long_for_one_forward_is_cut(models: list[kamado.Model], device: FailingDevice) -> None:
    """Every operation with a result of more than so many bytes fails. A model whose prompts cannot be cut cannot help
    it: its requests fail."""
    prompts = [[9 + (7 * i + k) % 200 for i in range(60)] for k in range(3)]
    for model in models:
        requests = [(model, {"prompt_tokens": prompt, "max_tokens": 3, "ignore_eos": True}) for prompt in prompts]
        wanted = [_answers(result) for result in together(requests)]
        device.rest()
        together(requests[:1])
        whole = device.peak_bytes
        device.rest()
        device.largest_bytes = int(whole * 0.6)
        rescued = model.runtime.stats()["rescued"]
        found = together(requests)
        failed = device.failed
        device.rest()
        assert failed
        if model.loaded.execution.memory.chunked:  # type: ignore[attr-defined]
            assert [_answers(result) for result in found] == wanted
            assert model.runtime.stats()["rescued"] > rescued
        else:
            assert all(isinstance(outcome, kamado.GenerationFailed) for outcome in found)
        assert [_answers(result) for result in together(requests)] == wanted
    assert [model.loaded.execution.memory.chunked for model in models] == [True, True, False]  # type: ignore[attr-defined]


def test_an_idle_model_leaves_for_one_that_runs_out_of_memory(
    device: FailingDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = {"prompt_tokens": [9, 40, 7, 12], "max_tokens": 3, "ignore_eos": True, "temperature": 0.0}
    with failing_runtime(device, memory="1GiB") as runtime:
        folder = tiny.build("llama", tmp_path / "llama")
        pinned, idle, busy = (runtime.load(folder, kv_tokens=64) for _ in range(3))
        pinned.pin()
        wanted = idle.generate(**request).tokens
        lane: Any = busy.loaded.lanes[0]
        run, blocking = lane.run, [idle]

        def crowded(works: Any) -> Any:
            if any(model.in_memory for model in blocking):
                raise MemoryError
            return run(works)

        monkeypatch.setattr(lane, "run", crowded)
        assert busy.generate(**request).tokens == wanted
        assert [model.in_memory for model in (pinned, idle, busy)] == [True, False, True]
        assert idle.generate(**request).tokens == wanted, "it came back"
        blocking[:] = [pinned]
        with pytest.raises(kamado.GenerationFailed, match="out of memory on cpu"):
            busy.generate(**request)
        assert [model.in_memory for model in (pinned, idle, busy)] == [True, False, True]
        assert pinned.generate(**request).tokens == wanted
