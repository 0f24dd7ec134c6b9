"""diffusers' tables of which pipeline classes belong together."""

from __future__ import annotations

import functools
from typing import Any

from ..language.materialize import library_call


@functools.cache
def auto_pipeline() -> Any:
    """The module with the tables. The first call imports it, which prints, and waits for other loads; call it while a
    model is loaded, so that no request has to."""
    with library_call():
        from diffusers.pipelines import auto_pipeline as module

    return module
