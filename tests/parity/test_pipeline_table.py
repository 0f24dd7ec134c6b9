"""The list of pipelines is that of the installed diffusers."""

from __future__ import annotations

from importlib.metadata import version

import pytest

import pipeline_table

PINNED = "0.42.1"


@pytest.mark.skipif(version("diffusers") != PINNED, reason=f"the list is that of diffusers {PINNED}")
def test_it_is_up_to_date() -> None:
    """If not: ./scripts/pipelines"""
    found = pipeline_table.rows()
    assert len(found) > 250
    assert pipeline_table.TABLE.read_text() == pipeline_table.table(found)
    assert pipeline_table.TAKES.read_text() == pipeline_table.takes(found)
    assert pipeline_table.PAGE.read_text() == pipeline_table.page(found, PINNED)
    assert pipeline_table.tested() <= {row.name for row in found}
