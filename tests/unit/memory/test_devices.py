"""Device facts: what is read from the system, and what a name resolves to."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kamado.errors import InvalidRequest
from kamado.memory import devices as module
from kamado.memory.devices import (
    cpu_dtypes,
    cuda_dtypes,
    default_budget,
    devices,
    fake_device,
    resolve_device,
)
from kamado.memory.host import host_memory, host_processor

GIB = 1024**3
CPUINFO = """processor\t: 0
model name\t: Example CPU 9000
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu avx avx2 avx512f {extra}

processor\t: 1
model name\t: Example CPU 9000
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu avx avx2 avx512f

"""


def make_host(tmp_path: Path, *, cgroup: str, limits: dict[str, str], cpuinfo: str = "") -> dict[str, Path]:
    proc, sys_root = tmp_path / "proc", tmp_path / "sys"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text(cgroup)
    (proc / "meminfo").write_text(
        f"MemTotal: {16 * GIB // 1024} kB\nMemAvailable: {12 * GIB // 1024} kB\nHugePages_Total: 0\n"
    )
    (proc / "cpuinfo").write_text(cpuinfo)
    for name, text in limits.items():
        path = sys_root / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return {"proc": proc, "sys_root": sys_root}


def test_memory_without_limit(tmp_path: Path) -> None:
    memory = host_memory(**make_host(tmp_path, cgroup="0::/\n", limits={"memory.max": "max\n"}))
    assert (memory.total_bytes, memory.available_bytes, memory.limited_by) == (16 * GIB, 12 * GIB, None)


def test_memory_limit_of_a_parent_cgroup_v2_counts_and_page_cache_does_not(tmp_path: Path) -> None:
    limits = {
        "a/memory.max": str(4 * GIB),
        "a/memory.current": str(3 * GIB),
        "a/memory.stat": f"anon 5\ninactive_file {GIB}\n",
        "a/b/memory.max": "max",
    }
    memory = host_memory(**make_host(tmp_path, cgroup="0::/a/b\n", limits=limits))
    assert (memory.total_bytes, memory.available_bytes) == (4 * GIB, 2 * GIB)
    assert memory.limited_by is not None and memory.limited_by.endswith("/a")


def test_memory_limit_of_cgroup_v1_seen_from_inside_a_container(tmp_path: Path) -> None:
    limits = {"memory/memory.limit_in_bytes": str(2 * GIB), "memory/memory.usage_in_bytes": str(3 * GIB)}
    memory = host_memory(**make_host(tmp_path, cgroup="4:memory:/docker/0123\n", limits=limits))
    assert (memory.total_bytes, memory.available_bytes) == (2 * GIB, 0)


def test_cgroup_v1_no_limit_is_none(tmp_path: Path) -> None:
    limits = {"memory/memory.limit_in_bytes": "9223372036854771712"}
    memory = host_memory(**make_host(tmp_path, cgroup="4:memory:/\n", limits=limits))
    assert memory.limited_by is None


@pytest.mark.parametrize(
    ("cgroup", "limits"),
    [
        ("0::/\n", {"cpu.max": "50000 100000"}),
        ("3:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}),
    ],
)
def test_cpu_quota_limits_threads(tmp_path: Path, cgroup: str, limits: dict[str, str]) -> None:
    assert host_processor(**make_host(tmp_path, cgroup=cgroup, limits=limits)).usable_threads == 1


def test_cpuinfo_counts_cores_and_only_features_of_all_cores(tmp_path: Path) -> None:
    host = make_host(tmp_path, cgroup="", limits={}, cpuinfo=CPUINFO.format(extra="amx_bf16"))
    processor = host_processor(**host)
    assert processor.model == "Example CPU 9000"
    assert processor.cores == 1
    assert processor.features == ("avx", "avx2", "avx512f")


def test_arm_cpuinfo(tmp_path: Path) -> None:
    text = "processor\t: 0\nFeatures\t: fp asimd asimddp bf16 i8mm\nCPU implementer\t: 0x41\n"
    processor = host_processor(**make_host(tmp_path, cgroup="", limits={}, cpuinfo=text))
    assert set(processor.features) == {"neon", "dotprod", "bf16", "i8mm"}
    assert processor.cores >= 1


@given(st.text(), st.text(), st.text(max_size=40))
def test_any_system_file_gives_usable_facts(
    tmp_path_factory: pytest.TempPathFactory, info: str, cgroup: str, limit: str
) -> None:
    host = make_host(
        tmp_path_factory.mktemp("host"), cgroup=cgroup, limits={}, cpuinfo=info.encode(errors="replace").decode()
    )
    (host["sys_root"] / "fs" / "cgroup").mkdir(parents=True)
    (host["sys_root"] / "fs" / "cgroup" / "memory.max").write_bytes(limit.encode(errors="replace"))
    memory, processor = host_memory(**host), host_processor(**host)
    assert 0 <= memory.available_bytes <= memory.total_bytes
    assert processor.cores >= 1 and processor.usable_threads >= 1 and processor.model


def test_half_precision_on_a_cpu_needs_instructions_for_it() -> None:
    assert cpu_dtypes(("avx2", "avx512f", "avx512_vnni")) == ("float32",)
    assert cpu_dtypes(("avx512f", "avx512_bf16")) == ("float32", "bfloat16")
    assert cpu_dtypes(("avx512_bf16", "amx_bf16"))[0] == "bfloat16"
    assert all("float16" not in cpu_dtypes((feature,)) for feature in ("avx512_fp16", "amx_fp16", "fp16"))


def test_cuda_precisions_by_capability() -> None:
    assert cuda_dtypes((9, 0))[0] == "bfloat16"
    assert cuda_dtypes((7, 5)) == ("float16", "float32")
    assert cuda_dtypes((6, 1)) == ("float32",)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = {name: partial(fake_device, name) for name in ("cuda:0", "cuda:1")}
    monkeypatch.setattr(module, "_gpus", lambda: (gpus, ""))


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("name", "found"), [("auto", "cuda:0"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("cpu", "cpu")]
)
def test_names_resolve(name: str, found: str) -> None:
    assert resolve_device(name).name == found


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("name", ["cuda:2", "mps"])
def test_a_device_that_is_not_there_is_an_error_naming_what_is(name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"there is: cuda:0, cuda:1, cpu"):
        resolve_device(name)


def test_no_gpu_never_falls_back_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_gpus", lambda: ({}, "The driver is asleep."))
    with pytest.raises(InvalidRequest, match=r"there is: cpu\. The driver is asleep\."):
        resolve_device("cuda")
    facts = resolve_device("auto")
    assert facts.name == "cpu"
    assert facts.notes[0] == "auto chose cpu. The driver is asleep."
    assert "The driver is asleep." in devices()[-1].notes


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:-1", "cuda:1\n", "CPU", "cuda:9999", "cuda:١"])
def test_names_that_mean_nothing(name: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a device"):
        resolve_device(name)


def test_budget_leaves_room() -> None:
    assert default_budget(fake_device(available_bytes=10 * GIB)) == 8 * GIB
    assert default_budget(fake_device("cuda:0", available_bytes=10 * GIB)) == 9 * GIB


def test_as_dict_has_every_fact() -> None:
    facts = fake_device("cuda:0", capability="9.0")
    assert facts.as_dict()["capability"] == "9.0"
    assert facts.as_dict()["budget_bytes"] == default_budget(facts)


@pytest.mark.skipif(any(Path(node).exists() for node in module._GPU_NODES), reason="a GPU is here, so torch is asked")
def test_cpu_facts_need_no_torch() -> None:
    code = "import sys, kamado.memory.devices as d; d.resolve_device(); d.devices(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
