"""Sizes and times that are none."""

from __future__ import annotations

from typing import Any

import pytest

import kamado
from kamado.settings import seconds
from kamado.units import parse_bytes


@pytest.mark.parametrize(
    "value", [True, False, 1.5, float("nan"), [], {}, b"1GiB", "", "GiB", "-1", "1e9", "nan", 0, -5]
)
def test_what_is_no_size(value: Any) -> None:
    with pytest.raises(kamado.InvalidRequest, match="size"):
        parse_bytes(value)


@pytest.mark.parametrize("value", [True, "x", [], float("nan"), -2, "300"])
def test_what_is_no_time(value: Any) -> None:
    with pytest.raises(kamado.InvalidRequest, match="max_wait must be a number of seconds"):
        seconds("max_wait", value)


@pytest.mark.parametrize(("value", "read"), [(None, None), (-1, None), (0, 0), (2.5, 2.5), (float("inf"), None)])
def test_times(value: float | None, read: float | None) -> None:
    assert seconds("keep_alive", value) == read
