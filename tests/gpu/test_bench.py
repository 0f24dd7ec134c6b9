"""Rates of CUDA devices, and what `kamado.bench` says of a model on one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import kamado
import tiny
from kamado.bench.options import BenchOptions
from kamado.bench.run import bench
from kamado.memory.devices import devices
from kamado.memory.rates import kept_rates, measure_rates


def test_every_gpu_is_measured(tmp_path: Path) -> None:
    gpus = [facts for facts in devices() if facts.kind == "cuda"]
    assert len(gpus) == torch.cuda.device_count()
    for facts in gpus:
        before = torch.cuda.memory_allocated(facts.name)
        rates = measure_rates(facts, home=tmp_path)
        assert torch.cuda.memory_allocated(facts.name) == before
        assert 1e10 < rates.read_bytes_per_s < 1e14 and 1e10 < rates.copy_bytes_per_s < 1e14
        assert {name for name in facts.good_dtypes if name != "float32"} <= set(rates.operations_per_s)
        assert rates.matrix_rate("float32") and ("fp8" in rates.operations_per_s) == ("fp8" in facts.features)
        assert all(1e11 < rate < 1e17 for rate in rates.operations_per_s.values()) and rates.notes == ()
        if "bfloat16" in facts.good_dtypes:
            assert rates.operations_per_s["bfloat16"] > rates.operations_per_s.get("float32", 0.0)
        assert rates.to_device_bytes_per_s["pinned"] > 0 and rates.to_device_bytes_per_s["pageable"] > 0
        assert kept_rates(facts, tmp_path) == rates


def test_a_model_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAMADO_HOME", str(tmp_path / "home"))
    model = tiny.build("llama", tmp_path / "model")
    options = BenchOptions(prompt_tokens=32, new_tokens=8, batches=(1, 3), reps=2)
    with kamado.Runtime(device="cuda", memory="1GiB") as runtime:
        rows = bench(runtime, str(model), options).rows
    assert [row["test"] for row in rows] == ["pp32", "tg8", "batch3"]
    assert all(row["device"] == "cuda:0" and row["peak_memory_bytes"] > 0 for row in rows)
    assert 0 < rows[1]["bandwidth_utilization"] < 1 and 0 < rows[0]["operations_utilization"] < 1
