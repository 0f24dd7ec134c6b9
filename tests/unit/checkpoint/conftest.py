"""A store of its own for each test, and no network but the fake hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoint_files import safetensors_bytes
from fake_hub import FakeHub, fake_hub, use_hub
from kamado.checkpoint.store import Store

FILES = {
    "config.json": json.dumps({"model_type": "llama"}).encode(),
    "tokenizer.json": b"{}",
    "model.safetensors": safetensors_bytes({"a": ("F32", (1024, 1024), 4 << 20)}),
    "pytorch_model.bin": b"\x80\x02" + bytes(100),
    "onnx/model.onnx": bytes(100),
    "README.md": b"# read me",
    ".gitattributes": b"x",
}
"""What Kamado takes of it: the first three."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store's folder; the user's own hub cache is out of sight."""
    monkeypatch.setenv("KAMADO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    return tmp_path / "home"


@pytest.fixture
def store(home: Path) -> Store:
    return Store.open()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with `org/name`, which this process and its children take for the real one."""
    with fake_hub(FILES) as served:
        use_hub(monkeypatch, served.url)
        yield served
