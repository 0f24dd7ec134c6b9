"""Traces: what is read from a file, and what a model is sent."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_bench import BenchRuntime, TimedModel
from kamado.bench.replay import replay_trace
from kamado.bench.trace import Arrival, read_trace
from kamado.errors import InvalidRequest


def trace_of(path: Path, *lines: Any) -> list[Arrival]:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return read_trace(path)


def test_a_trace(tmp_path: Path) -> None:
    first, second, third = trace_of(
        tmp_path / "t.jsonl",
        {"at": 2, "prompt_length": 30, "max_tokens": 5},
        "",
        {"at": 0.5, "prompt": "hello"},
        {"at": 0.5, "prompt_tokens": [4, 5], "max_tokens": 1},
    )
    assert (first.line, first.at_s, first.asked, first.max_tokens) == (3, 0.5, {"prompt": "hello"}, 128)
    assert (second.line, second.asked) == (4, {"prompt_tokens": [4, 5]})
    assert (third.line, third.at_s, third.prompt_length, third.asked) == (1, 2.0, 30, {})


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("nonsense", "line 2 is not JSON"),
        ("[1]", "line 2 must be an object"),
        ({"prompt": "x", "temperature": 1}, "line 2: unknown key 'temperature'"),
        ({"max_tokens": 3}, "line 2 must have exactly one of prompt, messages"),
        ({"prompt": "x", "prompt_length": 3}, "line 2 must have exactly one of"),
        ({"prompt_length": 0}, "line 2: prompt_length must be a whole number from 1"),
        ({"prompt_length": True}, "line 2: prompt_length"),
        ({"prompt": "x", "max_tokens": 1.5}, "line 2: max_tokens must be a whole number"),
        ({"prompt": "x", "at": -1}, "line 2: at must be seconds from 0"),
        ('{"prompt": "x", "at": NaN}', "line 2: at must be seconds from 0"),
        ({"prompt": 7}, "line 2: prompt"),
        ({"prompt_tokens": [-1]}, "line 2: prompt_tokens"),
        ({"messages": []}, "line 2: messages"),
        ({"prompt": "x", "at": 3}, "line 1 has no `at`, but others do"),
    ],
)
def test_bad_lines_are_named(line: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest) as caught:
        trace_of(tmp_path / "t.jsonl", {"prompt": "fine"}, line)
    assert words in str(caught.value) and len(str(caught.value)) < 400


def test_an_empty_trace(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="has no requests"):
        trace_of(tmp_path / "t.jsonl", "", " ")
    with pytest.raises(FileNotFoundError):
        read_trace(tmp_path / "absent")


@given(st.binary(max_size=200))
def test_any_file_is_a_trace_or_an_error_with_a_line(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("trace") / "t.jsonl"
    path.write_bytes(content)
    try:
        assert read_trace(path)
    except InvalidRequest as error:
        assert "line " in str(error) or "no requests" in str(error)


def arrivals(*, number: int, at: list[float] | None = None, length: int = 10, tokens: int = 3) -> list[Arrival]:
    return [
        Arrival(line=i + 1, at_s=at[i] if at else None, asked={}, prompt_length=length, max_tokens=tokens)
        for i in range(number)
    ]


def test_figures_of_a_replay() -> None:
    model = BenchRuntime().model
    row, failed = replay_trace(model, arrivals(number=4), concurrency=None)
    assert failed == [] and (row["requests"], row["failed"], row["concurrency"]) == (4, 0, None)
    assert row["ttft_ms_p50"] == pytest.approx(10) == pytest.approx(row["ttft_ms_p99"])
    assert row["itl_ms_p90"] == pytest.approx(10) and row["total_ms_p50"] == pytest.approx(30)
    assert row["tokens_per_s"] == pytest.approx(12 / row["duration_s"])
    assert row["prompt_tokens_per_s"] == pytest.approx(40 / row["duration_s"])
    prompts = {tuple(request["prompt_tokens"]) for request in model.requests}
    assert len(prompts) == 4 and all(250 <= token < 750 for prompt in prompts for token in prompt)
    for request in model.requests:
        assert request["max_tokens"] == 3 and request["temperature"] == 0.0 and request["ignore_eos"] is True


def test_requests_come_when_their_time_has_come() -> None:
    model = BenchRuntime().model
    begin = time.monotonic()
    row, _ = replay_trace(model, arrivals(number=3, at=[0.0, 0.05, 0.1]), concurrency=None)
    moments = [job.submitted_s - begin for job in model.jobs]
    assert moments[1] >= 0.05 and moments[2] >= 0.1
    assert row["duration_s"] >= 0.1 + 0.03


def test_waiting_for_room_counts_for_those_that_have_a_time() -> None:
    """Each takes 60 ms; two at the same time."""
    told: list[int] = []
    waits = []
    for at in ([0.0] * 4, None):
        model = BenchRuntime(model=TimedModel(real=True)).model
        row, _ = replay_trace(model, arrivals(number=4, at=at, length=40), concurrency=2, report=told.append)
        assert row["duration_s"] >= 0.12
        times = [job.submitted_s for job in model.jobs]
        assert times[2] - times[0] >= 0.055
        waits.append((row["ttft_ms_p50"], row["ttft_ms_p99"]))
    assert waits[0][1] >= 95 and waits[1][1] == pytest.approx(40)
    assert told == [1, 2, 3, 4] * 2


def test_requests_that_fail_are_told_and_the_others_go_on() -> None:
    model = BenchRuntime(model=TimedModel(failing=frozenset({2}))).model
    row, failed = replay_trace(model, arrivals(number=3), concurrency=1)
    assert (row["requests"], row["failed"]) == (3, 1) and [(one.line, str(one.error)) for one in failed] == [
        (2, "it broke")
    ]


def test_all_may_fail() -> None:
    model = BenchRuntime(model=TimedModel(failing=frozenset({1, 2}))).model
    row, failed = replay_trace(model, arrivals(number=2), concurrency=None)
    assert len(failed) == 2 and row["ttft_ms_p50"] is None and row["tokens_per_s"] == 0


def test_an_interrupted_replay_cancels(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    model = BenchRuntime().model
    monkeypatch.setattr("kamado.bench.replay.time.sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replay_trace(model, arrivals(number=2, at=[0.0, 9.0]), concurrency=None)
    assert [job.cancelled for job in model.jobs] == [True]
