"""docs/models.md says what is."""

from __future__ import annotations

from importlib.metadata import version

import pytest

import models_table

PINNED = "0.42.1"


@pytest.mark.skipif(version("diffusers") != PINNED, reason=f"the list is that of diffusers {PINNED}")
def test_it_is_up_to_date() -> None:
    """If not: ./scripts/models"""
    assert models_table.PAGE.read_text(encoding="utf-8") == models_table.page()
