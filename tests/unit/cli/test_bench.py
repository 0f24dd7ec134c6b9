"""`kamado bench` over a model whose requests take exactly known times."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fake_bench import RATES, BenchRuntime, TimedModel
from fake_model import make_plan
from kamado.cli import bench as module
from kamado.cli.loading import Abilities
from kamado.memory.devices import fake_device
from kamado.quant import parse_quant

from .conftest import Kamado

SMALL = ("-p", "100", "-n", "11", "-b", "1,4", "--reps", "2")


@pytest.fixture
def bench_runtime(monkeypatch: pytest.MonkeyPatch) -> BenchRuntime:
    fake = BenchRuntime()
    monkeypatch.setattr(module, "open_runtime", lambda load: fake)
    monkeypatch.setattr(module, "what_it_makes", lambda reference, load, out: fake.model.capabilities)
    monkeypatch.setattr(module, "abilities", lambda reference, load, out: Abilities(makes=fake.model.capabilities))
    return fake


def use(runtime: BenchRuntime, model: TimedModel) -> None:
    runtime.model = model
    model.runtime = runtime


def test_a_table(kamado: Kamado, bench_runtime: BenchRuntime) -> None:
    done = kamado("bench", "fake", *SMALL)
    assert (done.status, done.err) == (0, "") and bench_runtime.closed
    lines = done.out.splitlines()
    assert "device       cpu: fake device" in lines and "compiled in  1.5 s" in lines
    table = {line.split()[0]: line.split()[1:] for line in lines[-3:]}
    assert list(table) == ["pp100", "tg11", "batch4"]
    assert table["tg11"][0] == "100" and table["tg11"][2:5] == ["16", "10", "10"] and table["tg11"][6] == "40%"
    assert table["pp100"][3:7] == ["-"] * 4


def test_json_has_the_rows(kamado: Kamado, bench_runtime: BenchRuntime) -> None:
    done = kamado("bench", "fake", *SMALL, "-d", "50", "--json", "--dtype", "float32", "--kv-tokens", "900")
    rows = json.loads(done.out)
    assert done.status == 0 and [row["test"] for row in rows] == ["pp100", "tg11", "batch4"]
    assert rows[1]["prompt_tokens"] == 50 and rows[1]["reps"] == 2 and rows[1]["new_tokens"] == 11
    assert bench_runtime.loaded[0][1]["kv_tokens"] == 900 and "step_budget" in bench_runtime.loaded[0][1]


def test_what_runs_without_options(kamado: Kamado, bench_runtime: BenchRuntime) -> None:
    rows = json.loads(kamado("bench", "fake", "--json").out)
    assert [row["test"] for row in rows] == ["pp512", "tg128", "batch8"] and rows[0]["reps"] == 5


def test_pictures(kamado: Kamado, bench_runtime: BenchRuntime) -> None:
    use(bench_runtime, TimedModel(capabilities=("image",)))
    done = kamado("bench", "fake", "--steps", "6", "--width", "24", "--reps", "1")
    assert done.status == 0 and done.out.splitlines()[-1].split()[:6] == ["image", "24", "x", "8", "6", "1"]
    assert bench_runtime.model.requests[0]["steps"] == 6
    for typed, word in [(("-p", "5"), "-p"), (("--load", "x.jsonl", "--steps", "3"), "--steps")]:
        refused = kamado("bench", "fake", *typed)
        assert refused.status == 2 and word in refused.err and len(refused.err.splitlines()) == 1
    use(bench_runtime, TimedModel())
    assert "--steps is for picture models" in kamado("bench", "fake", "--steps", "3").err


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (("-b", "0"), "a batch (-b) must be from 1 to 4096, not 0"),
        (("-b", "x"), "-b 'x' must be numbers"),
        (("-b", "1,1"), "different numbers"),
        (("-p", "-1"), "prompt tokens (-p) must be from 0"),
        (("--reps", "0"), "--reps"),
        (("-p", "0", "-n", "0"), "nothing to measure"),
        (("-n", "5000"), "context of fake is 2000"),
        (("--concurrency", "3"), "--load is missing"),
        (("--load", "absent.jsonl"), "absent.jsonl: No such file"),
        (("--load", "TRACE", "--concurrency", "0"), "--concurrency must be at least 1"),
        (("--load", "TRACE", "-n", "3"), "with --load, -n has no meaning"),
        (("--load", "BAD"), "line 2: unknown key 'size'"),
        (("--nonsense",), "--nonsense"),
    ],
)
def test_what_cannot_be_is_told_and_status_2(
    typed: tuple[str, ...], words: str, kamado: Kamado, bench_runtime: BenchRuntime, tmp_path: Path
) -> None:
    (tmp_path / "t.jsonl").write_text('{"prompt_length": 5}\n')
    (tmp_path / "bad.jsonl").write_text('{"prompt_length": 5}\n{"size": 5}\n')
    places = {"TRACE": str(tmp_path / "t.jsonl"), "BAD": str(tmp_path / "bad.jsonl")}
    done = kamado("bench", "fake", *(places.get(word, word) for word in typed))
    assert done.status == 2 and words in done.err and len(done.err.splitlines()) <= 2 and done.out == ""


@pytest.mark.parametrize(
    ("model", "typed", "words"),
    [
        (TimedModel(), ("--quant", "int8"), "weights are not quantized"),
        (TimedModel(plan=make_plan(device="cuda:0")), (), "cuda:0 was asked for, but text is on cpu"),
        (TimedModel(), ("--dtype", "bfloat16"), "dtype bfloat16 was asked for, but it is float32"),
    ],
)
def test_what_fell_back_is_status_1(
    model: TimedModel, typed: tuple[str, ...], words: str, kamado: Kamado, bench_runtime: BenchRuntime
) -> None:
    use(bench_runtime, model)
    bench_runtime.device = replace(fake_device(model.plan.device), rates=RATES)
    done = kamado("bench", "fake", *typed)
    assert done.status == 1 and words in done.err and len(done.err.splitlines()) == 1 and done.out == ""


def test_a_quantized_model_says_so(kamado: Kamado, bench_runtime: BenchRuntime) -> None:
    use(bench_runtime, TimedModel(plan=make_plan(context_tokens=2000, kv_tokens=20_000, quant=parse_quant("int8"))))
    assert "float32, weights int8" in kamado("bench", "fake", *SMALL, "--quant", "int8").out


def test_a_trace(kamado: Kamado, bench_runtime: BenchRuntime, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"prompt_length": 20, "max_tokens": 3}\n{"prompt": "a b c d", "max_tokens": 5}\n')
    done = kamado("bench", "fake", "--load", str(path), "--concurrency", "2")
    lines = {line[:15].strip(): line.split() for line in done.out.splitlines()}
    assert done.status == 0 and lines["next token ms"][-3:] == ["10", "10", "10"]
    assert "2 of 2 in" in done.out and "at most 2 at the same time" in done.out
    (row,) = json.loads(kamado("bench", "fake", "--load", str(path), "--json").out)
    assert row["test"] == "load" and row["ttft_ms_p50"] == pytest.approx(12) and row["concurrency"] is None


def test_requests_of_a_trace_that_fail_are_status_1(
    kamado: Kamado, bench_runtime: BenchRuntime, tmp_path: Path
) -> None:
    use(bench_runtime, TimedModel(failing=frozenset({3})))  # the first one warms up
    path = tmp_path / "t.jsonl"
    path.write_text('{"prompt_length": 20}\n' * 3)
    done = kamado("bench", "fake", "--load", str(path), "--json")
    assert done.status == 1 and "1 of 3 requests failed; the first in line 2: it broke" in done.err
    document: list[dict[str, Any]] = json.loads(done.out)
    assert document[0]["failed"] == 1 and document[0]["requests"] == 3


def test_traces_are_for_text_models(kamado: Kamado, bench_runtime: BenchRuntime, tmp_path: Path) -> None:
    use(bench_runtime, TimedModel(capabilities=("image",)))
    path = tmp_path / "t.jsonl"
    path.write_text('{"prompt_length": 20}\n')
    done = kamado("bench", "fake", "--load", str(path))
    assert done.status == 2 and "--load is for text models, and fake makes image" in done.err
