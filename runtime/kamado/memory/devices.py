"""What each device has and is good at.

CPU facts come from the operating system and need no torch. torch is asked about GPUs, and imported for it, only where
something suggests that there is one, so that planning on a machine without a GPU stays quick.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ..errors import InvalidRequest
from .host import HostMemory, host_memory, host_processor
from .rates import Rates, driver_version, kept_rates

Kind = Literal["cpu", "cuda", "mps"]

CPU_SHARE = 0.8
"""Of the available RAM, what a runtime takes when it is not told. The rest is for the system and the page cache."""
GPU_SHARE = 0.9
"""Of the free GPU memory: the rest is for the context, workspaces and fragmentation."""

# Device nodes of NVIDIA, AMD (ROCm) and WSL.
_GPU_NODES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """One device, as it is now."""

    name: str
    """As torch says it, with the index: `cpu`, `cuda:0`, `mps`."""
    kind: Kind
    model: str
    """Name of the product."""
    total_bytes: int
    """Memory that this process may use at most: physical memory, or the container's limit where that is less."""
    available_bytes: int
    """Of `total_bytes`, what nobody uses now."""
    good_dtypes: tuple[str, ...]
    """Compute precisions that the device is fast at, best for inference first. float32 is always among them."""
    features: tuple[str, ...] = ()
    """Instruction sets or tensor-core formats that matter for inference."""
    cores: int = 0
    """Physical cores, or multiprocessors of a GPU."""
    threads: int = 0
    """Logical cores (CPU)."""
    usable_threads: int = 0
    """Of `threads`, what affinity and the container's quota leave to this process (CPU)."""
    capability: str = ""
    """Compute capability (CUDA), e.g. `9.0`."""
    driver: str = ""
    """Version of a GPU's driver, where the system tells."""
    rates: Rates | None = None
    """What was measured on it, if that was done; see `kamado.memory.rates.measure_rates`."""
    notes: tuple[str, ...] = ()
    """What else a person should know, as sentences."""

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        rates = None if self.rates is None else self.rates.as_dict()
        return plain | {"rates": rates, "budget_bytes": default_budget(self)}


def default_budget(facts: DeviceFacts) -> int:
    """Bytes that a runtime takes on this device when it is not told."""
    share = CPU_SHARE if facts.kind == "cpu" else GPU_SHARE
    return int(facts.available_bytes * share)


def devices() -> list[DeviceFacts]:
    """Every device of this machine that can compute: GPUs first, the CPU last."""
    gpus, hint = _gpus()
    found, hints = [], [hint] if hint else []
    for name, facts_of in gpus.items():
        try:
            found.append(facts_of())
        except RuntimeError as error:  # one that is broken, full, or another process's alone
            hints.append(_unusable(name, error))
    cpu = cpu_facts()
    return [_with_rates(facts) for facts in (*found, replace(cpu, notes=(*cpu.notes, *hints)))]


def resolve_device(name: str = "auto") -> DeviceFacts:
    """The device that `auto`, `cpu`, `cuda`, `cuda:1` or `mps` means here, with a note saying why under `auto`.

    Raises InvalidRequest for a name that means nothing and for a device that is not there; never takes another one
    in its place.
    """
    return _with_rates(_resolved(name))


def _resolved(name: str) -> DeviceFacts:
    if re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?|mps", name, re.ASCII) is None:
        raise InvalidRequest(f"{name!r} is not a device; write auto, cpu, cuda, cuda:1 or mps")
    if name == "cpu":
        return cpu_facts()
    gpus, hint = _gpus()
    wanted = next(iter(gpus), "cpu") if name == "auto" else "cuda:0" if name == "cuda" else name
    if wanted not in (*gpus, "cpu"):
        there = ", ".join((*gpus, "cpu"))
        raise InvalidRequest(f"there is no device {name!r} here; there is: {there}. {hint}".rstrip())
    try:
        # No other GPU is asked: each would give a part of its memory away for that.
        facts = gpus[wanted]() if wanted in gpus else cpu_facts()
    except RuntimeError as error:
        raise InvalidRequest(_unusable(wanted, error)) from None
    if name != "auto":
        return facts
    reason = hint or "No GPU was found." if facts.kind == "cpu" else "It is the first GPU."
    return replace(facts, notes=(f"auto chose {facts.name}. {reason}", *facts.notes))


def cpu_facts() -> DeviceFacts:
    """The host's processors and memory, without torch."""
    processor = host_processor()
    memory = host_memory()
    return DeviceFacts(
        name="cpu",
        kind="cpu",
        model=processor.model,
        total_bytes=memory.total_bytes,
        available_bytes=memory.available_bytes,
        good_dtypes=cpu_dtypes(processor.features),
        features=processor.features,
        cores=processor.cores,
        threads=processor.threads,
        usable_threads=processor.usable_threads,
        notes=_memory_notes(memory),
    )


def cpu_dtypes(features: Sequence[str]) -> tuple[str, ...]:
    """Precisions that a CPU with these instruction sets is fast at.

    Without instructions for it, a bfloat16 or float16 matrix product on a CPU is some 150 times slower than float32.
    """
    if "amx_bf16" in features:
        return ("bfloat16", "float32")
    if "avx512_bf16" in features:
        return ("float32", "bfloat16")
    return ("float32",)


def cuda_dtypes(capability: tuple[int, int]) -> tuple[str, ...]:
    """Precisions that a CUDA device is fast at: bfloat16 from Ampere (8.0) on, float16 from Volta (7.0) on."""
    if capability >= (8, 0):
        return ("bfloat16", "float16", "float32")
    if capability >= (7, 0) or capability == (6, 0):
        return ("float16", "float32")
    return ("float32",)


def fake_device(name: str = "cpu", *, total_bytes: int = 8 * 1024**3, **changes: Any) -> DeviceFacts:
    """Facts of a device that need not exist: for tests, and for planning for another machine."""
    kind: Kind = "cpu" if name == "cpu" else "mps" if name == "mps" else "cuda"
    facts = DeviceFacts(
        name=name,
        kind=kind,
        model="fake device",
        total_bytes=total_bytes,
        available_bytes=total_bytes,
        good_dtypes=("float32",) if kind == "cpu" else ("bfloat16", "float16", "float32"),
        cores=4,
        threads=8,
        usable_threads=8,
    )
    return replace(facts, **changes)


def _with_rates(facts: DeviceFacts) -> DeviceFacts:
    return replace(facts, rates=kept_rates(facts))


def _memory_notes(memory: HostMemory) -> tuple[str, ...]:
    if memory.limited_by is None:
        return ()
    return (f"The memory is limited by {memory.limited_by}.",)


def _unusable(name: str, error: RuntimeError) -> str:
    return f"{name} cannot be used: {' '.join(str(error).split())[:200]}"


def _gpus() -> tuple[dict[str, Callable[[], DeviceFacts]], str]:
    """The GPUs that torch knows, by name, each with what asks for its facts; and why there are none where the machine
    looks as if it had some. Asking takes some of the GPU's memory and raises RuntimeError for one that is out of order.
    """
    node = next((node for node in _GPU_NODES if Path(node).exists()), None)
    if node is None and sys.platform not in ("darwin", "win32"):
        return {}, ""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1") and sys.platform != "darwin":
        return {}, "CUDA_VISIBLE_DEVICES hides every GPU." if node else ""
    try:
        import torch
    except (ImportError, OSError) as error:
        return {}, f"torch cannot be imported ({error}), so no GPU can be used."
    if torch.cuda.is_available():
        return {f"cuda:{index}": partial(_cuda_facts, torch, index) for index in range(torch.cuda.device_count())}, ""
    if torch.backends.mps.is_available():
        return {"mps": partial(_mps_facts, torch)}, ""
    if node is None:
        return {}, ""
    if torch.version.cuda is None and torch.version.hip is None:
        return {}, f"There is {node}, but the installed torch {torch.__version__} is built without GPU support."
    return (
        {},
        f"There is {node}, but torch {torch.__version__} finds no usable GPU: is the driver installed and new enough?",
    )


def _cuda_facts(torch: Any, index: int) -> DeviceFacts:
    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    capability = (properties.major, properties.minor)
    if torch.version.hip is not None:
        bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        good: tuple[str, ...] = ("bfloat16", "float16", "float32") if bfloat16 else ("float16", "float32")
        features: tuple[str, ...] = ("rocm",)
    else:
        good = cuda_dtypes(capability)
        formats = (("fp16", (7, 0)), ("int8", (7, 2)), ("bf16", (8, 0)), ("fp8", (8, 9)), ("fp4", (10, 0)))
        features = tuple(name for name, since in formats if capability >= since)
    return DeviceFacts(
        name=f"cuda:{index}",
        kind="cuda",
        model=properties.name,
        total_bytes=total,
        available_bytes=free,
        good_dtypes=good,
        features=features,
        cores=properties.multi_processor_count,
        capability=f"{properties.major}.{properties.minor}",
        driver=driver_version("cuda"),
    )


def _mps_facts(torch: Any) -> DeviceFacts:
    total = int(torch.mps.recommended_max_memory())
    used = int(torch.mps.driver_allocated_memory())
    return DeviceFacts(
        name="mps",
        kind="mps",
        model=host_processor().model,
        total_bytes=total,
        available_bytes=max(0, min(total - used, host_memory().available_bytes)),
        good_dtypes=("float16", "float32"),
        driver=driver_version("mps"),
        notes=("The memory is shared with the CPU.",),
    )
