"""The extension in C: whether it is there, what it can do on this CPU, and with which threads.

It is built by `pip install` where there is a C compiler; without it everything works, slower. It has no interface to
Python and needs no headers, of torch or Python: it is a plain library behind ctypes. Its threads are those of torch:
it calls the OpenMP library that torch has loaded, so that there is one pool, and a call costs a microsecond.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .tiles import GROUP

FORMS = 8
"""Of the interface and the layouts that `source/` and this package agree on. A library that is left over from another
version is not used."""
_TEAM = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
PORTABLE = "portable"
"""The implementation that needs nothing of a CPU. It is slower than torch."""


@dataclass(frozen=True, slots=True)
class Native:
    """The library, with one of the implementations it has."""

    name: str
    _which: int
    _library: Any

    @property
    def is_fast(self) -> bool:
        """Whether it beats torch."""
        return self.name != PORTABLE

    def linear(
        self,
        x: Tensor,
        values: Tensor,
        scales: Tensor,
        out_features: int,
        *,
        weight_bits: int,
        activation_bits: int,
        bias: Tensor | None = None,
    ) -> Tensor:
        """float32 (rows, in), each row contiguous, times a matrix in the layout of `kamado.kernels.tiles`: float32
        (rows, out). `bias`: float32 (out), contiguous. 8 bits of activations go with weights of 4 or 8 bits, 16 with 8.
        A row's result does not depend on the other rows."""
        rows, columns = x.shape
        result = torch.empty((rows, out_features), dtype=torch.float32)
        if not rows:
            return result
        space = torch.empty(self._library.kamado_space(rows, columns), dtype=torch.uint8)
        self._library.kamado_linear(
            self._which,
            x.data_ptr(),
            x.stride(0),
            rows,
            columns,
            out_features,
            weight_bits,
            activation_bits,
            values.data_ptr(),
            scales.data_ptr(),
            None if bias is None else bias.data_ptr(),
            result.data_ptr(),
            out_features,
            space.data_ptr(),
            torch.get_num_threads(),
        )
        return result

    def rows(self, values: Tensor, scales: Tensor, out_features: int, index: Tensor) -> Tensor:
        """The outputs in `index` (n), integers, of a matrix in the layout of `kamado.kernels.tiles`: float32 (n, in).
        Raises IndexError for one that there is not."""
        columns = scales.shape[1] * GROUP
        bits = 4 if values.dtype == torch.uint8 else 8
        places = index.to(torch.int64).contiguous()
        result = torch.empty((len(places), columns), dtype=torch.float32)
        given = values.data_ptr(), scales.data_ptr(), bits, columns, out_features, places.data_ptr(), len(places)
        if not self._library.kamado_rows(*given, result.data_ptr()):
            raise IndexError(f"{int(index.min())} to {int(index.max())} are not within the {out_features} there are")
        return result

    def step_functions(self) -> tuple[int, Any, Any] | None:
        """The implementation's number, and `kamado_step_space` and `kamado_step` of `source/step.c`; None where the
        library has none for this CPU. `kamado.kernels.step` calls them."""
        if not self.is_fast or not hasattr(self._library, "kamado_step"):
            return None
        return self._which, self._library.kamado_step_space, self._library.kamado_step


@cache
def native() -> Native | None:
    """The best that the installed library can do on this CPU; None without it, or where torch is faster."""
    found = installed()
    return found[0] if found and found[0].is_fast else None


@cache
def library_mark() -> str:
    """Changes with the library and with what it can do on this CPU."""
    path, found = _path(), native()
    if path is None or found is None:
        return ""
    status = path.stat()
    return f"{found.name} {status.st_size} {status.st_mtime_ns}"


def installed() -> list[Native]:
    """What the installed library can do on this CPU, the best first."""
    path = _path()
    return [] if path is None else implementations(path)


def implementations(path: Path) -> list[Native]:
    """What the library at `path` can do on this CPU, the best first; nothing if it belongs to another version."""
    try:
        library = ctypes.CDLL(str(path))
        if library.kamado_forms() != FORMS:
            return []
    except (OSError, AttributeError):
        return []
    pointer, integer, long = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    library.kamado_name.argtypes, library.kamado_name.restype = [integer], ctypes.c_char_p
    library.kamado_space.argtypes, library.kamado_space.restype = [integer] * 2, long
    library.kamado_linear.restype = None
    sizes, data = [integer] * 5, [pointer] * 4
    library.kamado_linear.argtypes = [integer, pointer, long, *sizes, *data, long, pointer, integer]
    library.kamado_rows.argtypes = [pointer, pointer, integer, integer, long, pointer, long, pointer]
    library.kamado_rows.restype = integer
    if hasattr(library, "kamado_step"):
        library.kamado_step_space.argtypes, library.kamado_step_space.restype = [pointer, pointer, integer], long
        library.kamado_step.argtypes = [integer, pointer, pointer, pointer, integer]
        library.kamado_step.restype = None
    team = _team()
    if team is not None:
        library.kamado_team.argtypes, library.kamado_team.restype = [pointer] * len(_TEAM), None
        library.kamado_team(*team)
    return [Native(name, which, library) for which, name in _names(library)]


def _names(library: Any) -> Iterator[tuple[int, str]]:
    which = library.kamado_best()
    while (name := library.kamado_name(which)) is not None:
        yield which, name.decode()
        which += 1


def _path() -> Path | None:
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_native{suffix}")
        if path.is_file():
            return path
    return None


def _team() -> list[Any] | None:
    """Addresses of the functions of torch's own OpenMP library; None: torch has none, or another kind."""
    beside = Path(torch.__file__).parent / "lib"
    candidates = [*map(str, sorted(beside.glob("lib*omp*.so*"))), None]
    for path in candidates:
        try:
            library = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
            return [ctypes.cast(getattr(library, name), ctypes.c_void_p) for name in _TEAM]
        except (OSError, AttributeError):
            continue
    return None
