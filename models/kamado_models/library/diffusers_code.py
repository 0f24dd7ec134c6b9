"""Importing what imports diffusers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def diffusers_code() -> Iterator[None]:
    """Within, modules that import diffusers may be imported: quietly, and after bitsandbytes, which its models import
    and which would look for kernels on a hub."""
    from kamado.weights.quantized.bitsandbytes_import import import_bitsandbytes

    from ..language.materialize import library_call

    import_bitsandbytes()
    with library_call():
        yield
