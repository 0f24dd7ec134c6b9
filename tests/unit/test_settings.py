"""Keywords of `Runtime.plan` and `Runtime.load`: those that there are, checked by Python as by mypy."""

from __future__ import annotations

import inspect
import math
from pathlib import Path

import pytest

from kamado import Runtime, settings
from kamado.cli.common import LoadOptions
from kamado.errors import InvalidRequest
from kamado.settings import LoadSettings, PlanSettings, seconds


def test_unknown_keywords_are_refused_as_python_does() -> None:
    with Runtime(device="cpu") as runtime:
        for function, bad in ((runtime.plan, "pinned"), (runtime.plan, "qant"), (runtime.load, "qant")):
            with pytest.raises(TypeError, match=rf"{function.__name__}\(\) got an unexpected keyword argument '{bad}'"):
                function("no/model", **{"offline": True, bad: "int8"})  # type: ignore[arg-type]


def test_the_command_line_gives_what_there_is() -> None:
    assert LoadOptions().of_model().keys() == PlanSettings.__annotations__.keys()


def test_all_are_described_and_in_the_documentation() -> None:
    known = {*PlanSettings.__annotations__, *LoadSettings.__annotations__}
    source = inspect.getsource(settings)
    text = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
    (line,) = (line for line in text.splitlines() if line.startswith("| `load(reference, *,"))
    for name in known:
        assert f"    {name}: " in source and name in line
    assert len(known) == source.count(']"""')


def test_seconds() -> None:
    assert [seconds("x", value) for value in (None, -1, 0, 2.5, math.inf)] == [None, None, 0, 2.5, None]
    for bad in (-2, -0.5, math.nan):
        with pytest.raises(InvalidRequest, match="max_wait must be a number of seconds"):
            seconds("max_wait", bad)
        with pytest.raises(InvalidRequest, match="max_wait"):
            Runtime(device="cpu", max_wait=bad)
