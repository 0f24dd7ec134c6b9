"""Commands run in this process, over a fake model."""

from __future__ import annotations

import pytest

from fake_model import FakeModel, FakeRuntime
from fake_pictures import FakePictureModel
from kamado.cli import batch, bench, loading, plan, replay, run
from kamado.cli.loading import Abilities
from typed import Kamado, typed


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    fake = FakeRuntime()
    for module in (bench, loading, plan):
        monkeypatch.setattr(module, "open_runtime", lambda load: fake)
    for module in (batch, bench, replay, run):
        monkeypatch.setattr(module, "abilities", lambda reference, load, out: Abilities(makes=fake.model.capabilities))
    monkeypatch.setattr(bench, "what_it_makes", lambda reference, load, out: fake.model.capabilities)
    return fake


@pytest.fixture
def model(runtime: FakeRuntime) -> FakeModel:
    return runtime.model


@pytest.fixture
def pictures(runtime: FakeRuntime) -> FakePictureModel:
    """The fake runtime's model, which makes pictures."""
    runtime.model = FakePictureModel()
    return runtime.model


@pytest.fixture
def kamado(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Kamado:
    return typed(monkeypatch, capsys)
