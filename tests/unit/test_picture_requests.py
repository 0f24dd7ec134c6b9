"""Adapters of a request: what may be written for one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kamado.errors import InvalidRequest
from kamado.picture_requests import AdapterUse, parse_adapter, resolve_picture_options


@pytest.mark.parametrize(
    ("written", "reference", "weight"),
    [
        ("style.safetensors", "style.safetensors", 1.0),
        ("style.safetensors:0.8", "style.safetensors", 0.8),
        ("org/name@main:-1e-1", "org/name@main", -0.1),
        ("pypi:package", "pypi:package", 1.0),
        ("pypi:package==1.0:.5", "pypi:package==1.0", 0.5),
        ("name:size", "name:size", 1.0),
        (Path("a:0.5"), "a:0.5", 1.0),
        ({"reference": "a:0.5"}, "a:0.5", 1.0),
        ({"reference": "a", "weight": 2, "sha256": "0"}, "a", 2.0),
        (AdapterUse("a", 0.5), "a", 0.5),
    ],
)
def test_ways_to_write_an_adapter(written: Any, reference: str, weight: float) -> None:
    assert parse_adapter(written) == AdapterUse(reference, weight)


def test_what_is_here_has_no_weight(tmp_path: Path) -> None:
    odd = tmp_path / "style:0.5"
    assert parse_adapter(str(odd)) == AdapterUse(str(tmp_path / "style"), 0.5)
    odd.touch()
    assert parse_adapter(str(odd)) == AdapterUse(str(odd), 1.0)


@pytest.mark.parametrize(
    "written",
    ["", "a/b:x", "a.safetensors:", "a:inf", "a:2e3", 1, None, [], {}, {"reference": 1}, {"reference": "a", "x": 1}]
    + [{"reference": "a", "weight": weight} for weight in (math.nan, True, "1", 2000)],
)
def test_what_is_no_adapter(written: Any) -> None:
    with pytest.raises(InvalidRequest, match="adapter"):
        parse_adapter(written)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=3)
       | st.dictionaries(st.sampled_from(["reference", "weight", "x"]), inner, max_size=3), max_leaves=5))  # fmt: skip
def test_anything_else_is_refused_in_a_line(value: Any) -> None:
    try:
        uses = resolve_picture_options({"adapters": value}).adapters
    except InvalidRequest as error:
        assert len(str(error)) < 400
    else:
        assert all(isinstance(use.reference, str) and abs(use.weight) <= 1000 for use in uses)


def test_one_needs_no_list() -> None:
    assert resolve_picture_options({"adapters": "a:0.5"}).adapters == (AdapterUse("a", 0.5),)
    assert resolve_picture_options({}).adapters == ()
