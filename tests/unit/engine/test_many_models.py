"""Several models in one runtime, over models of integers: threads, asyncio, timers, files that change."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path

import pytest

import kamado
from kamado import api
from kamado.errors import (
    Cancelled,
    DeadlineExceeded,
    DoesNotFit,
    InvalidRequest,
    ModelNotFound,
    UnsupportedCheckpoint,
)

from .file_family import FileFamily, places, wait_until, wanted


def test_a_third_one_takes_the_place_of_the_first_which_comes_back(runtime: kamado.Runtime, family: FileFamily) -> None:
    a, b, c = (runtime.load(name) for name in "abc")
    assert places(runtime) == {"a": "out", "b": "memory", "c": "memory"}
    assert family.loaded[0].closed and not a.in_memory and a.usage() == {}
    with pytest.raises(InvalidRequest, match="not in memory"):
        _ = a.loaded
    assert a.capabilities == ("text",) and a.plan.weight_bytes == 1000
    assert list(a.generate("hello", max_tokens=20).tokens) == wanted("hello", 20)
    assert places(runtime) == {"a": "memory", "b": "out", "c": "memory"}
    assert runtime.ledger.held() == 2000
    for model in (b, c, a):
        assert list(model.generate("x", max_tokens=5).tokens) == wanted("x", 5)
        model.unload()
    assert runtime.ledger.held() == 0 and runtime.stats()["models"] == {}


def test_right_after_its_last_request_a_model_may_leave(
    runtime: kamado.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`generate` returns a moment before the loop has put the request away: that moment must not count."""
    models = [runtime.load(name, pinned=name == "a") for name in "abc"]
    ended = kamado.Model._ended

    def slowly(model: kamado.Model, request_id: str) -> None:
        time.sleep(0.01)
        ended(model, request_id)

    monkeypatch.setattr(kamado.Model, "_ended", slowly)
    for i in range(12):
        assert list(models[1 + i % 2].generate("hi", max_tokens=3).tokens) == wanted("hi", 3)


def test_a_bad_request_is_found_before_anybody_leaves_or_waits(runtime: kamado.Runtime, family: FileFamily) -> None:
    a, b = runtime.load("a", request={"max_tokens": 3}), runtime.load("b")
    assert family.checked == []  # there was room, so loading found out
    for toy in family.loaded:
        toy.step_s = 0.02
    for number in range(2):
        busy = [model.submit("x", max_tokens=95, ignore_eos=True) for model in (a, b) if number]
        with pytest.raises(InvalidRequest, match="1000"):
            runtime.load("c", request={"max_tokens": 5000})
        assert a.in_memory and b.in_memory and not any(job.done() for job in busy)
    for job in busy:
        job.cancel()
    runtime.load("c", request={"max_tokens": 3})
    assert family.checked == [{"max_tokens": 5000}] * 2 + [{"max_tokens": 3}]
    assert sorted(places(runtime).values()) == ["memory", "memory", "out"] and places(runtime)["c"] == "memory"


def test_nothing_is_checked_for_a_model_that_can_never_fit(runtime: kamado.Runtime, family: FileFamily) -> None:
    for name in "ab":
        runtime.load(name, pinned=True)
    with pytest.raises(DoesNotFit, match="pinned"):
        runtime.load("c", request={"max_tokens": 5000})
    assert family.checked == []


@pytest.mark.usefixtures("family")
def test_what_is_busy_stays_where_nobody_waits() -> None:
    with kamado.Runtime(device="cpu", memory=2500, max_wait=0) as runtime:
        _what_is_busy_stays(runtime)


def _what_is_busy_stays(runtime: kamado.Runtime) -> None:
    a = runtime.load("a", pinned=True)
    b = runtime.load("b")
    job = b.submit("hello", max_tokens=95, ignore_eos=True)
    with pytest.raises(DoesNotFit, match=r"a holds 1000 B \(pinned\), b holds 1000 B \(busy with 1 request\)"):
        runtime.load("c")
    job.cancel()
    with pytest.raises(Cancelled):
        job.result(10)
    c = runtime.load("c")
    a.unpin()
    c.pin()
    assert places(runtime) == {"a": "memory", "b": "out", "c": "memory"}
    b.generate("x", max_tokens=3)
    assert places(runtime) == {"a": "out", "b": "memory", "c": "memory"}


def test_a_refused_request_keeps_nobody(runtime: kamado.Runtime) -> None:
    a, _, _ = (runtime.load(name) for name in "abc")
    for _ in range(3):
        with pytest.raises(InvalidRequest, match="1000"):
            a.submit("x", max_tokens=5000)
    assert {figures["requests"] for figures in runtime.stats()["models"].values()} == {0}


def test_idle_for_too_long(runtime: kamado.Runtime) -> None:
    a, b = runtime.load("a", keep_alive=0.05), runtime.load("b", keep_alive=-1)
    a.generate("x", max_tokens=3)
    wait_until(lambda: not a.in_memory)
    wait_until(lambda: runtime.ledger.held() == 1000)
    assert b.in_memory
    assert list(a.generate("hello", max_tokens=20).tokens) == wanted("hello", 20)
    at_once = runtime.load("c", keep_alive=0)
    at_once.generate("x", max_tokens=3)
    wait_until(lambda: not at_once.in_memory)
    for bad in (-2, float("nan")):
        with pytest.raises(InvalidRequest, match="keep_alive"):
            runtime.load("d", keep_alive=bad)


def test_closing_while_timers_run(family: FileFamily) -> None:
    for _ in range(5):
        with kamado.Runtime(device="cpu", memory=2500) as runtime:
            model = runtime.load("a", keep_alive=0)
            model.generate("x", max_tokens=2)
        assert runtime.ledger.held() == 0 and family.loaded[-1].closed


def test_files_that_are_gone_or_changed(runtime: kamado.Runtime, tmp_path: Path) -> None:
    a, b, c = (runtime.load(name) for name in "abc")
    file = tmp_path / "a" / "weights"
    stays = c.submit("hello", max_tokens=90, ignore_eos=True)
    file.rename(tmp_path / "elsewhere")
    for _ in range(2):
        with pytest.raises(ModelNotFound, match=r"a cannot be brought back into memory: its file .*weights is gone"):
            a.generate("x")
    (tmp_path / "elsewhere").rename(file)
    assert list(a.generate("x", max_tokens=5).tokens) == wanted("x", 5)
    b.generate("y", max_tokens=3)
    os.utime(file, (1, 1))
    with pytest.raises(UnsupportedCheckpoint, match="was changed"):
        a.generate("x")
    assert list(b.generate("y", max_tokens=5).tokens) == wanted("y", 5)
    assert len(stays.result(10).tokens) == 90


def test_others_go_on_while_one_is_read(runtime: kamado.Runtime, family: FileFamily) -> None:
    a, _, c = (runtime.load(name) for name in "abc")
    family.seconds = 0.5
    job: list[kamado.Job] = []
    reading = threading.Thread(target=lambda: job.append(a.submit("hello", max_tokens=5)))
    reading.start()
    done = 0
    while reading.is_alive():
        c.generate("x", max_tokens=3)
        done += 1
    assert done > 5
    assert list(job[0].result(10).tokens) == wanted("hello", 5)


def test_asyncio_goes_on_while_one_is_read(runtime: kamado.Runtime, family: FileFamily) -> None:
    a, _, _ = (runtime.load(name) for name in "abc")
    family.seconds = 0.3

    async def main() -> None:
        answering = asyncio.create_task(a.agenerate("hello", max_tokens=5))
        ticks = 0
        while not answering.done():
            await asyncio.sleep(0.01)
            ticks += 1
        assert ticks > 5
        assert list(answering.result().tokens) == wanted("hello", 5)

    asyncio.run(main())


def test_a_request_cancelled_while_its_model_is_read(runtime: kamado.Runtime, family: FileFamily) -> None:
    a, _, _ = (runtime.load(name) for name in "abc")
    family.seconds = 0.2

    async def main() -> None:
        answering = asyncio.create_task(a.agenerate("hello", max_tokens=95, ignore_eos=True))
        await asyncio.sleep(0.05)
        answering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answering
        async with asyncio.timeout(10):
            while not a.in_memory or a.jobs():
                await asyncio.sleep(0.01)

    asyncio.run(main())


def test_waiting_for_busy_models(runtime: kamado.Runtime, family: FileFamily) -> None:
    """In asyncio, where it blocks nobody, can be given up, and ends with the deadline."""
    a, b, c = (runtime.load(name) for name in "abc")
    long = {"max_tokens": 95, "ignore_eos": True}

    async def main() -> None:
        for toy in family.loaded:
            toy.step_s = 0.01
        busy = [model.submit("x", **long) for model in (b, c)]
        patient = asyncio.create_task(a.agenerate("hello", max_tokens=5))
        tired = [asyncio.create_task(a.agenerate("hello", max_tokens=5)) for _ in range(40)]  # more than asyncio's pool
        begin = time.monotonic()
        with pytest.raises(DeadlineExceeded, match="while it waited"):
            await a.agenerate("hello", deadline_s=0.05)
        assert time.monotonic() - begin < 0.5 and not any(job.done() for job in busy)
        assert len((await asyncio.to_thread(c.generate, "y", max_tokens=2)).tokens) == 2  # its room is not wanted
        assert runtime.stats()["waiting"] == 41
        for task in tired:
            task.cancel()
        await asyncio.gather(*tired, return_exceptions=True)
        async with asyncio.timeout(10):
            while runtime.stats()["waiting"] > 1:
                await asyncio.sleep(0.005)
        assert all(task.cancelled() for task in tired) and not any(job.done() for job in busy)
        result = await patient
        assert list(result.tokens) == wanted("hello", 5) and result.timings.queued_s > 0.5
        assert runtime.stats()["waiting"] == 0
        assert busy[0].done() and [len(job.result(10).tokens) for job in busy] == [95, 95]

    asyncio.run(main())


def test_a_callback_does_not_wait(runtime: kamado.Runtime) -> None:
    a, b, _ = (runtime.load(name, pinned=name == "c") for name in "abc")
    busy = b.submit("x", max_tokens=95, ignore_eos=True)
    told: list[Exception] = []

    def ask() -> None:
        try:
            a.submit("x")
        except DoesNotFit as error:
            told.append(error)

    runtime._session.call(ask)
    assert "b holds 1000 B (busy with 1 request)" in str(told[0]) and not busy.done()
    assert len(a.generate("x", max_tokens=3).tokens) == 3 and busy.done()


def test_the_shared_runtime_answers_while_another_model_is_loaded(
    runtime: kamado.Runtime, family: FileFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "_default_runtime", runtime)
    monkeypatch.setattr(api, "_default_models", {})
    kamado.generate("a", "x", max_tokens=2)
    family.seconds = 0.5
    results: list[kamado.Result] = []
    threads = [
        threading.Thread(target=lambda: results.append(kamado.generate("b", "hello", max_tokens=5))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    done = 0
    while any(thread.is_alive() for thread in threads):
        assert list(kamado.generate("a", "x", max_tokens=2).tokens) == wanted("x", 2)
        done += 1
    assert done > 5 and [list(result.tokens) for result in results] == [wanted("hello", 5)] * 3
    assert [toy.plan.reference for toy in family.loaded] == ["a", "b"]  # each is read once
