"""One request's fault is that request's alone: NaN, a forward that raises, memory that runs out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import kamado
import tiny

POISON = 200
"""A token whose embedding is made NaN."""
PROMPTS = [[5 + i, 9, 40 + i, 7, 12] * (2 + i) for i in range(6)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("llama", tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture
def model(folder: Path) -> Iterator[kamado.Model]:
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        model = runtime.load(folder, kv_tokens=512)
        module: Any = model.loaded.module  # type: ignore[attr-defined]
        with torch.inference_mode():
            module.get_input_embeddings().weight[POISON] = float("nan")
        yield model


def _request(prompt: list[int]) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "max_tokens": 12, "temperature": 0.0, "ignore_eos": True}


def _memory(model: kamado.Model) -> Any:
    return model.loaded.execution.memory  # type: ignore[attr-defined]


def test_nan_fails_alone_and_leaves_no_trace(model: kamado.Model) -> None:
    alone = [model.generate(**_request(prompt)).tokens for prompt in PROMPTS]
    # The bad request shares its first pages with a good one, and its NaN comes after them.
    requests = [_request(prompt) for prompt in PROMPTS]
    requests.insert(3, _request([*PROMPTS[5], *PROMPTS[5], POISON, 8, 9]))
    for _ in range(3):
        outcomes = dict(model.map(requests))
        assert isinstance(outcomes[3], kamado.GenerationFailed)
        assert "NaN" in str(outcomes[3])
        good = [outcomes[i] for i in range(len(requests)) if i != 3]
        assert [result.tokens for result in good] == alone  # type: ignore[union-attr]
    _memory(model).check_integrity()
    assert _memory(model).usage()["kv_tokens_free"] == 512
    store: Any = model.loaded.lanes[0].store  # type: ignore[attr-defined]
    assert not any(bool(torch.isnan(tensor).any()) for tensor in (*store.keys, *store.values))


@pytest.mark.parametrize(
    "error", [RuntimeError("a kernel failed"), MemoryError("no room"), torch.OutOfMemoryError("full")]
)
def test_a_forward_that_breaks_half_way_changes_nothing(model: kamado.Model, error: Exception) -> None:
    """Raised after some layers have written their pages: the batch is run again in halves, with the same answers."""
    alone = [model.generate(**_request(prompt)).tokens for prompt in PROMPTS]
    module: Any = model.loaded.module  # type: ignore[attr-defined]
    calls = 0

    def break_sometimes(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls % 7 == 3:
            raise error

    hook = module.model.layers[1].register_forward_pre_hook(break_sometimes)
    try:
        outcomes = dict(model.map([_request(prompt) for prompt in PROMPTS]))
    finally:
        hook.remove()
    answered = [i for i, outcome in outcomes.items() if isinstance(outcome, kamado.Result)]
    assert answered
    assert all(outcomes[i].tokens == alone[i] for i in answered)  # type: ignore[union-attr]
    failed = [outcome for outcome in outcomes.values() if not isinstance(outcome, kamado.Result)]
    assert all(isinstance(outcome, kamado.GenerationFailed) and outcome.__cause__ is error for outcome in failed)
    assert model.runtime.stats()["splits"] > 0
    assert _memory(model).usage()["kv_tokens_free"] == 512
    assert [model.generate(**_request(prompt)).tokens for prompt in PROMPTS] == alone
