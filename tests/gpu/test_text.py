"""Text on a CUDA device: right answers, in a batch and alone, and every byte given back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import kamado
from tiny import Oracle, build

DEVICE = "cuda"
PROMPTS = [[8 + (7 * row + 3 * column) % 250 for column in range(5 + 11 * row)] for row in range(6)]


@pytest.fixture(scope="module", params=["llama", "mamba"])
def tiny_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model with paged attention, and one with a state for each sequence."""
    return build(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def runtime() -> Iterator[kamado.Runtime]:
    with kamado.Runtime(device=DEVICE, memory="2GiB") as runtime:
        yield runtime


def _requests() -> list[dict[str, object]]:
    return [{"prompt_tokens": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": True} for prompt in PROMPTS]


def test_greedy_answers_are_those_of_transformers(runtime: kamado.Runtime, tiny_folder: Path) -> None:
    oracle = Oracle(tiny_folder)
    model = runtime.load(tiny_folder, dtype="float32")
    results = model.generate_many(_requests())
    assert [list(result.tokens) for result in results] == [oracle.greedy(prompt, 12) for prompt in PROMPTS]


def test_seeded_answers_alone_and_in_a_batch_are_equal(runtime: kamado.Runtime, tiny_folder: Path) -> None:
    model = runtime.load(tiny_folder, dtype="float32")
    requests = [{**request, "temperature": 1.0, "seed": seed} for seed, request in enumerate(_requests())]
    alone = [model.generate(**request).tokens for request in requests]  # type: ignore[arg-type]
    assert [result.tokens for result in model.generate_many(requests)] == alone


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_answers(runtime: kamado.Runtime, tiny_folder: Path, dtype: str) -> None:
    model = runtime.load(tiny_folder, dtype=dtype)
    assert model.plan.dtype == dtype
    for result in model.generate_many(_requests()):
        assert len(result.tokens) == 12
        assert result.finish_reason == "length"


def test_memory_is_planned_and_given_back(tiny_folder: Path) -> None:
    import torch

    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    with kamado.Runtime(device=DEVICE, memory="2GiB") as runtime:
        model = runtime.load(tiny_folder, dtype="float32")
        torch.cuda.reset_peak_memory_stats()
        model.generate_many(_requests())
        # cuBLAS keeps workspaces of its own that no plan of one model holds.
        assert torch.cuda.max_memory_allocated() - before <= model.plan.total_bytes + 64 * 1024**2
        model.unload()
        assert runtime.ledger.held() == 0
    assert torch.cuda.memory_allocated() - before <= 64 * 1024**2
