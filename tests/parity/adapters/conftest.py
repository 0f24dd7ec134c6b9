"""A store of the tests' own."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Set before the runtime is made."""
    monkeypatch.setenv("KAMADO_HOME", str(tmp_path / "home"))
