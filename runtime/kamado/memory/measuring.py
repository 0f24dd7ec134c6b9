"""Measures what `rates.Rates` holds: medians of repetitions, some seconds in all.

torch's settings stay as they are (threads, precision of float32 products), and its random numbers are not drawn from.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DoesNotFit
from ..units import format_bytes
from .disk_rate import disk_rate
from .host import cache_bytes
from .rates import Rates, now_s, torch_version

if TYPE_CHECKING:
    from .devices import DeviceFacts

_WARM_S = 0.1
"""A GPU that rests has a slow clock."""
_LONG_S = 0.4
_REPETITIONS = (3, 15)
_MATRIX_S = 0.04
"""Products are made larger until one takes so long: small ones measure the call."""
_SIDES = (1024, 2048, 4096, 8192)
_SMALLEST = 16 << 20
_EXACT_INT8 = ("avx512_vnni", "avx_vnni", "amx_int8", "i8mm", "dotprod")
"""Other CPUs add up pairs of products in 16 bits, and cut off what is too large for that."""


def measure(facts: DeviceFacts, *, home: Path, progress: Callable[[str], None]) -> Rates:
    """See `rates.measure_rates`."""
    import torch

    share = facts.available_bytes // 8
    if share < _SMALLEST:
        raise DoesNotFit(
            f"{facts.name} has only {format_bytes(facts.available_bytes)} free, too little to measure its rates; "
            "end what holds the rest",
            needed_bytes=8 * _SMALLEST,
            available_bytes=facts.available_bytes,
        )
    bench = _Bench(torch, facts, share)
    disk = None
    with torch.no_grad(), bench.released():
        progress(f"memory of {facts.name}")
        read, copy = bench.memory()
        matrix: dict[str, float] = {}
        for form in bench.forms():
            progress(f"{form} products on {facts.name}")
            rate = bench.product(form)
            if rate is not None:
                matrix[form] = rate
        transfers = {}
        if facts.kind == "cuda":
            progress(f"transfers to {facts.name}")
            transfers = bench.transfers()
    if facts.kind == "cpu":
        progress("disk")
        disk = disk_rate(home)
    return Rates(
        read_bytes_per_s=read,
        copy_bytes_per_s=copy,
        operations_per_s=matrix,
        to_device_bytes_per_s=transfers,
        disk_bytes_per_s=None if disk is None else round(disk[0]),
        disk_read=None if disk is None else disk[1],
        threads=torch.get_num_threads() if facts.kind == "cpu" else 0,
        torch=torch_version(),
        measured_s=now_s(),
        notes=tuple(bench.notes),
    )


class _Bench:
    """One device under measurement."""

    def __init__(self, torch: Any, facts: DeviceFacts, share: int) -> None:
        """`share`: bytes that one measurement may hold."""
        self.notes: list[str] = []
        self._torch = torch
        self._facts = facts
        self._share = share
        self._device = torch.device(facts.name)
        self._generator = torch.Generator(self._device).manual_seed(0)

    @contextmanager
    def released(self) -> Iterator[None]:
        """Afterwards the memory is the device's again, where torch would keep it for itself."""
        try:
            yield
        finally:
            if self._facts.kind == "cuda":
                with self._torch.cuda.device(self._device):
                    self._torch.cuda.empty_cache()
            elif self._facts.kind == "mps":
                self._torch.mps.empty_cache()

    def forms(self) -> list[str]:
        """Of MATRIX_FORMS, those that are worth measuring here."""
        features, kind = self._facts.features, self._facts.kind
        forms = [self._float32() if name == "float32" else name for name in self._facts.good_dtypes]
        names = _EXACT_INT8 if kind == "cpu" else ("int8", "rocm")
        has_int8 = any(name in features for name in names)
        return [*forms, *(["int8"] if has_int8 else []), *(["fp8"] if kind == "cuda" and "fp8" in features else [])]

    def memory(self) -> tuple[float, float]:
        """(reading, copying), in bytes a second."""
        torch = self._torch
        wanted = max(256 << 20, 4 * cache_bytes()) if self._facts.kind == "cpu" else 1 << 30
        rows = max(1, min(wanted, self._share // 2) // (4 * 4096))
        source = self._random((rows, 4096), torch.float32)
        vector = self._random((4096,), torch.float32)
        target = torch.empty_like(source)
        size = 4 * 4096 * rows
        # Different CPUs are at their best in one or the other.
        reading = min(self._median_s(lambda: torch.sum(source)), self._median_s(lambda: torch.mv(source, vector)))
        return _rounded(size / reading), _rounded(2 * size / self._median_s(lambda: target.copy_(source)))

    def product(self, form: str) -> float | None:
        """Operations a second; None, and a note, where the device cannot."""
        found = None
        try:
            for side in _SIDES:
                if found is not None and 4 * side * side * 4 > self._share:
                    break
                seconds = self._median_s(self._product(form, side))
                found = max(found or 0.0, 2 * side**3 / seconds)
                if seconds > _MATRIX_S:
                    break
        except (RuntimeError, AttributeError, ValueError) as error:
            if found is None:
                reason = " ".join(str(error).split())[:120]
                self.notes.append(f"Products in {form} could not be measured: {type(error).__name__}: {reason}")
        return None if found is None else _rounded(found)

    def transfers(self) -> dict[str, float]:
        """From RAM to the device, in bytes a second."""
        torch = self._torch
        size = min(256 << 20, self._share // 4)
        target = torch.empty(size, dtype=torch.uint8, device=self._device)
        rates = {}
        for name in ("pinned", "pageable"):
            try:
                source = torch.ones(size, dtype=torch.uint8, device="cpu", pin_memory=name == "pinned")
            except RuntimeError as error:  # a limit on locked memory
                self.notes.append(f"Transfers of {name} memory could not be measured: {str(error)[:120]}")
                continue
            seconds = self._median_s(lambda source=source: target.copy_(source, non_blocking=True))  # type: ignore[misc]
            rates[name] = _rounded(size / seconds)
        return rates

    def _product(self, form: str, side: int) -> Callable[[], object]:
        """A product of two matrices, the right one as layers hold their weights: (out, in), transposed."""
        torch = self._torch
        if form == "int8":
            left, right = (self._integers(side) for _ in range(2))
            return lambda: torch._int_mm(left, right.t())
        if form == "fp8":
            left, right = (self._random((side, side), torch.float32).to(torch.float8_e4m3fn) for _ in range(2))
            one = torch.ones((), dtype=torch.float32, device=self._device)
            return lambda: torch._scaled_mm(left, right.t(), one, one, out_dtype=torch.bfloat16)
        dtype = torch.float32 if form == "tf32" else getattr(torch, form)
        left, right = (self._random((side, side), torch.float32).to(dtype) for _ in range(2))
        return lambda: torch.mm(left, right.t())

    def _float32(self) -> str:
        """What products of float32 are, as torch is set: `float32`, or `tf32` on GPUs that have it."""
        if self._facts.kind != "cuda" or "bf16" not in self._facts.features:
            return "float32"
        with suppress(RuntimeError):  # where its older and newer settings contradict each other
            return "tf32" if self._torch.backends.cuda.matmul.allow_tf32 else "float32"
        return "float32"

    def _random(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Values as weights have them: a GPU multiplies zeros faster, since that takes less power."""
        empty = self._torch.empty(shape, dtype=dtype, device=self._device)
        return empty.uniform_(-1.0, 1.0, generator=self._generator)

    def _integers(self, side: int) -> Any:
        torch = self._torch
        empty = torch.empty((side, side), dtype=torch.int8, device=self._device)
        return empty.random_(-127, 128, generator=self._generator)

    def _median_s(self, run: Callable[[], object]) -> float:
        """Seconds of one call."""
        started = time.perf_counter()
        while True:
            run()
            self._wait()
            if time.perf_counter() - started >= _WARM_S:
                break
        least, most = _REPETITIONS
        times: list[float] = []
        started = time.perf_counter()
        while len(times) < least or (len(times) < most and time.perf_counter() - started < _LONG_S):
            begin = time.perf_counter()
            run()
            self._wait()
            times.append(time.perf_counter() - begin)
        return max(statistics.median(times), 1e-9)

    def _wait(self) -> None:
        if self._facts.kind == "cuda":
            self._torch.cuda.synchronize(self._device)
        elif self._facts.kind == "mps":
            self._torch.mps.synchronize()


def _rounded(rate: float) -> float:
    """Four digits: more would be noise."""
    return float(f"{rate:.4g}")
