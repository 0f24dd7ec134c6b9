"""Recorded steps on a CUDA device: what they say is what the modules say, in every way, and memory is accounted for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import kamado
import tiny
from kamado.kernels.gpu import download, has_kernels

PROMPTS = [[8 + (7 * row + 3 * column) % 250 for column in range(5 + 11 * row)] for row in range(6)]
# Fused; fused with norms of heads; in place with a softcap, with windows.
NAMES = ("llama", "qwen2", "qwen3", "gemma2", "mistral")
EXPERTS = ("gpt_oss", "deepseek_v3", "qwen3_moe")


@pytest.fixture
def runtime() -> Iterator[kamado.Runtime]:
    with kamado.Runtime(device="cuda", memory="4GiB") as runtime:
        yield runtime


def _requests(**changes: Any) -> list[dict[str, Any]]:
    plain = {"max_tokens": 24, "temperature": 0.0, "ignore_eos": True}
    return [{"prompt_tokens": prompt, **plain, **changes} for prompt in PROMPTS]


def _answers(model: kamado.Model, requests: list[dict[str, Any]]) -> list[Any]:
    return [result.tokens for result in model.generate_many(requests)]


def _graphs(runtime: kamado.Runtime, model: kamado.Model) -> dict[str, Any]:
    found: dict[str, Any] = runtime.stats()["models"][model.owner]["graphs"]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_the_modules(name: str, runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder = tiny.build(name, tmp_path / name)
    plain = runtime.load(folder, dtype="float32", kv_tokens=4096, speculation="off", compile="off")
    recorded = runtime.load(folder, dtype="float32", kv_tokens=4096, speculation="off")
    for changes in ({}, {"temperature": 0.8, "seed": 3}, {"temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.1}):
        assert _answers(recorded, _requests(**changes)) == _answers(plain, _requests(**changes))
    figures = _graphs(runtime, recorded)
    assert figures["sizes"] and "note" not in figures, figures


@pytest.mark.parametrize("name", EXPERTS)
def test_mixtures_of_experts(name: str, runtime: kamado.Runtime, tmp_path: Path) -> None:
    """Which of them can be recorded depends on the products that torch has for the precision."""
    folder = tiny.build(name, tmp_path / name)
    plain = runtime.load(folder, dtype="float32", kv_tokens=4096, speculation="off", compile="off")
    recorded = runtime.load(folder, dtype="float32", kv_tokens=4096, speculation="off")
    for _ in range(2):
        assert _answers(recorded, _requests()) == _answers(plain, _requests())
    figures = _graphs(runtime, recorded)
    assert figures["sizes"] or "Waits" in figures["note"], figures


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_half_precision_is_recorded(name: str, dtype: str, runtime: kamado.Runtime, tmp_path: Path) -> None:
    model = runtime.load(tiny.build(name, tmp_path / name), dtype=dtype, kv_tokens=4096, speculation="off")
    assert all(len(answer) == 24 for answer in _answers(model, _requests()))
    figures = _graphs(runtime, model)
    assert figures["sizes"] and "note" not in figures, figures


@pytest.mark.parametrize("quant", ["int8", "int4", "nf4", "fp8", "int8-dynamic"])
def test_quantized_models_are_recorded(quant: str, runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder = tiny.build("llama", tmp_path / "llama", hidden_size=128, intermediate_size=256)
    plain = runtime.load(folder, quant=quant, dtype="float32", kv_tokens=4096, speculation="off", compile="off")
    recorded = runtime.load(folder, quant=quant, dtype="float32", kv_tokens=4096, speculation="off")
    assert _answers(recorded, _requests()[:1]) == _answers(plain, _requests()[:1])
    figures = _graphs(runtime, recorded)
    assert figures["sizes"] and "note" not in figures, figures


@pytest.mark.parametrize("kv_dtype", ["float16", "int8", "fp8"])
def test_pages_in_fewer_bits_are_recorded(kv_dtype: str, runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder = tiny.build("llama", tmp_path / "llama")
    model = runtime.load(folder, dtype="float32", kv_tokens=4096, kv_dtype=kv_dtype, speculation="off")
    plain = runtime.load(folder, dtype="float32", kv_tokens=4096, kv_dtype=kv_dtype, speculation="off", compile="off")
    assert _answers(model, _requests()[:1]) == _answers(plain, _requests()[:1])
    assert _graphs(runtime, model)["sizes"]


def test_memory(runtime: kamado.Runtime, tmp_path: Path) -> None:
    model = runtime.load(tiny.build("llama", tmp_path / "llama"), kv_tokens=4096, speculation="off")
    spare = runtime.ledger.held(owner=model.owner, kind="graphs")
    for count in (1, 6):
        _answers(model, _requests()[:count])
    figures = _graphs(runtime, model)
    assert len(figures["sizes"]) >= 2
    assert runtime.ledger.held(owner=model.owner, kind="graphs") == figures["bytes"] + spare
    loaded: Any = model._tenant.loaded
    reserved = torch.cuda.memory_reserved()
    assert loaded.trim() == figures["bytes"] and loaded.trim() == 0
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() < reserved
    assert _answers(model, _requests()) and _graphs(runtime, model)["sizes"]
    model.unload()
    assert runtime.ledger.held() == 0


def test_another_thread_may_use_the_gpu_meanwhile(runtime: kamado.Runtime, tmp_path: Path) -> None:
    import threading

    model = runtime.load(tiny.build("llama", tmp_path / "llama"), dtype="float32", kv_tokens=4096, speculation="off")
    ends = threading.Event()
    faults: list[RuntimeError] = []

    def busy() -> None:
        try:
            while not ends.is_set():
                x = torch.randn(256, 256, device="cuda")
                float((x @ x).sum())
                torch.empty(1 << 24, device="cuda")
        except RuntimeError as error:
            faults.append(error)

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        first = _answers(model, _requests())
        assert first == _answers(model, _requests())
    finally:
        ends.set()
        thread.join()
    assert not faults and _graphs(runtime, model)["sizes"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.8, "seed": 3, "logprobs": 2},
        {"temperature": 1.4, "top_p": 0.9, "seed": 1},
        {"repetition_penalty": 1.1, "temperature": 0.7, "seed": 2},
    ],
)
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_steps_launched_ahead_are_those_asked_for(
    name: str, changes: dict[str, Any], runtime: kamado.Runtime, tmp_path: Path
) -> None:
    folder = tiny.build(name, tmp_path / name)
    plain, ahead = (runtime.load(folder, dtype="float32", kv_tokens=4096, speculation="off") for _ in range(2))
    plain._tenant.loaded.lanes[0].ahead.stop("for this test")
    for count in (1, 6):  # sizes are recorded while they are asked for
        for _ in range(2):
            requests = _requests(max_tokens=60, **changes)[:count]
            assert _answers(ahead, requests) == _answers(plain, requests)
    figures = runtime.stats()["models"][ahead.owner]["ahead"]
    assert figures["taken"] > 100 and "note" not in figures, figures


def test_tokens_are_not_waited_for_behind_what_is_launched_later() -> None:
    tensor = torch.arange(8, device="cuda")
    waits = download(tensor + 1)
    torch.cuda._sleep(2_000_000_000)  # about a second
    end = torch.cuda.Event()
    end.record()
    assert waits().tolist() == list(range(1, 9))
    assert not end.query(), "the device still sleeps"
    torch.cuda.synchronize()


def test_kernels_are_there() -> None:
    assert has_kernels(torch.device("cuda:0")) == (torch.cuda.get_device_capability() >= (8, 0))
