"""Importing bitsandbytes, which on some CPUs looks for code on a hub while it is imported. No torch before that."""

from __future__ import annotations

import logging
import sys
import threading
from functools import cache
from typing import Any

_HUB_PACKAGE = "kernels"
"""The package through which it would load that code."""
_importing = threading.Lock()


@cache
def import_bitsandbytes() -> bool:
    """Import bitsandbytes without its looking for anything outside, and without its complaint that it could not. False:
    it is not there, or does not work here."""

    def silent(record: logging.LogRecord) -> bool:
        return False

    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    with _importing:
        absent: Any = object()
        before = sys.modules.get(_HUB_PACKAGE, absent)
        sys.modules[_HUB_PACKAGE] = None  # type: ignore[assignment]  # how Python is told that there is no such module
        logger.addFilter(silent)
        try:
            import bitsandbytes
        except (ImportError, OSError, RuntimeError):
            return False
        finally:
            logger.removeFilter(silent)
            if before is absent:
                del sys.modules[_HUB_PACKAGE]
            else:
                sys.modules[_HUB_PACKAGE] = before
    return hasattr(bitsandbytes, "matmul_4bit")
