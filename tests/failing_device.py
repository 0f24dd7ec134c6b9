"""A device that runs out of memory when a test wants it to: torch's operations fail instead of allocating."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import kamado
from kamado import api
from kamado.jobs import result_or_error

ERRORS: tuple[Callable[[], Exception], ...] = (
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has no more"),
    lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes. Error code 12"),
    MemoryError,
)


class FailingDevice(TorchDispatchMode):
    """While entered, in that thread: operations that allocate are counted, and some raise."""

    def __init__(self) -> None:
        super().__init__()
        self.rest()

    def rest(self) -> None:
        """Count from 0, and let everything pass."""
        self.count = 0
        self.failed = 0
        self.peak_bytes = 0
        """The largest result of any operation."""
        self.fails: range = range(0)
        """The numbers of the operations that raise."""
        self.largest_bytes: int | None = None
        """Operations with a larger result raise."""
        self.error: Callable[[], Exception] = MemoryError

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not _allocates(func):
            return func(*args, **(kwargs or {}))
        self.count += 1
        if self.count in self.fails:
            self._fail()
        result = func(*args, **(kwargs or {}))
        size = result.nbytes if isinstance(result, torch.Tensor) else 0
        self.peak_bytes = max(self.peak_bytes, size)
        if self.largest_bytes is not None and size > self.largest_bytes:
            self._fail()
        return result

    def _fail(self) -> None:
        self.failed += 1
        raise self.error()


def _allocates(func: Any) -> bool:
    return any(returned.alias_info is None for returned in func._schema.returns)


@contextmanager
def failing_runtime(device: FailingDevice, **options: Any) -> Iterator[kamado.Runtime]:
    """A runtime whose forwards run on `device`."""
    plain = api._inference_mode

    @contextmanager
    def context() -> Iterator[None]:
        with plain(), device:
            yield

    api._inference_mode = context
    try:
        runtime = kamado.Runtime(device="cpu", **options)
    finally:
        api._inference_mode = plain
    with runtime:
        yield runtime


def together(requests: Sequence[tuple[kamado.Model, dict[str, Any]]]) -> list[Any]:
    """Results or errors of requests that all begin with the same step."""
    gate = threading.Event()
    session = requests[0][0].runtime._session
    session._send(lambda: gate.wait(60) and None)
    try:
        jobs = [model.submit(**request) for model, request in requests]
    finally:
        gate.set()
    found = [result_or_error(job) for job in jobs]
    session.call(lambda: None)  # the step that the last one ended in is over
    return found


def tensor_bytes() -> int:
    """Of all tensors that are alive."""
    gc.collect()
    found = (each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter))
    plain = [each.untyped_storage() for each in found if each.layout == torch.strided and each.device.type == "cpu"]
    storages = {storage.data_ptr(): storage.nbytes() for storage in plain}
    return sum(storages.values())
