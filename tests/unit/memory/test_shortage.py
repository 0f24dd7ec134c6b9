"""What counts as "out of memory", and what is said about it."""

from __future__ import annotations

import errno
import subprocess
import sys

import numpy
import pytest
import torch

from kamado.errors import DoesNotFit, GenerationFailed, InvalidRequest, KamadoError
from kamado.memory import shortage
from kamado.memory.shortage import is_shortage, load_failed, needed_bytes, request_failed, told

GIB = 1 << 30
CUDA = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 23.5 GiB of which 1.2 GiB is free"
CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
SHORTAGES = [
    (MemoryError(), None),
    (MemoryError("Unable to allocate 1.00 GiB for an array with shape (3,) and data type float64"), GIB),
    (torch.OutOfMemoryError(CUDA), GIB * 5 // 2),
    (RuntimeError(CPU + "4096 bytes. Error code 12 (Cannot allocate memory)"), 4096),
    (
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB). Tried to allocate 512.00 MiB on private pool."),
        GIB // 2,
    ),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), None),
    (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), None),
    (RuntimeError("CUDA error: out of memory"), None),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), None),
    (DoesNotFit("weights need more", needed_bytes=70, available_bytes=7), 70),
]


@pytest.mark.parametrize(("error", "needed"), SHORTAGES, ids=lambda value: f"{value}"[:40])
def test_shortages(error: Exception, needed: int | None) -> None:
    assert is_shortage(error)
    assert needed_bytes(error) == needed
    try:
        raise ValueError("a library's own words") from error
    except ValueError as outer:
        assert is_shortage(outer)
        assert needed_bytes(outer) == needed


@pytest.mark.parametrize(
    "error",
    [
        None,
        ValueError("out of memory"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        OSError(errno.ENOENT, "No such file"),
        KeyError("bad_alloc"),
        GenerationFailed("the model produced NaN"),
    ],
)
def test_other_errors(error: Exception | None) -> None:
    assert not is_shortage(error)


def test_kamados_own_errors_say_for_themselves_what_they_are() -> None:
    error = InvalidRequest("too large")
    error.__cause__ = MemoryError()
    assert not is_shortage(error)


def test_real_allocators() -> None:
    for allocate in (lambda: torch.empty(10**15), lambda: numpy.empty(10**15), lambda: bytearray(10**17)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            allocate()
        assert is_shortage(caught.value)


def test_messages_say_what_was_needed_and_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortage, "free_bytes", lambda device: GIB)
    error = torch.OutOfMemoryError(CUDA)
    failed = request_failed(error, "cuda:0")
    assert str(failed).startswith(
        "out of memory on cuda:0: 2.50 GiB were needed at once, 1.00 GiB are free now; ask for"
    )
    assert failed.__cause__ is error
    unfit = load_failed(error, "some/model", "cuda:0")
    assert str(unfit).startswith("some/model: out of memory on cuda:0: 2.50 GiB were needed")
    assert (unfit.needed_bytes, unfit.available_bytes) == (GIB * 5 // 2, GIB)
    monkeypatch.setattr(shortage, "free_bytes", lambda device: None)
    assert str(request_failed(MemoryError(), "mps")).startswith("out of memory on mps; ask for")


def test_free_memory_of_the_host_is_a_number_of_bytes() -> None:
    free = shortage.free_bytes("cpu")
    assert free is not None
    assert 0 < free < 1 << 50


@pytest.mark.parametrize(
    "raised", [ValueError("x"), GenerationFailed("x"), DoesNotFit("x", needed_bytes=1, available_bytes=0)]
)
def test_what_is_no_shortage_or_kamados_own_passes(raised: Exception) -> None:
    with pytest.raises(type(raised)) as caught, told(lambda error: KamadoError("told")):
        raise raised
    assert caught.value is raised


def test_told_forgets_what_was_being_computed() -> None:
    class Large:
        alive = 0

        def __init__(self) -> None:
            Large.alive += 1

        def __del__(self) -> None:
            Large.alive -= 1

    def compute() -> None:
        held = Large()
        raise MemoryError(str(held))

    with pytest.raises(KamadoError) as caught, told(lambda error: KamadoError("told")):
        compute()
    assert isinstance(caught.value.__cause__, MemoryError)
    assert Large.alive == 0


def test_it_imports_no_torch() -> None:
    code = (
        "import sys; from kamado.memory.shortage import free_bytes as f; f('cuda:0'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
