"""What the tests of models that speak share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import kamado


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[kamado.Runtime]:
    monkeypatch.setenv("KAMADO_HOME", str(tmp_path / "home"))
    with kamado.Runtime(device="cpu", memory="1GiB") as found:
        yield found
