"""Runtime, Model and Job over a model of integers: threads, asyncio, cancelling, unloading."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import kamado
from kamado import api
from kamado.checkpoint.types import Checkpoint
from kamado.errors import Cancelled, DeadlineExceeded, GenerationFailed, InvalidRequest
from kamado.events import Finished, Started, Token
from kamado.memory.plan import LanePlan, Plan, PlanOptions

from .toy_family import ToyFamily
from .toys import expected


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch) -> ToyFamily:
    family = ToyFamily()

    def inspect(reference: str, offline: bool = False) -> Checkpoint:
        return Checkpoint(
            reference=reference, root=Path(), layout="transformers", config={}, metadata={}, tensors={}, files={}
        )

    monkeypatch.setattr(api, "inspect_checkpoint", inspect)
    monkeypatch.setattr(api, "find", lambda checkpoint: family)
    monkeypatch.setattr(api, "_inference_mode", nullcontext)
    return family


@pytest.fixture
def runtime(family: ToyFamily) -> Iterator[kamado.Runtime]:
    with kamado.Runtime(device="cpu", memory="1MiB") as runtime:
        yield runtime


@pytest.fixture
def model(runtime: kamado.Runtime) -> kamado.Model:
    return runtime.load("toy")


def wanted(prompt: str, max_tokens: int) -> list[int]:
    return expected([1 + ord(c) % 40 for c in prompt], max_tokens)


def test_generate_and_stream_say_the_same(model: kamado.Model) -> None:
    result = model.generate("hello", max_tokens=30)
    assert list(result.tokens) == wanted("hello", 30)
    events = list(model.stream("hello", max_tokens=30))
    assert [e.token_id for e in events if isinstance(e, Token)] == list(result.tokens)
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    assert 0 <= result.timings.queued_s <= (result.timings.ttft_s or 0) <= result.timings.total_s


def test_bad_options_raise_before_the_first_event(model: kamado.Model) -> None:
    with pytest.raises(InvalidRequest, match="1000"):
        model.stream("x", max_tokens=2000)
    with pytest.raises(InvalidRequest, match="temperature"):
        model.submit("x", temperature=-1)
    assert model.jobs() == []


def test_a_cancelled_job_says_so_and_keeps_its_events(model: kamado.Model) -> None:
    job = model.submit("hello", max_tokens=90, ignore_eos=True)
    iterator = job.events()
    for event in iterator:
        if isinstance(event, Token):
            break
    job.cancel()
    with pytest.raises(Cancelled):
        job.result(timeout=10)
    assert job.done()
    last = list(job.events())[-1]
    assert isinstance(last, Finished)
    assert last.reason == "cancelled"
    job.cancel()


def test_a_result_that_is_late_times_out_and_the_request_goes_on(model: kamado.Model) -> None:
    job = model.submit("hello", max_tokens=40)
    with pytest.raises(TimeoutError):
        job.result(timeout=0.0)
    assert list(job.result(timeout=10).tokens) == wanted("hello", 40)


def test_a_deadline(model: kamado.Model) -> None:
    with pytest.raises(DeadlineExceeded):
        model.generate("hello", max_tokens=95, ignore_eos=True, deadline_s=0.01)


def test_leaving_a_stream_cancels_the_request(model: kamado.Model, family: ToyFamily) -> None:
    stream = model.stream("hello", max_tokens=90, ignore_eos=True)
    next(stream)
    stream.close()
    deadline = time.monotonic() + 10
    while model.jobs() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert model.jobs() == []
    assert family.loaded[0].toy.memory.pool.num_free == 64


def test_generate_many_keeps_the_order_and_batches(model: kamado.Model, runtime: kamado.Runtime) -> None:
    prompts = [f"prompt {i}" for i in range(20)]
    results = model.generate_many([{"prompt": prompt, "max_tokens": 20} for prompt in prompts])
    assert [list(r.tokens) for r in results] == [wanted(prompt, 20) for prompt in prompts]
    (lane,) = runtime.stats()["lanes"].values()
    assert lane["mean_batch"] > 3


def test_generate_many_raises_the_first_failure_and_cancels_the_rest(model: kamado.Model) -> None:
    with pytest.raises(InvalidRequest):
        model.generate_many(
            [{"prompt": "a", "max_tokens": 90, "ignore_eos": True}, {"prompt": "b", "max_tokens": 5000}]
        )
    deadline = time.monotonic() + 10
    while model.jobs() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert model.jobs() == []


def test_map_reads_lazily_and_a_bad_request_fails_alone(model: kamado.Model) -> None:
    read = 0

    def requests() -> Iterator[dict[str, Any]]:
        nonlocal read
        for i in range(30):
            read += 1
            yield {"prompt": f"p{i}", "max_tokens": 5000 if i == 7 else 10}

    found: dict[int, Any] = {}
    for position, outcome in model.map(requests(), concurrency=4):
        found[position] = outcome
        assert read <= len(found) + 5
    assert sorted(found) == list(range(30))
    assert isinstance(found[7], InvalidRequest)
    assert all(list(found[i].tokens) == wanted(f"p{i}", 10) for i in range(30) if i != 7)


def test_leaving_map_cancels_what_flies(model: kamado.Model) -> None:
    outcomes = model.map(
        ({"prompt": f"p{i}", "max_tokens": 90, "ignore_eos": True} for i in range(1000)), concurrency=8
    )
    next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 10
    while model.jobs() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert model.jobs() == []


def test_many_threads_at_once(model: kamado.Model) -> None:
    failures: list[str] = []

    def ask(number: int) -> None:
        for i in range(4):
            prompt = f"{number}-{i}"
            if list(model.generate(prompt, max_tokens=15).tokens) != wanted(prompt, 15):
                failures.append(prompt)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_asyncio_faces(model: kamado.Model) -> None:
    async def main() -> None:
        results = await asyncio.gather(*(model.agenerate(f"a{i}", max_tokens=12) for i in range(10)))
        assert [list(r.tokens) for r in results] == [wanted(f"a{i}", 12) for i in range(10)]
        tokens = [e.token_id async for e in model.astream("b", max_tokens=12) if isinstance(e, Token)]
        assert tokens == wanted("b", 12)
        slow = asyncio.create_task(model.agenerate("c", max_tokens=95, ignore_eos=True))
        await asyncio.sleep(0.01)
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        async with asyncio.timeout(10):
            while model.jobs():
                await asyncio.sleep(0.01)

    asyncio.run(main())


def test_after_random_submits_and_cancels_everything_is_where_it_began(
    model: kamado.Model, runtime: kamado.Runtime, family: ToyFamily
) -> None:
    rng = random.Random(5)
    before = runtime.ledger.snapshot()
    jobs = []
    for i in range(200):
        jobs.append(model.submit(f"request {i}", max_tokens=rng.randrange(1, 40), n=rng.choice([1, 1, 3])))
        if rng.random() < 0.5:
            rng.choice(jobs).cancel()
        if rng.random() < 0.1:
            time.sleep(0.002)
    finished = cancelled = 0
    for job in jobs:
        try:
            job.result(timeout=60)
            finished += 1
        except Cancelled:
            cancelled += 1
        ends = [e for e in job.events() if isinstance(e, Finished)]
        assert len({e.index for e in ends}) == len(ends) >= 1
    assert finished > 20
    assert cancelled > 20
    memory = family.loaded[0].toy.memory
    memory.check_integrity()
    assert memory.pool.num_free == 64
    assert runtime.ledger.snapshot() == before
    assert model.jobs() == []


def test_unloading_cancels_and_gives_every_byte_back(runtime: kamado.Runtime, family: ToyFamily) -> None:
    first, second = runtime.load("one"), runtime.load("two")
    job = first.submit("x", max_tokens=95, ignore_eos=True)
    first.unload()
    with pytest.raises(Cancelled):
        job.result(timeout=10)
    assert family.loaded[0].closed
    assert runtime.ledger.held() == 1000
    assert list(second.generate("y", max_tokens=5).tokens) == wanted("y", 5)
    first.unload()
    second.unload()
    assert runtime.ledger.held() == 0


def test_a_bad_request_comes_before_loading(
    runtime: kamado.Runtime, family: ToyFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidRequest, match="1000"):
        runtime.load("toy", request={"prompt": "x", "max_tokens": 2000})
    monkeypatch.setattr(api, "_default_runtime", runtime)
    monkeypatch.setattr(api, "_default_models", {})
    with pytest.raises(InvalidRequest, match="1000"):
        kamado.generate("toy", "x", max_tokens=2000)
    assert family.loaded == [] and runtime.ledger.held() == 0 and runtime.stats()["models"] == {}
    for _ in range(2):
        assert list(kamado.generate("toy", "x", max_tokens=5).tokens) == wanted("x", 5)
    assert len(family.loaded) == 1


def test_what_is_no_request_is_found_by_a_check(runtime: kamado.Runtime, model: kamado.Model) -> None:
    good = {"prompt": "x", "max_tokens": 5}
    for check in (model.check, partial(runtime.check, "toy")):
        check([good, good])
        for wrong, says in (({**good, "max_tokens": 2000}, "1000"), ("x", "a request is a mapping like")):
            with pytest.raises(InvalidRequest, match=says):
                check(iter([good, wrong]))
    assert model.jobs() == []


def test_a_load_that_fails_leaves_nothing(runtime: kamado.Runtime) -> None:
    with pytest.raises(OSError, match="disk"):
        runtime.load("broken")
    assert runtime.ledger.held() == 0
    assert runtime.stats()["models"] == {}


def test_a_closed_runtime_refuses_and_ends_what_runs(family: ToyFamily) -> None:
    runtime = kamado.Runtime(device="cpu", memory="1MiB")
    model = runtime.load("toy")
    job = model.submit("x", max_tokens=95, ignore_eos=True)
    runtime.close()
    runtime.close()
    with pytest.raises(Cancelled):
        job.result(timeout=10)
    with pytest.raises((Cancelled, InvalidRequest)):
        model.submit("x")
    with pytest.raises(InvalidRequest, match="closed"):
        runtime.load("toy")
    job.cancel()
    assert not [t for t in threading.enumerate() if t.name == "kamado-loop" and t.is_alive()]


def test_a_fault_of_the_loop_ends_requests_and_not_the_loop(
    model: kamado.Model, runtime: kamado.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = runtime._loop.step
    monkeypatch.setattr(runtime._loop, "step", lambda: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(GenerationFailed, match="a bug"):
        model.generate("x", max_tokens=5)
    monkeypatch.setattr(runtime._loop, "step", step)
    assert list(model.generate("x", max_tokens=5).tokens) == wanted("x", 5)


@pytest.mark.parametrize("bad", [{"kv_tokens": 0}, {"step_budget": -1}, {"dtype": "int3"}, {"quant": "int3"}])
def test_impossible_load_settings(runtime: kamado.Runtime, bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        runtime.load("toy", **bad)


def test_a_model_that_does_not_fit_is_refused_with_the_numbers(family: ToyFamily) -> None:
    with kamado.Runtime(device="cpu", memory=900) as runtime, pytest.raises(kamado.DoesNotFit) as caught:
        runtime.load("toy")
    assert (caught.value.needed_bytes, caught.value.available_bytes) == (1000, 900)


def test_a_callback_that_raises_hurts_nobody(model: kamado.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", reported.append)
    job = model.submit("x", max_tokens=3)
    job.when_done(lambda: 1 / 0)  # type: ignore[arg-type,return-value]
    assert list(model.generate("y", max_tokens=5).tokens) == wanted("y", 5)
    assert list(job.result(timeout=10).tokens) == wanted("x", 3)
    assert [entry.exc_type for entry in reported] == [ZeroDivisionError]


def test_a_callback_may_unload_its_model(model: kamado.Model, runtime: kamado.Runtime) -> None:
    job = model.submit("x", max_tokens=30)
    unloaded = threading.Event()

    def unload() -> None:
        model.unload()
        unloaded.set()

    job.when_done(unload)
    assert unloaded.wait(10)
    assert runtime.ledger.held() == 0
    with pytest.raises(InvalidRequest, match="unloaded"):
        model.generate("y")


def test_a_stream_that_is_dropped_unread_is_cancelled(model: kamado.Model) -> None:
    model.stream("hello", max_tokens=90, ignore_eos=True)
    deadline = time.monotonic() + 10
    while model.jobs() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert model.jobs() == []


def test_models_share_the_room_for_temporary_tensors(runtime: kamado.Runtime, family: ToyFamily) -> None:
    plan = family.plan

    def planned(checkpoint: Checkpoint, options: PlanOptions) -> Plan:
        lane = LanePlan(lane="lm", device="cpu", dtype="float32", weight_bytes=1000, activation_bytes=5000)
        return replace(plan(checkpoint, options), lanes=(lane,), minimum_bytes=6000)

    family.plan = planned  # type: ignore[method-assign]
    first = runtime.load("one")
    second = runtime.load("two")
    assert runtime.ledger.held() == 2000 + 5000
    first.unload()
    assert runtime.ledger.held() == 1000 + 5000
    second.unload()
    assert runtime.ledger.held() == 0
