"""Weights that are not on a CUDA device: copied to it while they are used, or back after another model was there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import kamado
import tiny
import tiny_pipelines
from kamado.memory.ledger import RAM

DEVICE = "cuda"
DEEP = {"num_hidden_layers": 12, "hidden_size": 256, "intermediate_size": 1024}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("llama", tmp_path_factory.mktemp("llama") / "llama", **DEEP)


def tokens(model: kamado.Model) -> list[Any]:
    prompts = [[8 + (7 * row + 3 * column) % 250 for column in range(5 + 11 * row)] for row in range(6)]
    requests = [{"prompt_tokens": each, "max_tokens": 24, "temperature": 0, "ignore_eos": True} for each in prompts]
    return [result.tokens for result in model.generate_many(requests)]


@pytest.mark.parametrize("quant", [None, "int8", "nf4"])
@pytest.mark.parametrize("tier", ["ram", "disk"])
def test_layers_that_are_copied_in_turn(
    llama: Path, quant: str | None, tier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a stream of their own, beside the layer that computes: every token is that of weights on the device."""
    if tier == "disk":
        monkeypatch.setattr("kamado.api._ram_budget", lambda device: 0)
    options: dict[str, Any] = {"kv_tokens": 2048, "dtype": "float32", "quant": quant}
    with kamado.Runtime(device=DEVICE, memory="2GiB") as runtime:
        wanted = tokens(runtime.load(llama, **options))
    with kamado.Runtime(device=DEVICE, memory=1) as runtime:
        least = runtime.plan(llama, **options).minimum_bytes
    with kamado.Runtime(device=DEVICE, memory=least * 5 // 4) as runtime:
        model = runtime.load(llama, **options)
        assert model.plan.tier == tier and model.plan.outside_bytes > model.plan.weight_bytes // 3
        for _ in range(3):
            assert tokens(model) == wanted


def test_pictures_within_less_than_their_weights(tmp_path: Path) -> None:
    folder = tiny_pipelines.build("sd15", tmp_path / "sd15")
    pictures = []
    with kamado.Runtime(device=DEVICE, memory=1) as runtime:
        least = runtime.plan(folder, dtype="float32").minimum_bytes
    for memory in (1 << 30, least):
        with kamado.Runtime(device=DEVICE, memory=memory) as runtime:
            model = runtime.load(folder, dtype="float32")
            assert (model.plan.outside_bytes > 0) == (memory == least)
            pictures.append(model.generate(**tiny_pipelines.arguments("sd15"), seed=1).pixels[0].astype(int))
    assert abs(pictures[0] - pictures[1]).max() <= 1


def test_models_that_take_turns_wait_in_ram(llama: Path, tmp_path: Path) -> None:
    other = tiny_pipelines.build("sd15", tmp_path / "sd15")
    with kamado.Runtime(device=DEVICE, memory="2GiB") as runtime:
        models = [runtime.load(llama, kv_tokens=2048), runtime.load(other)]
        budget = max(model.plan.total_bytes for model in models) + (1 << 20)
        wanted = tokens(models[0])
    before = torch.cuda.memory_allocated()
    with kamado.Runtime(device=DEVICE, memory=budget) as runtime:
        model, second = runtime.load(llama, kv_tokens=2048), runtime.load(other)
        for _ in range(3):
            assert tokens(model) == wanted
            assert second.generate(**tiny_pipelines.arguments("sd15"), seed=1).pixels[0].any()
            assert runtime.ledger.held(RAM) > 0
    assert torch.cuda.memory_allocated() <= before + (1 << 20)
