"""What an error that means "out of memory" is, whoever raises it, and what it says. Imports no torch."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from traceback import clear_frames
from typing import Any

from ..errors import DoesNotFit, GenerationFailed, KamadoError
from ..units import format_bytes, parse_bytes
from .host import host_memory

_SAID = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|not enough memory|bad_alloc|bad allocation"
    r"|ALLOC(ATION)?_FAILED"
)
"""In what torch raises as plain RuntimeError: allocators of CPUs and of MPS, cuBLAS, cuDNN, cuSOLVER."""
_NEEDED = re.compile(r"(?:tried to allocate|unable to allocate) (\d+(?:\.\d+)?) ?([KMGT]i?B|bytes\b)?", re.IGNORECASE)


def is_shortage(error: BaseException | None, place: str | None = None) -> bool:
    """Whether memory had run out: on a device or the host, or in the ledger. What `error` was raised from counts too,
    unless it is one of Kamado's own errors, which say for themselves what they are. With `place`, a DoesNotFit of
    another one does not count: room there would not help."""
    while error is not None:
        if isinstance(error, DoesNotFit):
            return place is None or error.place in ("", place)
        if isinstance(error, MemoryError):
            return True
        if isinstance(error, KamadoError):
            return False
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        if isinstance(error, RuntimeError) and _SAID.search(str(error)):
            return True
        if type(error).__name__ == "OutOfMemoryError" and isinstance(error, RuntimeError):  # torch's own
            return True
        error = error.__cause__
    return False


def needed_bytes(error: BaseException | None) -> int | None:
    """How much the allocation that failed asked for. None where nobody says."""
    while error is not None:
        if isinstance(error, DoesNotFit):
            return error.needed_bytes
        if found := _NEEDED.search(str(error)):
            number, unit = found.groups()
            return parse_bytes(number + (unit or "")) if unit and unit.lower() != "bytes" else int(float(number))
        error = error.__cause__
    return None


def free_bytes(device: str) -> int | None:
    """What allocations on the device could still get, by the system's account. None where it does not tell."""
    torch: Any = sys.modules.get("torch")
    if device == "cpu" or torch is None:
        return host_memory().available_bytes
    if not device.startswith("cuda"):
        return None
    try:
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    except RuntimeError:  # a GPU that no longer answers must not hide the error that this is asked for
        return None


def release_cached(device: str) -> None:
    """Have torch give back what it keeps of a GPU's memory for later."""
    torch: Any = sys.modules.get("torch")
    if device.startswith("cuda") and torch is not None:
        torch.cuda.empty_cache()
        if hasattr(torch._C, "_host_emptyCache"):  # page-locked memory
            torch._C._host_emptyCache()


def described(error: BaseException, device: str) -> str:
    """What was needed and what is free now, as the beginning of a sentence."""
    needed, free = needed_bytes(error), free_bytes(device)
    parts = [] if needed is None else [f"{format_bytes(needed)} were needed at once"]
    parts += [] if free is None else [f"{format_bytes(free)} are free now"]
    return f"out of memory on {device}" + (f": {', '.join(parts)}" if parts else "")


@contextmanager
def told(as_error: Callable[[Exception], KamadoError]) -> Iterator[None]:
    """What runs out of memory inside raises `as_error(what was raised)`; Kamado's own errors stay as they are."""
    try:
        yield
    except Exception as error:
        if isinstance(error, KamadoError) or not is_shortage(error):
            raise
        clear_frames(error.__traceback__)  # with the tensors that were there
        raise as_error(error) from error


def request_failed(error: BaseException, device: str) -> GenerationFailed:
    """The error of a request that memory did not suffice for."""
    failure = GenerationFailed(f"{described(error, device)}; ask for less at once, or unload another model")
    failure.__cause__ = error
    return failure


def load_failed(error: BaseException, reference: str, device: str) -> DoesNotFit:
    """The error of a model that memory did not suffice for, while it was loaded."""
    failure = DoesNotFit(
        f"{reference}: {described(error, device)}; unload another model, or load this one in fewer bits (quant)",
        needed_bytes=needed_bytes(error) or 0,
        available_bytes=free_bytes(device) or 0,
        place=device,
    )
    failure.__cause__ = error
    return failure
