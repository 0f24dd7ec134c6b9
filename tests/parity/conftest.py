"""The runtime that most comparisons run in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import kamado
from kamado_models.language import recording
from tape import TapeGraphs


@pytest.fixture
def runtime() -> Iterator[kamado.Runtime]:
    with kamado.Runtime(device="cpu", memory="2GiB") as made:
        yield made


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> list[TapeGraphs]:
    """Recorders of text models loaded from now on, in order: their steps are recorded on a CPU."""
    made: list[TapeGraphs] = []

    def recorder(device: Any) -> TapeGraphs:
        made.append(TapeGraphs())
        return made[-1]

    monkeypatch.setattr(recording, "_has_graphs", lambda device: True)
    monkeypatch.setattr(recording, "_recorder", recorder)
    return made
