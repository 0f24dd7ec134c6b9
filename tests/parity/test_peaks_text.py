"""What plans of language models say in all, beside what is really held and laid out, once a large step was measured."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

import kamado
import tiny
from kamado.memory.learned import ESTIMATED, MEASURED, SCALED
from kamado.tasks.library.live_bytes import LiveBytes

CONTEXT = 512
"""Of the tiny models."""
WIDE = {"intermediate_size": 512}
"""So that the forward takes more than drawing tokens, which plans count for any sampling."""
MODELS: dict[str, tuple[int, dict[str, Any]]] = {
    # Tokens of KV cache, such that the work below comes near to the largest step that is planned for; changes.
    # over pages
    "llama": (CONTEXT, WIDE),
    "gemma2": (CONTEXT, {}),
    "gpt2": (CONTEXT, {"n_inner": 512}),
    "qwen3_moe": (CONTEXT, {"moe_intermediate_size": 256}),
    "deepseek_v3": (CONTEXT, WIDE),
    "gpt_oss": (CONTEXT, {}),
    # a cache for each row: with keys of its own, with a state, with both
    "bloom": (CONTEXT, {}),
    "gpt_neo": (CONTEXT, {}),
    "gptj": (CONTEXT, {}),
    "mamba": (4096, {}),
    "mamba2": (4096, {}),
    "jamba": (4096, {}),
    "qwen3_next": (4096, {}),
    "recurrent_gemma": (CONTEXT, {}),
    # one at a time
    "rwkv": (4096, {}),
    # an encoder beside
    "bart": (4096, {"encoder_ffn_dim": 512, "decoder_ffn_dim": 512}),
}


class Watch:
    """The peak of each step of a lane from now on. Steps can be made to wait."""

    def __init__(self, lane: Any) -> None:
        self.peaks: list[int] = []
        self.open = threading.Event()
        self.entered = threading.Event()
        self.open.set()
        self._run = lane.run
        lane.run = self._watched

    def _watched(self, works: Any) -> Any:
        self.entered.set()
        assert self.open.wait(60)
        with LiveBytes() as live:
            results = self._run(works)
        self.peaks.append(live.bytes)
        return results


def _work(model: kamado.Model, watch: Watch, lengths: tuple[int, ...] = (8,)) -> None:
    """The largest prompt; then as many short ones as there are rows, which come while one of another length is
    computed. Each sorts the whole vocabulary."""
    sampling = {"temperature": 1.0, "typical_p": 0.5, "ignore_eos": True, "max_tokens": 2}
    model.generate(prompt_tokens=[8 + i % 200 for i in range(CONTEXT - 3)], **sampling)
    watch.open.clear()
    watch.entered.clear()
    first = model.submit(prompt_tokens=[9] * 40, **sampling)
    assert watch.entered.wait(60)
    rows = min(64, 4 * model.loaded.lanes[0].max_rows)  # some models take one at a time, and are slow
    prompts = [[9 + i % 200] * lengths[i % len(lengths)] for i in range(rows)]
    jobs = [first, *(model.submit(prompt_tokens=prompt, **sampling) for prompt in prompts)]
    watch.open.set()
    for job in jobs:
        job.result()


@pytest.mark.parametrize("name", MODELS)
def test_total_after_learning(name: str, tmp_path: Path) -> None:
    kv_tokens, changes = MODELS[name]
    folder = tiny.build(name, tmp_path / name, **changes)
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        first = runtime.plan(folder, kv_tokens=kv_tokens)
        assert first.activation_basis == ESTIMATED
        model = runtime.load(folder, kv_tokens=kv_tokens)
        watch = Watch(model.loaded.lanes[0])
        _work(model, watch)
        held = runtime.ledger.snapshot()["cpu"][model.owner]
        plan = runtime.plan(folder, kv_tokens=kv_tokens)
        assert plan.activation_basis in (MEASURED, SCALED)
        real = held["weights"] + held.get("kv", 0) + held.get("state", 0) + max(watch.peaks)
        assert plan.total_bytes == pytest.approx(real, rel=0.1)
        assert first.total_bytes >= 0.9 * real


@pytest.mark.parametrize("name", ["jamba", "gpt_neo"])
def test_padding_that_was_seen_counts(name: str, tmp_path: Path) -> None:
    """Prompts of several lengths are padded to the longest, and may take more than the largest step that is planned."""
    folder = tiny.build(name, tmp_path / name)
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        model = runtime.load(folder, kv_tokens=4096)
        watch = Watch(model.loaded.lanes[0])
        _work(model, watch, lengths=(4, 4, 4, 4, 4, 4, 4, 28))
        held = runtime.ledger.snapshot()["cpu"][model.owner]
        real = held["weights"] + held["state"] + max(watch.peaks)
        assert 0.95 * real <= runtime.plan(folder, kv_tokens=4096).total_bytes


@pytest.mark.parametrize("name", ["gpt_neo", "gpt_bigcode", "gptj", "codegen", "xglm", "m2m_100"])
def test_tables_that_a_model_makes_itself_count(name: str, tmp_path: Path) -> None:
    folder = tiny.build(name, tmp_path / name)
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        model = runtime.load(folder, kv_tokens=CONTEXT)
        held = runtime.ledger.snapshot()["cpu"][model.owner]["weights"]
        assert model.plan.weight_bytes == pytest.approx(held, rel=0.001)


@pytest.mark.parametrize("name", ["llama", "jamba", "t5"])
def test_tokens_of_measured_steps_are_the_same(name: str, tmp_path: Path) -> None:
    folder = tiny.build(name, tmp_path / name)
    request: dict[str, Any] = {"prompt_tokens": [9, 8, 20, 31], "max_tokens": 12, "temperature": 0, "logprobs": 2}
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        model = runtime.load(folder, kv_tokens=CONTEXT)
        measured, plain = (model.generate(**request) for _ in range(2))
        assert runtime.plan(folder, kv_tokens=CONTEXT) != model.plan
    assert measured.choices == plain.choices
