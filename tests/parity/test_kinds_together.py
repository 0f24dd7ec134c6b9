"""Chat, pictures, speech and embeddings at once, in one process under one budget: each as alone."""

from __future__ import annotations

import importlib
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import kamado

pytestmark = pytest.mark.slow
PROGRAMS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(PROGRAMS)
    return importlib.import_module("kinds")


def test_each_kind_gives_what_it_gives_alone(
    program: ModuleType, smollm2: Path, minilm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from speech_layout import write_speech_layout

    names = Namespace(chat="smollm2:135m", picture="emoji-diffusion:64", embedding="minilm:l6")
    kinds = program.sorts(names, str(write_speech_layout(tmp_path / "vits")))
    short = {"chat": {"max_tokens": 10}, "picture": {"steps": 4}}
    counts = {"chat": 2, "picture": 3, "speech": 2, "embedding": 8}

    def requests(sort: Any) -> list[dict[str, Any]]:
        return [{**sort.request(number), **short.get(sort.name, {})} for number in range(counts[sort.name])]

    with kamado.Runtime(device="cpu", memory="2GiB") as runtime:
        models = {sort.name: runtime.load(sort.reference) for sort in kinds}
        alone = {sort.name: [models[sort.name].generate(**each) for each in requests(sort)] for sort in kinds}
        jobs = [(sort, number, each) for sort in kinds for number, each in enumerate(requests(sort))]
        jobs.sort(key=lambda job: job[1])  # all kinds among each other
        running = [(sort, number, models[sort.name].submit(**each)) for sort, number, each in jobs]
        for sort, number, job in running:
            before = sort.value(alone[sort.name][number])
            assert len(before) and program.difference(before, sort.value(job.result())) <= program.TOLERANCE, sort.name
        held = runtime.stats()
        assert held["held_bytes"] <= 2 << 30 and len(held["models"]) == 4


def test_what_the_benchmark_says_of_fairness(program: ModuleType) -> None:
    even = program.fairness([{"slowdown": 4.0}] * 4)
    assert (even["jain"], even["least_share"], even["speed_of_all"]) == (1.0, 1.0, 1.0)
    one = program.fairness([{"slowdown": 1.0}, *[{"slowdown": 1e9}] * 3])
    assert one["jain"] == 0.25 and one["least_share"] == 0.0
    assert program.difference("a", "a") == 0.0 and program.difference("a", "b") == float("inf")
