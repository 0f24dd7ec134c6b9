"""The environment is the host program's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_TORCH_CACHE = "TORCHINDUCTOR_CACHE_DIR"


@contextmanager
def environment_kept() -> Iterator[None]:
    """Importing transformers' modelling code makes torch set a variable for good: not when it happens in here."""
    had_cache_folder = _TORCH_CACHE in os.environ
    try:
        yield
    finally:
        if not had_cache_folder:
            os.environ.pop(_TORCH_CACHE, None)
