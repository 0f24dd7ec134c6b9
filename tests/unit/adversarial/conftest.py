"""A runtime that knows this family alone; a restorer of faces that is quick."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from torch import Tensor

import kamado
from kamado import api
from kamado_models.adversarial.family import FAMILY

from .restorers import face_restorer, gfpgan


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kamado.Runtime]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAMADO_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setattr(api, "find", lambda checkpoint: FAMILY)
        with kamado.Runtime(device="cpu", memory="4GiB") as found:
            yield found


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """A GFPGAN with fewer channels, and spandrel, which knows one size alone, taught to build it."""
    settings: dict[str, Any] = {"narrow": 1 / 16, "num_style_feat": 16, "num_mlp": 1}
    real = gfpgan.GFPGAN
    monkeypatch.setattr(gfpgan, "GFPGAN", lambda **asked: real(**{**asked, **settings}))
    return face_restorer()
