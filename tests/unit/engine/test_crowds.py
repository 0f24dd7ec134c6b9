"""Many threads and more models than there is room for: nobody is turned away, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import random
import threading
from contextlib import suppress

import pytest

import kamado
from kamado.errors import (
    Cancelled,
    DeadlineExceeded,
    DoesNotFit,
)

from .file_family import FileFamily, places, wait_until, wanted


def test_many_threads_ask_more_models_than_there_is_room_for(runtime: kamado.Runtime, family: FileFamily) -> None:
    models = [runtime.load(name, keep_alive=0.01 if name == "a" else None) for name in "abcd"]
    answered, failures = [0, 0, 0, 0], []

    def ask(number: int) -> None:
        rng = random.Random(number)
        for i in range(30):
            which = rng.randrange(4)
            prompt = f"{number}-{i}"
            if list(models[which].generate(prompt, max_tokens=5).tokens) != wanted(prompt, 5):
                failures.append(prompt)
            answered[which] += 1

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert failures == [] and sum(answered) == 6 * 30  # both places are busy now and then, and nobody is turned away
    wait_until(lambda: places(runtime)["a"] != "memory")  # it leaves by itself, perhaps just now
    assert runtime.ledger.held() <= 2000
    assert sum(not toy.closed for toy in family.loaded) == list(places(runtime).values()).count("memory") <= 2
    for toy in family.loaded:
        toy.toy.memory.check_integrity()
    for model in models:
        model.unload()
    assert runtime.ledger.held() == 0 and all(toy.closed for toy in family.loaded)


async def _asked_and_cancelled(model: kamado.Model, after_s: float) -> None:
    asking = asyncio.create_task(model.agenerate("hello", max_tokens=10))
    await asyncio.sleep(after_s)
    asking.cancel()
    with suppress(asyncio.CancelledError):
        await asking


@pytest.mark.parametrize("max_wait", [0.02, 300])
def test_pins_deadlines_and_cancelled_requests_in_a_crowd(family: FileFamily, max_wait: float) -> None:
    """Nobody waits for ever, and who gave up holds nothing."""
    failures: list[BaseException] = []

    def live(runtime: kamado.Runtime, models: list[kamado.Model], number: int) -> None:
        rng = random.Random(number)
        try:
            for _ in range(25):
                model, what = rng.choice(models), rng.random()
                with suppress(DoesNotFit, DeadlineExceeded):
                    if what < 0.5:
                        model.generate("hello", max_tokens=rng.randrange(1, 20))
                    elif what < 0.7:
                        model.generate("hello", max_tokens=20, deadline_s=0.001 + rng.random() * 0.02)
                    elif what < 0.8:
                        model.pin()
                        model.unpin()
                    else:
                        asyncio.run(_asked_and_cancelled(model, rng.random() * 0.01))
        except BaseException as error:  # noqa: BLE001 - the test tells of it
            failures.append(error)

    with kamado.Runtime(device="cpu", memory=2500, max_wait=max_wait) as runtime:
        models = [runtime.load(name) for name in "abcd"]
        threads = [threading.Thread(target=live, args=(runtime, models, number)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert failures == []
        wait_until(lambda: not any(thread.name == "kamado-waiting" for thread in threading.enumerate()))
        for model in models:
            assert list(model.generate("last", max_tokens=5).tokens) == wanted("last", 5)
        runtime._session.call(lambda: None)  # the step that the last one ended in is over
        assert {figures["requests"] for figures in runtime.stats()["models"].values()} == {0}
    assert runtime.ledger.held() == 0 and all(toy.closed for toy in family.loaded)


def test_loading_unloading_and_asking_at_once(runtime: kamado.Runtime, family: FileFamily) -> None:
    """Nobody waits for ever, and nothing stays behind."""
    failures: list[BaseException] = []

    def live(number: int) -> None:
        try:
            for _ in range(10):
                model = runtime.load(f"m{number}")
                job = model.submit("x", max_tokens=20, ignore_eos=True)
                job.when_done(model.unload)
                with suppress(Cancelled):
                    job.result(30)
                model.unload()
        except BaseException as error:  # noqa: BLE001 - the test tells of it
            failures.append(error)

    threads = [threading.Thread(target=live, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert failures == []
    wait_until(lambda: runtime.ledger.held() == 0)
    assert all(toy.closed for toy in family.loaded) and runtime.stats()["models"] == {}
