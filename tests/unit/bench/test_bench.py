"""`kamado.bench` over a model whose requests take exactly known times."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from fake_bench import RATES, BenchRuntime, TimedModel
from fake_model import make_plan
from kamado.bench import run
from kamado.bench.options import BenchOptions, parse_batches
from kamado.bench.run import bench
from kamado.errors import DoesNotFit, GenerationFailed, InvalidRequest, KamadoError
from kamado.memory.devices import fake_device
from kamado.memory.plan import LanePlan
from kamado.quant import Quant, parse_quant

SMALL = BenchOptions(prompt_tokens=100, new_tokens=11, depth=20, batches=(1, 4), reps=3)
CONTRACT = (
    *("model", "device", "dtype", "quant", "test", "tokens_per_s", "stddev", "ttft_ms", "itl_ms_p50", "itl_ms_p99"),
    *("bandwidth_GB_s", "bandwidth_utilization", "peak_memory_bytes", "load_s", "compile_s"),
)


def test_rows_of_a_text_model() -> None:
    runtime = BenchRuntime()
    steps: list[str] = []
    measured = bench(runtime, "fake", SMALL, load={"dtype": "auto"}, report=steps.append)  # type: ignore[arg-type]
    prefill, single, batch = measured.rows
    assert [row["test"] for row in measured.rows] == ["pp100", "tg11", "batch4"] and measured.notes == ()
    assert all(set(CONTRACT) <= row.keys() for row in measured.rows)
    assert prefill["tokens_per_s"] == pytest.approx(1000, rel=1e-3) and prefill["ttft_ms"] == pytest.approx(
        100, rel=1e-3
    )
    assert prefill["itl_ms_p50"] is None and prefill["bandwidth_utilization"] is None
    assert single["tokens_per_s"] == pytest.approx(100, rel=1e-3) and single["stddev"] < 1
    assert batch["tokens_per_s"] == pytest.approx(400, rel=1e-3) and batch["batch"] == 4
    assert single["ttft_ms"] == pytest.approx(20, rel=1e-3)
    assert single["itl_ms_p50"] == pytest.approx(10, rel=1e-3) == pytest.approx(batch["itl_ms_p99"], rel=1e-3)
    assert prefill["compile_s"] == 1.5 and prefill["load_s"] >= 0
    assert [row["mean_batch"] for row in measured.rows] == [1.0, 1.0, 4.0]
    assert steps == ["loading", "pp100", "tg11", "batch4"] and runtime.model.unloaded
    assert runtime.written == [0], "nothing is written beside what is measured"
    assert runtime.loaded == [("fake", {"dtype": "auto"})]


def test_shares_of_what_the_device_can_do() -> None:
    prefill, single, batch = bench(BenchRuntime(), "fake", SMALL).rows  # type: ignore[arg-type]
    # 40 MB of weights and 1024 bytes for each of 25.5 tokens, 100 times a second, of 10 GB/s
    assert single["bandwidth_GB_s"] == pytest.approx((4e7 + 25.5 * 1024) * 100 / 1e9, rel=1e-3)
    assert single["bandwidth_utilization"] == pytest.approx(single["bandwidth_GB_s"] / 10, rel=1e-3)
    assert batch["bandwidth_GB_s"] == pytest.approx((4e7 + 4 * 25.5 * 1024) * 100 / 1e9, rel=1e-3)
    assert prefill["operations_G_s"] == pytest.approx(2 * (1e7 * 100 + 1e5) * 10 / 1e9, rel=1e-3)
    assert prefill["operations_utilization"] == pytest.approx(prefill["operations_G_s"] / 100, rel=1e-3)


@pytest.mark.parametrize(("scheme", "rate"), [("int8-dynamic", 400), ("int8", 100)])
def test_products_of_rounded_activations_are_compared_with_those_of_integers(
    scheme: str, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = TimedModel(plan=make_plan(context_tokens=2000, quant=parse_quant(scheme)))
    (row,) = bench(BenchRuntime(model=model), "fake", replace(SMALL, new_tokens=0), load={"quant": scheme}).rows  # type: ignore[arg-type]
    assert row["operations_utilization"] == pytest.approx(row["operations_G_s"] / rate, rel=1e-3)


def test_products_of_the_kernels_in_c_are_of_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the checkpoint was quantized before, so that no scheme says so."""
    for share, rate in ((1.0, 400), (0.3, 100)):
        monkeypatch.setattr(run, "kernel_of", lambda model, share=share: ("avx2", share))
        (row,) = bench(BenchRuntime(), "fake", replace(SMALL, new_tokens=0)).rows  # type: ignore[arg-type]
        assert row["operations_utilization"] == pytest.approx(row["operations_G_s"] / rate, rel=1e-3)


def test_shares_that_cannot_be_are_said() -> None:
    runtime = BenchRuntime(model=TimedModel(held_bytes=200_000_000))
    measured = bench(runtime, "fake", replace(SMALL, prompt_tokens=0))  # type: ignore[arg-type]
    assert measured.rows[0]["bandwidth_utilization"] > 1
    (note,) = measured.notes
    assert "above 100 %" in note and "devices --measure" in note


def test_weights_outside_of_the_device_are_read_too() -> None:
    """Of 60 MB, 30 MB are held, 10 MB of them room for what is in use."""
    away = replace(lane("cpu"), weight_bytes=60_000_000, outside_bytes=40_000_000)
    changes = {"window_bytes": 10_000_000, "kv_bytes_per_token": 0, "notes": ("They are read from disk.",)}
    plan = make_plan(lanes=(away,), context_tokens=2000, **changes)
    runtime = BenchRuntime(model=TimedModel(plan=plan, held_bytes=30_000_000))
    measured = bench(runtime, "fake", replace(SMALL, batches=(1,)))  # type: ignore[arg-type]
    row = measured.rows[1]
    assert row["bandwidth_GB_s"] == pytest.approx(6e7 * 100 / 1e9, rel=1e-3) and row["outside_bytes"] == 40_000_000
    assert measured.notes == ("They are read from disk.",)


def test_prompts_are_never_the_same_and_always_those() -> None:
    first, second = BenchRuntime(), BenchRuntime()
    for runtime in (first, second):
        bench(runtime, "fake", SMALL)  # type: ignore[arg-type]
    assert first.model.requests == second.model.requests
    prompts = [tuple(request["prompt_tokens"]) for request in first.model.requests]
    assert len(set(prompts)) == len(prompts) == 4 * (1 + 1 + 4)


def test_rates_are_measured_afterwards_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = BenchRuntime(device=fake_device())

    def measure(facts: Any, *, progress: Any) -> Any:
        assert runtime.model.unloaded, "the model must not be in the way"
        return RATES

    monkeypatch.setattr(run, "measure_rates", measure)
    assert bench(runtime, "fake", SMALL).rows[1]["bandwidth_utilization"] > 0  # type: ignore[arg-type]

    def fail(facts: Any, *, progress: Any) -> Any:
        raise DoesNotFit("cpu has only 1 MiB free", needed_bytes=2, available_bytes=1)

    monkeypatch.setattr(run, "measure_rates", fail)
    measured = bench(runtime, "fake", SMALL)  # type: ignore[arg-type]
    assert measured.rows[1]["bandwidth_utilization"] is None and measured.rows[1]["bandwidth_GB_s"] > 0
    assert "cpu has only 1 MiB free" in measured.notes[0]


def test_answers_that_are_too_short_are_no_figures() -> None:
    runtime = BenchRuntime(model=TimedModel(missing_tokens=2))
    with pytest.raises(KamadoError, match="a request for 11 tokens made 9"):
        bench(runtime, "fake", replace(SMALL, prompt_tokens=0))  # type: ignore[arg-type]
    assert runtime.model.unloaded


def test_a_request_that_fails_ends_the_bench() -> None:
    with pytest.raises(KamadoError, match="it broke"):
        bench(BenchRuntime(model=TimedModel(failing=frozenset({3}))), "fake", SMALL)  # type: ignore[arg-type]


def test_tests_without_room_are_refused_before_they_run() -> None:
    for plan, words in [
        (make_plan(context_tokens=100), "pp100 needs 101 tokens, but the context of fake is 100"),
        (make_plan(context_tokens=500, kv_tokens=110), "batch4 needs 124 tokens of attention state, but there are 110"),
    ]:
        runtime = BenchRuntime(model=TimedModel(plan=plan))
        with pytest.raises(InvalidRequest, match=words):
            bench(runtime, "fake", SMALL)  # type: ignore[arg-type]
        assert runtime.model.requests == []
    with pytest.raises(InvalidRequest, match="nothing to measure"):
        bench(BenchRuntime(), "fake", BenchOptions(prompt_tokens=0, new_tokens=0))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bad", [{"reps": 0}, {"batches": (0,)}, {"batches": ()}, {"batches": (2, 2)}, {"prompt_tokens": -1}, {"depth": 0}]
)
def test_impossible_options(bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        BenchOptions(**bad)


def test_batches() -> None:
    assert parse_batches("1, 8,16") == (1, 8, 16)
    for bad in ("", "1,", "a", "1.5", "-1", "\u0661", "9" * 30):
        with pytest.raises(InvalidRequest, match="-b"):
            parse_batches(bad)


def picture_model(**changes: Any) -> TimedModel:
    return TimedModel(capabilities=("image",), clock=lambda: 100.0, **changes)


def test_rows_of_a_picture_model() -> None:
    runtime = BenchRuntime(model=picture_model(product_side=500))
    options = BenchOptions(batches=(1, 2), reps=2, picture={"steps": 5, "width": 16})
    single, both = bench(runtime, "fake", options).rows  # type: ignore[arg-type]
    names = ("test", "width", "height", "steps", "batch")
    assert [single[name] for name in names] == ["image", 16, 8, 5, 1]
    assert single["steps_per_s"] == pytest.approx(100, rel=1e-3) and both["steps_per_s"] == pytest.approx(200, rel=1e-3)
    assert single["s_per_image"] == pytest.approx(0.06, rel=1e-3) and both["s_per_image"] == pytest.approx(
        0.03, rel=1e-3
    )
    assert {"peak_memory_bytes", "load_s", "compile_s", "stddev"} <= single.keys()
    assert single["operations_G_s"] == pytest.approx(2 * 500**3 / single["s_per_image"] / 1e9, rel=1e-3)
    assert both["operations_utilization"] == pytest.approx(both["operations_G_s"] / 100, rel=1e-3)
    assert single["bandwidth_utilization"] is None
    seeds = [request["seed"] for request in runtime.model.requests]
    assert len(set(seeds)) == len(seeds) == 1 + 3 * 3
    assert len({request["prompt"] for request in runtime.model.requests}) == 10


def test_operations_of_quantized_pictures_are_not_known() -> None:
    model = picture_model(plan=make_plan(quant=parse_quant("int8")))
    (row,) = bench(BenchRuntime(model=model), "fake", BenchOptions(batches=(1,), reps=1), load={"quant": "int8"}).rows  # type: ignore[arg-type]
    assert row["operations_G_s"] is row["operations_utilization"] is None


def test_pictures_without_prompts() -> None:
    runtime = BenchRuntime(model=picture_model(takes_prompt=False))
    (row,) = bench(runtime, "fake", BenchOptions(batches=(1,), reps=1)).rows  # type: ignore[arg-type]
    assert row["steps"] == 4 and all("prompt" not in request for request in runtime.model.requests)


def lane(device: str) -> LanePlan:
    return LanePlan(lane="text", device=device, dtype="float32", weight_bytes=1, activation_bytes=1)


@pytest.mark.parametrize(
    ("plan", "asked", "words"),
    [
        ({"lanes": (lane("cpu"),)}, {}, "cuda:0 was asked for, but text is on cpu"),
        ({}, {"dtype": "float16"}, "dtype float16 was asked for, but it is float32"),
        ({}, {"kv_dtype": "int8"}, "kv_dtype int8 was asked for, but it is auto"),
        ({}, {"quant": "int8"}, "quant int8 was asked for, but weights are not quantized"),
    ],
)
def test_what_is_not_as_it_was_asked_for_is_not_measured(
    plan: dict[str, Any], asked: dict[str, Any], words: str
) -> None:
    model = TimedModel(plan=make_plan(**({"lanes": (lane("cuda:0"),), "device": "cuda:0"} | plan)))
    runtime = BenchRuntime(model=model, device=replace(fake_device("cuda:0"), rates=RATES))
    with pytest.raises(KamadoError, match=words) as caught:
        bench(runtime, "fake", SMALL, load=asked)  # type: ignore[arg-type]
    assert caught.value.exit_status == 1 and not isinstance(caught.value, GenerationFailed)
    assert model.requests == [] and model.unloaded


def test_weights_themselves_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from torch import nn

    from kamado.bench import fallback
    from kamado.weights.quantized.forms import HANDLERS
    from kamado.weights.quantized.tensor import QuantTensor

    layer = nn.Linear(64, 64)
    pipeline = SimpleNamespace(
        direct_pipeline=lambda: SimpleNamespace(components={"unet": layer, "scheduler": object()})
    )
    quant = Quant(scheme="int8-dynamic")
    for loaded in (SimpleNamespace(module=layer), pipeline):
        model = TimedModel(plan=make_plan(quant=quant), loaded=loaded)
        with pytest.raises(KamadoError, match="no weight is held so"):
            fallback.check_as_asked(BenchRuntime(), model, {"quant": "int8-dynamic"})  # type: ignore[arg-type]
        fallback.check_as_asked(BenchRuntime(), model, {"quant": "none"})  # type: ignore[arg-type]
    packed = HANDLERS["int8-dynamic"](layer.weight.detach(), quant)
    layer.weight = nn.Parameter(QuantTensor(packed, torch.float32), requires_grad=False)
    model = TimedModel(plan=make_plan(quant=quant), loaded=SimpleNamespace(module=layer))
    for has_kernel in (True, False):
        monkeypatch.setattr("kamado.weights.quantized.dynamic.can_multiply", lambda device, has=has_kernel: has)
        if has_kernel:
            fallback.check_as_asked(BenchRuntime(), model, {"quant": "int8-dynamic"})  # type: ignore[arg-type]
        else:
            with pytest.raises(KamadoError, match="no exact kernel for int8-dynamic"):
                fallback.check_as_asked(BenchRuntime(), model, {"quant": "int8-dynamic"})  # type: ignore[arg-type]
    elsewhere = TimedModel(loaded=SimpleNamespace(module=nn.Linear(2, 2)), plan=make_plan(lanes=(lane("cuda:0"),)))
    runtime = BenchRuntime(device=fake_device("cuda:0"))
    with pytest.raises(KamadoError, match="cuda:0 was asked for, but weights are on cpu"):
        fallback.check_as_asked(runtime, elsewhere, {})  # type: ignore[arg-type]
