"""`kamado bench` measures nothing where the kernel or device that was asked for is not what runs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import kamado
import tiny
from fake_bench import BenchRuntime, TimedModel
from fake_model import make_plan
from kamado.bench import fallback
from kamado.bench.options import BenchOptions
from kamado.bench.run import bench
from kamado.errors import KamadoError
from kamado.kernels.native import PORTABLE, Native, native
from kamado.memory.rates import Rates, keep_rates, torch_version
from kamado.quant import SCHEMES, parse_quant
from kamado.weights.quantized.forms import HANDLERS
from kamado.weights.quantized.pieces import Pieces
from kamado.weights.quantized.tensor import QuantTensor
from kamado.weights.quantized.tiled import tile
from typed import typed

AT_ALL = ("kamado.kernels.native.native", "kamado.weights.quantized.tiled.native")


def without_kernels(monkeypatch: pytest.MonkeyPatch, installed: list[Native] | None = None) -> None:
    """As on a machine where there was no compiler, or whose CPU they do not know."""
    for name in (*AT_ALL, "kamado_models.language.native_step.native"):
        monkeypatch.setattr(name, lambda: None)
    monkeypatch.setattr("kamado.kernels.native.installed", lambda: installed or [])


def quantized(scheme: str, *, tiled: bool) -> nn.Linear:
    layer = nn.Linear(64, 64)
    packed: Any = HANDLERS[scheme](layer.weight.detach(), SCHEMES[scheme])
    layer.weight = nn.Parameter(QuantTensor(tile(packed) if tiled else packed, torch.float32), requires_grad=False)
    return layer


def model_of(layer: nn.Module, scheme: str, **changes: Any) -> TimedModel:
    return TimedModel(plan=make_plan(quant=parse_quant(scheme)), loaded=SimpleNamespace(module=layer), **changes)


@pytest.mark.parametrize("scheme", ["int8-weight-only", "int4"])
def test_kernels_in_c_that_are_not_there(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = model_of(quantized(scheme, tiled=False), scheme), {"quant": scheme}
    without_kernels(monkeypatch)
    with pytest.raises(KamadoError, match=r"kernels in C are not there .* nothing was measured") as caught:
        fallback.check_as_asked(BenchRuntime(), model, asked)  # type: ignore[arg-type]
    assert caught.value.exit_status == 1
    without_kernels(monkeypatch, [Native(PORTABLE, 0, None)])
    with pytest.raises(KamadoError, match="none for this CPU that is faster than torch"):
        fallback.check_as_asked(BenchRuntime(), model, asked)  # type: ignore[arg-type]
    monkeypatch.setattr("kamado.kernels.native.native", lambda: Native("avx2", 0, None))
    with pytest.raises(KamadoError, match="weights were not laid out for the kernels"):
        fallback.check_as_asked(BenchRuntime(), model, asked)  # type: ignore[arg-type]
    assert fallback.kernel_of(model) == (None, 0.0)  # type: ignore[arg-type]
    ready = model_of(quantized(scheme, tiled=True), scheme)
    fallback.check_as_asked(BenchRuntime(), ready, asked)  # type: ignore[arg-type]
    assert fallback.kernel_of(ready) == ("avx2", 1.0)  # type: ignore[arg-type]
    both = nn.Sequential(quantized(scheme, tiled=True), quantized(scheme, tiled=False), nn.Embedding(3, 4))
    joined = quantized(scheme, tiled=True)
    joined.weight.packed = Pieces([joined.weight.packed, both[1].weight.packed])  # type: ignore[attr-defined]
    assert fallback.kernel_of(model_of(joined, scheme)) == ("avx2", 0.5)  # type: ignore[arg-type]
    assert fallback.kernel_of(model_of(both, scheme)) == ("avx2", 0.5)  # type: ignore[arg-type]


def test_what_the_kernels_are_not_for_is_measured_without(monkeypatch: pytest.MonkeyPatch) -> None:
    without_kernels(monkeypatch)
    for model, asked in [
        (model_of(quantized("nf4", tiled=False), "nf4"), "nf4"),
        (model_of(quantized("int8-weight-only", tiled=False), "int8-weight-only"), None),
    ]:
        fallback.check_as_asked(BenchRuntime(), model, {"quant": asked})  # type: ignore[arg-type]
        assert fallback.kernel_of(model) == (None, 0.0)  # type: ignore[arg-type]


def test_a_model_that_runs_with_and_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KAMADO_HOME", str(tmp_path / "home"))
    model = str(tiny.build("llama", tmp_path / "model"))
    with kamado.Runtime(device="cpu", memory="300MB") as runtime:
        facts = {"threads": torch.get_num_threads(), "torch": torch_version(), "measured_s": 1.0}
        assert keep_rates(runtime.device, Rates(read_bytes_per_s=1e9, copy_bytes_per_s=1e9, **facts))
    run, small = typed(monkeypatch, capsys), ("-p", "0", "-n", "4", "-b", "1", "--reps", "1", "--json")
    words = ("bench", model, "--quant", "int8", *small, "--device", "cpu", "--memory", "300MB")
    capsys.readouterr()
    if native() is not None:
        done = run(*words)
        (row,) = json.loads(done.out)
        assert done.status == 0 and row["kernel"] == native().name and row["step"] in ("native", "modules")
        assert row["bandwidth_utilization"] == pytest.approx(row["bandwidth_GB_s"], rel=1e-3), (
            "of the rate that was kept"
        )
    without_kernels(monkeypatch)
    done = run(*words)
    assert done.status == 1 and done.out == "" and len(done.err.splitlines()) == 1
    assert "kernels in C are not there" in done.err
    done = run(*(word.replace("int8", "nf4") for word in words))
    assert done.status == 0 and json.loads(done.out)[0]["kernel"] is None
    assert "brought back to full precision for each product" in done.err


def test_guessed_tokens_need_no_step_of_their_own() -> None:
    options = BenchOptions(prompt_tokens=0, new_tokens=10, batches=(1,), reps=2)
    measured = [
        bench(BenchRuntime(model=TimedModel(guessed=guessed)), "fake", options)  # type: ignore[arg-type]
        for guessed in ((0, 0), (8, 5))
    ]
    assert measured[0].notes == () and "Up to 50% of the tokens were guessed" in measured[1].notes[0]
    plain, guessed = (each.rows[0] for each in measured)
    assert (plain["proposed_share"], plain["accepted_share"]) == (0, 0)
    assert (guessed["proposed_share"], guessed["accepted_share"]) == (0.8, 0.5)
    assert guessed["tokens_per_s"] == pytest.approx(plain["tokens_per_s"], rel=1e-3)
    assert guessed["bandwidth_GB_s"] == pytest.approx(0.5 * plain["bandwidth_GB_s"], rel=1e-3)
    assert guessed["operations_G_s"] == pytest.approx(1.3 * plain["operations_G_s"], rel=1e-3)
