"""A restorer of faces that is quick."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from .restorers import face_restorer, gfpgan


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """A GFPGAN with fewer channels, and spandrel, which knows one size alone, taught to build it."""
    settings: dict[str, Any] = {"narrow": 1 / 16, "num_style_feat": 16, "num_mlp": 1}
    real = gfpgan.GFPGAN
    monkeypatch.setattr(gfpgan, "GFPGAN", lambda **asked: real(**{**asked, **settings}))
    return face_restorer()
