"""`kamado grid` in this process, over a fake model of pictures or texts."""

from __future__ import annotations

import pytest

from fake_model import FakeModel, FakeRuntime
from fake_pictures import FakePictureModel
from kamado.cli import grid, loading
from kamado.cli.loading import Abilities
from typed import Kamado, typed


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    fake = FakeRuntime()
    monkeypatch.setattr(loading, "open_runtime", lambda load: fake)
    monkeypatch.setattr(grid, "abilities", lambda reference, load, out: Abilities(makes=fake.model.capabilities))
    return fake


@pytest.fixture
def texts(runtime: FakeRuntime) -> FakeModel:
    return runtime.model


@pytest.fixture
def pictures(runtime: FakeRuntime) -> FakePictureModel:
    runtime.model = FakePictureModel()
    return runtime.model


@pytest.fixture
def kamado(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Kamado:
    return typed(monkeypatch, capsys)
