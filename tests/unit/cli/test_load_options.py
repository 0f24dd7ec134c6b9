"""Options of loading that are switched off."""

from __future__ import annotations

from typing import Any

import click
import pytest
from click.testing import CliRunner

from kamado.cli.common import LoadOptions, model_options


@pytest.mark.parametrize(("typed", "prepared"), [([], True), (["--no-prepared"], False)])
def test_prepared_weights(typed: list[str], prepared: bool) -> None:
    found: list[LoadOptions] = []

    @click.command()
    @model_options
    def command(load: LoadOptions, **_: Any) -> None:
        found.append(load)

    result = CliRunner().invoke(command, typed)
    assert result.exit_code == 0, result.output
    assert found[0].of_lanes()["prepared"] is prepared
    assert "prepared" not in found[0].of_model(), "a plan does not depend on it"
