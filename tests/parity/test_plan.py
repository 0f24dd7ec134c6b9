"""A plan says, before a weight is read, what is then really used: within a tenth, all in all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import kamado
import tiny
from kamado.weights.packed import PackedLinear
from kamado_models.language.pages import PageStore
from unit.sampling.test_scratch import Peak

KV_TOKENS = 4096


@pytest.fixture(scope="module")
def middling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 33 million parameters: large enough that what counts is what a real model's memory goes to."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tiny.build("llama", tmp_path_factory.mktemp("middling") / "llama")
    config = LlamaConfig(
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=4096,
        max_position_embeddings=2048,
    )
    with torch.random.fork_rng():
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _weight_bytes(module: Any) -> int:
    plain = {t.untyped_storage().data_ptr(): t.nbytes for t in (*module.parameters(), *module.buffers())}
    return sum(plain.values()) + sum(m.nbytes for m in module.modules() if isinstance(m, PackedLinear))


def test_total(middling: Path) -> None:
    """Weights and pages as allocated, temporaries at their highest over prefill and decode of a full batch."""
    with kamado.Runtime(device="cpu", memory="2GiB") as runtime:
        planned = runtime.plan(middling, kv_tokens=KV_TOKENS)
        model = runtime.load(middling, kv_tokens=KV_TOKENS)
        lane: Any = model.loaded.lanes[0]
        peak = Peak()
        run = lane.run

        def watched(works: Any) -> Any:
            with peak:
                return run(works)

        lane.run = watched
        model.generate_many(
            # The sampling that takes the most memory: sorting every row's whole vocabulary.
            [{"prompt_tokens": [5 + i] * 50, "max_tokens": 12, "temperature": 1.0, "typical_p": 0.5} for i in range(64)]
        )
        store: PageStore = lane.store
        module: Any = model.loaded.module  # type: ignore[attr-defined]
        weights = _weight_bytes(module)
        assert planned == model.plan
        assert planned.weight_bytes == pytest.approx(weights, rel=0.01)
        assert planned.kv_bytes == store.nbytes
        used = weights + store.nbytes + peak.peak_bytes
        assert planned.total_bytes == pytest.approx(used, rel=0.10), f"temporaries {peak.peak_bytes}"
        held = runtime.ledger.held()
        assert held == pytest.approx(planned.total_bytes, rel=0.01)


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "deepseek_v3", "gemma3", "bloom", "mamba2", "jamba", "t5"])
def test_weights_and_state(name: str, tmp_path: Path) -> None:
    """Of every kind of model: the ledger after loading says what was planned, and what is allocated."""
    folder = tiny.build(name, tmp_path / name)
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        model = runtime.load(folder, kv_tokens=512)
        module: Any = model.loaded.module  # type: ignore[attr-defined]
        weights = _weight_bytes(module)
        plan = model.plan
        assert plan.weight_bytes == pytest.approx(weights, rel=0.10)
        entries = runtime.ledger.snapshot()["cpu"][model.owner]
        assert entries["weights"] == pytest.approx(weights, rel=0.01)
        kept = entries.get("kv", 0) + entries.get("state", 0)
        assert kept == pytest.approx(plan.kv_bytes + plan.state_bytes, rel=0.10)
        lane: Any = model.loaded.lanes[0]
        if hasattr(lane, "store"):
            assert entries["kv"] == lane.store.nbytes


def test_a_model_that_does_not_fit_is_refused_before_a_weight_is_read(middling: Path) -> None:
    with kamado.Runtime(device="cpu", memory="40MiB") as runtime:
        plan = runtime.plan(middling)
        reads: list[Any] = []
        with pytest.raises(kamado.DoesNotFit) as caught:
            runtime.load(middling, progress=lambda done, total: reads.append(done))
        assert caught.value.needed_bytes == plan.minimum_bytes > 40 * 2**20
        assert caught.value.available_bytes == 40 * 2**20
        assert caught.value.options
        assert reads == []
        assert runtime.ledger.held() == 0


def test_a_model_that_just_fits_runs(middling: Path) -> None:
    with kamado.Runtime(device="cpu", memory="2GiB") as runtime:
        needed = runtime.plan(middling).minimum_bytes
    with kamado.Runtime(device="cpu", memory=needed) as runtime:
        model = runtime.load(middling)
        assert len(model.generate(prompt_tokens=[7] * 100, max_tokens=5, ignore_eos=True).tokens) == 5
