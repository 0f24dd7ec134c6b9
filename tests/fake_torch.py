"""A torch with several GPUs, on which nothing is computed: what asking for devices and measuring them needs of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

GIB = 1024**3


@dataclass
class FakeTensor:
    """Knows where it lies."""

    device: str
    dtype: str

    def uniform_(self, low: float, high: float, *, generator: FakeGenerator) -> FakeTensor:
        assert low < high and generator.device == self.device
        return self

    def random_(self, low: int, high: int, *, generator: FakeGenerator) -> FakeTensor:
        assert low < high and generator.device == self.device and self.dtype == "int8"
        return self

    def to(self, dtype: str) -> FakeTensor:
        return FakeTensor(self.device, dtype)

    def t(self) -> FakeTensor:
        return self

    def copy_(self, source: FakeTensor, *, non_blocking: bool = False) -> FakeTensor:
        return self


@dataclass
class FakeGenerator:
    device: str

    def manual_seed(self, seed: int) -> FakeGenerator:
        return self


@dataclass
class FakeTorch:
    """`gpus`: (name, capability, free bytes) of each. Without any, it is one of Apple's."""

    gpus: list[tuple[str, tuple[int, int], int]]
    missing: frozenset[str] = frozenset()
    """Kernels that raise, as those that were not built do."""
    broken: frozenset[int] = frozenset()
    """GPUs that cannot be asked."""
    asked: list[int] = field(default_factory=list)
    """GPUs whose memory was asked for, which takes some of it."""
    hip: str | None = None
    allow_tf32: bool = False
    products: list[tuple[str, str]] = field(default_factory=list)
    """(device, form) of every product."""
    waited: set[str] = field(default_factory=set)
    """Devices that were waited for."""
    emptied: list[str] = field(default_factory=list)
    """Devices whose cached memory was given back."""
    pinned: list[bool] = field(default_factory=list)
    __version__ = "9.9.9"
    float32, bfloat16, float16, int8, uint8 = "float32", "bfloat16", "float16", "int8", "uint8"
    float8_e4m3fn = "fp8"

    def __post_init__(self) -> None:
        self._current = ""
        self.version = SimpleNamespace(cuda=None if self.hip else "13.0", hip=self.hip)
        self.cuda = SimpleNamespace(
            is_available=lambda: bool(self.gpus),
            device_count=lambda: len(self.gpus),
            get_device_properties=self._properties,
            mem_get_info=self._memory,
            is_bf16_supported=lambda including_emulation: True,
            synchronize=self._synchronize,
            device=self._at,
            empty_cache=lambda: self.emptied.append(self._current),
        )
        self.backends = SimpleNamespace(
            cuda=SimpleNamespace(matmul=SimpleNamespace(allow_tf32=self.allow_tf32)),
            mps=SimpleNamespace(is_available=lambda: not self.gpus),
        )
        self.mps = SimpleNamespace(
            recommended_max_memory=lambda: 12 * GIB,
            driver_allocated_memory=lambda: 11 * GIB,
            synchronize=lambda: self.waited.add("mps"),
            empty_cache=lambda: self.emptied.append("mps"),
        )

    def _properties(self, index: int) -> Any:
        name, (major, minor), _ = self.gpus[index]
        return SimpleNamespace(name=name, major=major, minor=minor, multi_processor_count=100)

    def _memory(self, index: int) -> tuple[int, int]:
        if index in self.broken:
            raise RuntimeError("CUDA error: all CUDA-capable devices are busy\nor unavailable")
        self.asked.append(index)
        return self.gpus[index][2], 80 * GIB

    def _synchronize(self, device: str) -> None:
        self.waited.add(device)
        time.sleep(1e-4)  # nothing is infinitely fast

    @contextmanager
    def _at(self, device: str) -> Iterator[None]:
        self._current = device
        yield

    @contextmanager
    def no_grad(self) -> Iterator[None]:
        yield

    def device(self, name: str) -> str:
        return name

    def Generator(self, device: str) -> FakeGenerator:  # noqa: N802 - torch's name
        return FakeGenerator(device)

    def get_num_threads(self) -> int:
        return 3

    def empty(self, shape: Any, *, dtype: str, device: str) -> FakeTensor:
        return FakeTensor(device, dtype)

    def ones(self, shape: Any, *, dtype: str, device: str, pin_memory: bool = False) -> FakeTensor:
        self.pinned.append(pin_memory)
        return FakeTensor(device, dtype)

    def empty_like(self, other: FakeTensor) -> FakeTensor:
        return other

    def sum(self, source: FakeTensor) -> FakeTensor:
        return source

    def mv(self, matrix: FakeTensor, vector: FakeTensor) -> FakeTensor:
        assert matrix.device == vector.device
        return vector

    def mm(self, left: FakeTensor, right: FakeTensor) -> FakeTensor:
        return self._product(left, right, left.dtype)

    def _int_mm(self, left: FakeTensor, right: FakeTensor) -> FakeTensor:
        assert left.dtype == "int8"
        return self._product(left, right, "int8")

    def _scaled_mm(self, left: FakeTensor, right: FakeTensor, *scales: FakeTensor, out_dtype: str) -> FakeTensor:
        assert left.dtype == "fp8" and all(scale.device == left.device for scale in scales)
        return self._product(left, right, "fp8")

    def _product(self, left: FakeTensor, right: FakeTensor, form: str) -> FakeTensor:
        assert left.device == right.device and left.dtype == right.dtype
        if form in self.missing:
            raise RuntimeError(f"no kernel for {form}")
        self.products.append((left.device, form))
        return left
