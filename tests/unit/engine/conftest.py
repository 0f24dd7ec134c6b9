"""Runtimes over models of integers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

import kamado
from kamado import api
from kamado.checkpoint.types import Checkpoint

from .file_family import FileFamily


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FileFamily:
    family = FileFamily()

    def inspect(reference: str, offline: bool = False) -> Checkpoint:
        file = tmp_path / reference / "weights"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"weights")
        return Checkpoint(
            reference=reference, root=file.parent, layout="transformers", config={}, metadata={}, tensors={},
            files={"weights": file},
        )  # fmt: skip

    monkeypatch.setattr(api, "inspect_checkpoint", inspect)
    monkeypatch.setattr(api, "find", lambda checkpoint: family)
    monkeypatch.setattr(api, "_inference_mode", nullcontext)
    return family


@pytest.fixture
def runtime(family: FileFamily) -> Iterator[kamado.Runtime]:
    """With room for two."""
    with kamado.Runtime(device="cpu", memory=2500) as runtime:
        yield runtime
