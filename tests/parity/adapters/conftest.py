"""Files of adapters, and a runtime with a store of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import kamado
from adapter_files import Files


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("adapters"))


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[kamado.Runtime]:
    monkeypatch.setenv("KAMADO_HOME", str(tmp_path / "home"))
    with kamado.Runtime(device="cpu", memory="2GiB") as made:
        yield made
