"""What plans of language models say in all, beside what is really held and laid out, once large steps were measured."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import kamado
import tiny
from kamado.memory.learned import ESTIMATED, MEASURED, SCALED
from kamado.tasks.library.live_bytes import LiveBytes

KV_TOKENS = 1024
OTHERS = {"falcon": 2048, "falcon_h1": 4096}
"""Where states are so large beside a forward that the two are not at their largest together, with few tokens."""
SAMPLING: dict[str, Any] = {"temperature": 1.0, "typical_p": 0.5, "logprobs": 2, "ignore_eos": True}
"""Each row sorts the whole vocabulary."""


class Watch:
    """The most bytes of temporary tensors and state in each step of a lane from now on. Steps can be made to wait."""

    def __init__(self, model: kamado.Model) -> None:
        loaded: Any = model.loaded
        self.peaks: list[int] = []
        self.open = threading.Event()
        self.entered = threading.Event()
        self.open.set()
        self._live = LiveBytes()
        self._memory = loaded.execution.memory
        lane = loaded.lanes[0]
        self.max_rows: int = lane.max_rows
        self._run, lane.run = lane.run, self._watched
        if hasattr(self._memory, "shrink"):
            self._shrink, self._memory.shrink = self._memory.shrink, self._shrunk

    def _watched(self, works: Any) -> Any:
        self.entered.set()
        assert self.open.wait(60)
        # What nobody has reserved others might hold just now.
        free = getattr(self._memory, "free_bytes", 0)
        self._live.bytes = self._live.left()
        with self._live:
            results = self._run(works)
        self.peaks.append(self._live.bytes + free)
        return results

    def _shrunk(self, batch: Any) -> None:
        with self._live:
            self._shrink(batch)


def _longest(model: kamado.Model, kv_tokens: int) -> list[int]:
    """The longest prompt that there is room for. Generates with it."""
    room = kv_tokens if model.plan.kv_bytes_per_token else model.plan.step_tokens
    tokens = [8 + i % 200 for i in range(min(model.plan.context_tokens, room) - 3)]
    while True:
        with suppress(kamado.InvalidRequest, kamado.ContextOverflow):
            model.generate(prompt_tokens=tokens, max_tokens=2, **SAMPLING)
            return tokens
        tokens = tokens[:-16]


def _together(model: kamado.Model, watch: Watch, prompts: Sequence[list[int]], max_tokens: int = 2) -> None:
    """Requests that come while one of another length is computed."""
    watch.open.clear()
    watch.entered.clear()
    first = model.submit(prompt_tokens=[9] * 40, max_tokens=2, **SAMPLING)
    assert watch.entered.wait(60)
    jobs = [first, *(model.submit(prompt_tokens=prompt, max_tokens=max_tokens, **SAMPLING) for prompt in prompts)]
    watch.open.set()
    for job in jobs:
        job.result()


def _work(model: kamado.Model, watch: Watch, kv_tokens: int) -> None:
    """What comes near to the largest of all that is planned for: the longest prompt, alone and with others; as many
    short ones as there are rows; as many longer ones as there is room for, and such as begin to decode together after
    different prompts."""
    longest = _longest(model, kv_tokens)
    rows = min(64, 4 * watch.max_rows)  # some models take one at a time, and are slow
    _together(model, watch, [[9 + i % 200] * 8 for i in range(rows)])
    if rows < 64:
        return
    _together(model, watch, [longest] * max(1, kv_tokens // len(longest)))
    memory: Any = model.loaded.execution.memory  # type: ignore[attr-defined]
    if hasattr(memory, "bytes_per_token"):  # by rows
        few = min(memory.budget_bytes // memory._needed_bytes(64, 30), 64)
        _together(model, watch, [[9 + i % 200] * (512 // few) for i in range(few)])
        _together(model, watch, [[9 + i % 200] * (kv_tokens // 64 - 10 + i % 2) for i in range(64)], 8)


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_total_after_learning(name: str, tmp_path: Path) -> None:
    kv_tokens = OTHERS.get(name, KV_TOKENS)
    folder = tiny.build(name, tmp_path / name)
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        first = runtime.plan(folder, kv_tokens=kv_tokens)
        assert first.activation_basis == ESTIMATED
        model = runtime.load(folder, kv_tokens=kv_tokens)
        watch = Watch(model)
        _work(model, watch, kv_tokens)
        held = runtime.ledger.snapshot()["cpu"][model.owner]
        plan = runtime.plan(folder, kv_tokens=kv_tokens)
        assert plan.activation_basis in (MEASURED, SCALED)
        real = held["weights"] + held.get("kv", 0) + max(watch.peaks)
        assert plan.total_bytes == pytest.approx(real, rel=0.1)
        assert first.total_bytes >= 0.9 * real


@pytest.mark.parametrize("name", ["gpt_neo", "gpt_bigcode", "gptj", "codegen", "xglm", "m2m_100"])
def test_tables_that_a_model_makes_itself_count(name: str, tmp_path: Path) -> None:
    folder = tiny.build(name, tmp_path / name)
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        model = runtime.load(folder, kv_tokens=512)
        held = runtime.ledger.snapshot()["cpu"][model.owner]["weights"]
        assert model.plan.weight_bytes == pytest.approx(held, rel=0.001)


@pytest.mark.parametrize("name", ["llama", "jamba", "t5"])
def test_tokens_of_measured_steps_are_the_same(name: str, tmp_path: Path) -> None:
    folder = tiny.build(name, tmp_path / name)
    request: dict[str, Any] = {"prompt_tokens": [9, 8, 20, 31], "max_tokens": 12, "temperature": 0, "logprobs": 2}
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        model = runtime.load(folder, kv_tokens=512)
        measured, plain = (model.generate(**request) for _ in range(2))
        assert runtime.plan(folder, kv_tokens=512) != model.plan
    assert measured.choices == plain.choices
