"""The programs in benchmarks/ are no package: they are imported from their folder."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

PROGRAMS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A module of that folder, by name."""
    monkeypatch.syspath_prepend(PROGRAMS)
    return importlib.import_module
