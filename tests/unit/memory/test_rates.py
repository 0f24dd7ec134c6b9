"""Rates: what is kept of them, and what is measured where."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_torch import GIB, FakeTorch
from kamado.errors import DoesNotFit, InvalidRequest
from kamado.memory import devices as devices_module
from kamado.memory import disk_rate as disk_module
from kamado.memory import measuring, rates
from kamado.memory.devices import devices, fake_device, resolve_device
from kamado.memory.disk_rate import disk_rate
from kamado.memory.host import cache_bytes
from kamado.memory.rates import FILE, Rates, driver_version, keep_rates, kept_rates, measure_rates, parse_rates

GPU = fake_device("cuda:0", model="Fast One", driver="580.1")
SOME = Rates(
    read_bytes_per_s=2e10,
    copy_bytes_per_s=3e10,
    operations_per_s={"float32": 1e11, "int8": 4e11},
    disk_bytes_per_s=1e9,
    disk_read="direct",
    threads=4,
    torch="2.13.0",
    measured_s=1e9,
    notes=("A note.",),
)


def test_kept_rates_come_back(tmp_path: Path) -> None:
    assert kept_rates(GPU, tmp_path) is None
    gpu_rates = replace(SOME, threads=0, to_device_bytes_per_s={"pinned": 5e10})
    assert keep_rates(GPU, gpu_rates, tmp_path)
    assert kept_rates(GPU, tmp_path) == gpu_rates
    assert kept_rates(replace(GPU, name="cuda:3"), tmp_path) == gpu_rates, "another one of the same kind"


@pytest.mark.parametrize("change", [{"model": "Other"}, {"driver": "590.2"}, {"kind": "mps"}])
def test_rates_of_other_circumstances_do_not_count(change: dict[str, Any], tmp_path: Path) -> None:
    keep_rates(GPU, replace(SOME, threads=0), tmp_path)
    assert kept_rates(replace(GPU, **change), tmp_path) is None


def test_rates_of_another_torch_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_rates(GPU, replace(SOME, threads=0), tmp_path)
    monkeypatch.setattr(rates, "torch_version", lambda: "0.1")
    assert kept_rates(GPU, tmp_path) is None
    keep_rates(GPU, replace(SOME, threads=0, read_bytes_per_s=1.0), tmp_path)
    monkeypatch.undo()
    found = kept_rates(GPU, tmp_path)
    assert found is not None and found.read_bytes_per_s == 2e10, "both are kept"


def test_threads_of_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = fake_device()
    for threads in (1, 2):
        keep_rates(cpu, replace(SOME, threads=threads, measured_s=1e9 + threads), tmp_path)
    keep_rates(cpu, replace(SOME, threads=1, read_bytes_per_s=7.0), tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    for told, expected in [("1", 1), ("2", 2), ("5", None), ("", 2), ("many", 2), ("0", 2)]:
        monkeypatch.setenv("OMP_NUM_THREADS", told)
        found = kept_rates(cpu, tmp_path)
        assert (found.threads if found else None) == expected, told
    monkeypatch.setitem(sys.modules, "torch", FakeTorch([]))
    assert kept_rates(cpu, tmp_path) is None, "torch itself has 3"
    assert len(json.loads((tmp_path / FILE).read_bytes())["devices"]) == 2, "one entry for each number"


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[]", b"{", b'{"format": 2}', b'{"format": 1, "devices": 7}', b"[" * 10**5]
)
def test_a_damaged_file_counts_as_empty_and_is_replaced(content: bytes, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(content)
    assert kept_rates(GPU, tmp_path) is None
    assert keep_rates(GPU, replace(SOME, threads=0), tmp_path)
    assert kept_rates(GPU, tmp_path) == replace(SOME, threads=0)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*Rates.__slots__, "other"]), _JSON))
def test_anything_else_than_rates_is_none(changes: dict[str, Any]) -> None:
    found = parse_rates(json.loads(json.dumps(SOME.as_dict() | changes)))
    assert found is None or (found.read_bytes_per_s > 0 and all(rate > 0 for rate in found.operations_per_s.values()))
    assert parse_rates(json.loads(json.dumps(SOME.as_dict() | {"other": changes.get("other")}))) == SOME


def test_a_disk_that_cannot_be_written_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    assert not keep_rates(GPU, SOME, tmp_path / "file" / "home")
    monkeypatch.setattr(measuring, "measure", lambda *_, **__: SOME)
    assert measure_rates(GPU, home=tmp_path / "file" / "home") == SOME
    assert rates.rates_of(GPU, home=tmp_path / "file" / "home") == SOME


def test_rates_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(measuring, "measure", lambda *_, **__: calls.append(1) or replace(SOME, threads=0))
    assert rates.rates_of(GPU, home=tmp_path) == rates.rates_of(GPU, home=tmp_path)
    assert len(calls) == 1


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeTorch:
    """A machine with two different GPUs, of which torch knows."""
    fake = FakeTorch([("Fast One", (9, 0), 64 * GIB), ("Old One", (7, 5), 4 * GIB)])
    monkeypatch.setitem(sys.modules, "torch", fake)
    monkeypatch.setattr(devices_module, "_GPU_NODES", (str(tmp_path),))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("KAMADO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(measuring, "_WARM_S", 0.0)
    monkeypatch.setattr(measuring, "_LONG_S", 0.0)
    return fake


def test_several_gpus_are_all_shown_and_measured(two_gpus: FakeTorch) -> None:
    first, second, cpu = devices()
    assert [(gpu.name, gpu.model, gpu.capability, gpu.available_bytes) for gpu in (first, second)] == [
        ("cuda:0", "Fast One", "9.0", 64 * GIB),
        ("cuda:1", "Old One", "7.5", 4 * GIB),
    ]
    assert first.features == ("fp16", "int8", "bf16", "fp8") and second.features == ("fp16", "int8")
    assert first.rates is second.rates is None and cpu.kind == "cpu"
    found = {gpu.name: measure_rates(gpu) for gpu in (first, second)}
    forms = {"cuda:0": {"float32", "float16", "bfloat16", "int8", "fp8"}, "cuda:1": {"float32", "float16", "int8"}}
    for name, expected in forms.items():
        assert set(found[name].operations_per_s) == expected
        assert set(found[name].to_device_bytes_per_s) == {"pinned", "pageable"}
        assert found[name].disk_bytes_per_s is None and found[name].threads == 0 and found[name].notes == ()
        assert {form for device, form in two_gpus.products if device == name} == expected
    assert two_gpus.waited == {"cuda:0", "cuda:1"} and two_gpus.emptied == ["cuda:0", "cuda:1"]
    assert two_gpus.pinned.count(True) == 2, "one transfer each"
    assert [gpu.rates for gpu in devices()[:2]] == list(found.values())
    assert resolve_device("cuda:1").rates == found["cuda:1"] != resolve_device("auto").rates


def test_a_kernel_that_is_missing_is_a_note(two_gpus: FakeTorch) -> None:
    two_gpus.missing = frozenset({"fp8", "int8"})
    found = measure_rates(devices()[0])
    assert set(found.operations_per_s) == {"float32", "float16", "bfloat16"}
    assert [note.split(" could")[0] for note in found.notes] == ["Products in int8", "Products in fp8"]


def test_tf32_is_called_so(two_gpus: FakeTorch) -> None:
    two_gpus.backends.cuda.matmul.allow_tf32 = True
    found = measure_rates(devices()[0])
    assert "float32" not in found.operations_per_s and found.matrix_rate("float32") == found.operations_per_s["tf32"]
    assert "float32" in measure_rates(devices()[1]).operations_per_s, "that one has no such thing"


def test_a_gpu_of_amd(two_gpus: FakeTorch) -> None:
    two_gpus.version.hip = "7.0"
    (gpu, *_) = devices()
    assert gpu.features == ("rocm",)
    assert set(measure_rates(gpu).operations_per_s) == {"bfloat16", "float16", "float32", "int8"}


def test_a_gpu_without_free_memory_is_not_measured(two_gpus: FakeTorch) -> None:
    two_gpus.gpus[0] = ("Fast One", (9, 0), GIB // 32)
    with pytest.raises(DoesNotFit, match=r"cuda:0 has only 32.0 MiB free"):
        measure_rates(devices()[0])


def test_one_gpu_is_asked_when_one_is_wanted(two_gpus: FakeTorch) -> None:
    assert resolve_device("cuda:1").model == "Old One" and two_gpus.asked == [1]
    assert resolve_device("auto").model == "Fast One" and two_gpus.asked == [1, 0]


def test_a_gpu_that_is_out_of_order_does_not_hide_the_others(two_gpus: FakeTorch) -> None:
    two_gpus.broken = frozenset({0})
    found = devices()
    assert [facts.name for facts in found] == ["cuda:1", "cpu"]
    note = "cuda:0 cannot be used: CUDA error: all CUDA-capable devices are busy or unavailable"
    assert note in found[-1].notes
    for name in ("cuda", "auto"):
        with pytest.raises(InvalidRequest, match=note):
            resolve_device(name)
    assert resolve_device("cuda:1").name == "cuda:1"


def test_a_gpu_of_apple(two_gpus: FakeTorch) -> None:
    two_gpus.gpus.clear()
    gpu, cpu = devices()
    assert (gpu.name, gpu.kind, cpu.kind) == ("mps", "mps", "cpu") and "shared" in gpu.notes[0]
    assert gpu.total_bytes == 12 * GIB and gpu.available_bytes == min(GIB, cpu.available_bytes)
    found = measure_rates(gpu)
    assert set(found.operations_per_s) == {"float16", "float32"} and found.to_device_bytes_per_s == {}
    assert two_gpus.waited == {"mps"} and two_gpus.emptied == ["mps"]
    assert resolve_device("mps").rates == found


def test_measuring_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For real. Only what holds on any machine that runs this at all."""
    import torch

    monkeypatch.setattr(measuring, "_LONG_S", 0.1)
    facts = replace(resolve_device("cpu"), available_bytes=512 << 20)
    steps: list[str] = []
    state = torch.get_rng_state()
    found = measure_rates(facts, home=tmp_path, progress=steps.append)
    assert torch.equal(torch.get_rng_state(), state)
    assert 1e8 < found.read_bytes_per_s < 1e13 and 1e8 < found.copy_bytes_per_s < 1e13
    assert set(facts.good_dtypes) <= set(found.operations_per_s) <= {*facts.good_dtypes, "int8"}
    assert all(1e8 < rate < 1e16 for rate in found.operations_per_s.values())
    assert found.disk_bytes_per_s is not None and found.disk_bytes_per_s > 1e5
    assert found.threads == torch.get_num_threads() and found.torch and found.notes == ()
    assert steps[0] == "memory of cpu" and steps[-1] == "disk"
    assert kept_rates(facts, tmp_path) == found
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE]


def test_reading_what_is_kept_needs_no_torch(tmp_path: Path) -> None:
    keep_rates(resolve_device("cpu"), SOME, tmp_path)
    code = """
import sys
from kamado.memory.devices import cpu_facts
from kamado.memory.rates import kept_rates
assert kept_rates(cpu_facts()).read_bytes_per_s == 2e10
assert "torch" not in sys.modules
"""
    told = {**os.environ, "KAMADO_HOME": str(tmp_path), "OMP_NUM_THREADS": "4"}
    subprocess.run([sys.executable, "-c", code], check=True, env=told)


def test_the_disk_is_read_past_the_page_cache_or_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_module, "_WRITTEN_BYTES", 8 << 20)
    found = disk_rate(tmp_path)
    assert found is not None and found[0] > 0 and list(tmp_path.iterdir()) == []
    monkeypatch.delattr(os, "O_DIRECT", raising=False)
    monkeypatch.setattr(disk_module, "_drop_cached", lambda path: False)
    (tmp_path / "weights").write_bytes(bytes(9 << 20))
    found = disk_rate(tmp_path)
    assert found is not None and found[1] == "cached" and [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_a_disk_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert disk_rate(tmp_path / "file" / "home") is None


def test_caches(tmp_path: Path) -> None:
    assert cache_bytes(sys_root=tmp_path) == 64 << 20
    for cpu, level, shared, size in [
        (0, 2, "0", "1024K"),
        (0, 3, "0-1", "32M"),
        (1, 3, "0-1", "32M"),
        (2, 3, "2", "32M"),
    ]:
        folder = tmp_path / "devices" / "system" / "cpu" / f"cpu{cpu}" / "cache" / f"index{level}"
        folder.mkdir(parents=True)
        for name, text in (("level", str(level)), ("size", size), ("shared_cpu_list", shared)):
            (folder / name).write_text(text + "\n")
    assert cache_bytes(sys_root=tmp_path) == 64 << 20, "two of the third level"


def test_driver_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "version"
    path.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n")
    monkeypatch.setattr(rates, "_DRIVER_FILES", {"cuda": (str(tmp_path / "absent"), str(path))})
    assert driver_version("cuda") == "580.65.06" and driver_version("cpu") == ""


def test_the_version_of_torch_is_known_without_importing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert rates.torch_version() == str(torch.__version__)
    monkeypatch.setattr(rates, "find_spec", lambda name: None)
    assert rates.torch_version() == ""
