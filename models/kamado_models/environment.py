"""The environment is the host program's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_TORCHS = ("TORCHINDUCTOR_CACHE_DIR", "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR")
"""Its compiler sets the first one when it is imported, the other one when it has built something for a CPU."""


@contextmanager
def environment_kept() -> Iterator[None]:
    """Importing transformers' modelling code, or compiling, makes torch set variables for good: not when it happens in
    here."""
    absent = [name for name in _TORCHS if name not in os.environ]
    try:
        yield
    finally:
        for name in absent:
            os.environ.pop(name, None)
