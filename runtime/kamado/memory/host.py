"""The host's processors and memory, from the operating system alone."""

from __future__ import annotations

import importlib
import math
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

# /proc/cpuinfo flags that matter for inference, under the names Kamado uses. On ARM, NEON is called asimd.
_FEATURES: Mapping[str, str] = {
    **{flag: flag for flag in ("avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni")},
    **{flag: flag for flag in ("avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "amx_fp16")},
    "asimd": "neon",
    "neon": "neon",
    "asimdhp": "fp16",
    "asimddp": "dotprod",
    "bf16": "bf16",
    "i8mm": "i8mm",
    "sve": "sve",
    "sve2": "sve2",
    "sme": "sme",
    "lsx": "lsx",
    "lasx": "lasx",
}
_NO_LIMIT = 2**60
"""cgroup v1 says "no limit" as the largest multiple of the page size: anything this large is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Processor:
    """All CPU cores of the machine together."""

    model: str
    cores: int
    """Physical."""
    threads: int
    """Logical."""
    usable_threads: int
    """What affinity and the container's CPU quota leave, at least 1."""
    features: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMemory:
    """RAM, and the container's limit on it."""

    total_bytes: int
    available_bytes: int
    limited_by: str | None
    """What makes `total_bytes` less than the physical memory, if anything does."""


def host_processor(*, proc: Path = Path("/proc"), sys_root: Path = Path("/sys")) -> Processor:
    """Facts from /proc/cpuinfo; elsewhere than on Linux, what the platform tells."""
    text = _read(proc / "cpuinfo")
    threads = os.cpu_count() or 1
    if text:
        model, cores, features = _parse_cpuinfo(text)
    else:
        model, cores, features = _foreign_processor()
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else threads
    quota = _cpu_quota(proc, sys_root)
    usable = affinity if quota is None else min(affinity, max(1, math.ceil(quota)))
    return Processor(
        model=model or platform.processor() or platform.machine() or "unknown",
        cores=cores or threads,
        threads=threads,
        usable_threads=usable,
        features=features,
    )


def host_memory(*, proc: Path = Path("/proc"), sys_root: Path = Path("/sys")) -> HostMemory:
    """RAM from /proc/meminfo and the limits of every cgroup this process is in (v1 and v2, parents too)."""
    fields = _parse_meminfo(_read(proc / "meminfo"))
    if "MemTotal" in fields:
        total = fields["MemTotal"]
        available = fields.get("MemAvailable", fields.get("MemFree", total))
    else:
        memory = importlib.import_module("psutil").virtual_memory()
        total, available = memory.total, memory.available
    limited_by = None
    for limit, used, where in _memory_limits(proc, sys_root):
        available = min(available, max(0, limit - used))
        if limit < total:
            total, limited_by = limit, where
    return HostMemory(total_bytes=total, available_bytes=min(available, total), limited_by=limited_by)


def cache_bytes(*, sys_root: Path = Path("/sys")) -> int:
    """Of all processor caches of the highest level together; 64 MiB where the system does not tell."""
    sizes: dict[tuple[int, str], int] = {}
    for folder in (sys_root / "devices" / "system" / "cpu").glob("cpu[0-9]*/cache/index[0-9]*"):
        level, size = _read(folder / "level").strip(), _read(folder / "size").strip()
        number, unit = size[:-1], {"K": 1024, "M": 1024**2}.get(size[-1:])
        if level.isdecimal() and number.isdecimal() and unit:
            sizes[int(level), _read(folder / "shared_cpu_list").strip()] = int(number) * unit
    highest = max((level for level, _ in sizes), default=0)
    return sum(size for (level, _), size in sizes.items() if level == highest) or 64 << 20


def _read(path: Path) -> str:
    """The text of a small system file, empty if there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _parse_cpuinfo(text: str) -> tuple[str, int, tuple[str, ...]]:
    """Model name, physical cores (0 if unknown) and features. Only features that every core has count."""
    model, flags, cores = "", None, set()
    for block in text.split("\n\n"):
        fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in block.splitlines())}
        model = model or fields.get("model name", "") or fields.get("Model", "")
        if "core id" in fields:
            cores.add((fields.get("physical id", "0"), fields["core id"]))
        words = fields.get("flags") or fields.get("Features")
        if words is not None:
            flags = set(words.split()) if flags is None else flags & set(words.split())
    names = [name for flag, name in _FEATURES.items() if flag in (flags or ())]
    return model, len(cores), tuple(dict.fromkeys(names))


def _foreign_processor() -> tuple[str, int, tuple[str, ...]]:
    """The same where there is no /proc: macOS through sysctl, otherwise what platform knows."""
    features = ("neon",) if platform.machine().lower() in ("arm64", "aarch64") else ()
    if platform.system() != "Darwin":
        return platform.processor(), 0, features
    model, cores = _sysctl("machdep.cpu.brand_string"), _sysctl("hw.physicalcpu")
    if not features and _sysctl("hw.optional.avx2_0") == "1":
        features = ("avx2",)
    return model, int(cores) if cores.isdecimal() else 0, features


def _sysctl(name: str) -> str:
    try:
        done = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, timeout=2, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _parse_meminfo(text: str) -> dict[str, int]:
    """Bytes by field name."""
    fields = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdecimal():
            fields[name] = int(words[0]) * (1024 if words[1:] == ["kB"] else 1)
    return fields


def _cgroups(proc: Path, sys_root: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """Folders of the cgroups this process is in, innermost first, each with whether it is version 2."""
    for line in _read(proc / "self" / "cgroup").splitlines():
        hierarchy, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        is_v2 = hierarchy == "0" and not names
        if not is_v2 and controller not in names.split(","):
            continue
        mount = sys_root / "fs" / "cgroup" if is_v2 else sys_root / "fs" / "cgroup" / controller
        parts = [part for part in path.split("/") if part not in ("", "..")]
        # In a container the path may be the host's, of which only the mount itself is visible.
        for depth in range(len(parts), -1, -1):
            folder = mount.joinpath(*parts[:depth])
            if folder.is_dir():
                yield folder, is_v2


def _memory_limits(proc: Path, sys_root: Path) -> Iterator[tuple[int, int, str]]:
    """`(limit, used, where)` of every cgroup with a limit. Page cache that can be dropped does not count as used."""
    for folder, is_v2 in _cgroups(proc, sys_root, "memory"):
        limit = _read(folder / ("memory.max" if is_v2 else "memory.limit_in_bytes")).strip()
        if not limit.isdecimal() or int(limit) >= _NO_LIMIT:
            continue
        used = _read(folder / ("memory.current" if is_v2 else "memory.usage_in_bytes")).strip()
        cache = 0
        for line in _read(folder / "memory.stat").splitlines():
            name, _, amount = line.partition(" ")
            if name == ("inactive_file" if is_v2 else "total_inactive_file") and amount.isdecimal():
                cache = int(amount)
        in_use = int(used) if used.isdecimal() else 0
        yield int(limit), max(0, in_use - cache), f"the cgroup {folder}"


def _cpu_quota(proc: Path, sys_root: Path) -> float | None:
    """Processors' worth of time that the tightest cgroup allows, or None."""
    quotas = []
    for folder, is_v2 in _cgroups(proc, sys_root, "cpu"):
        if is_v2:
            words = _read(folder / "cpu.max").split()
        else:
            words = [_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
        if len(words) == 2 and all(word.isdecimal() and int(word) > 0 for word in words):
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)
