"""The axes of a grid: which options take which values, and the cells that this makes."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidRequest

MAX_CELLS = 100_000
MAX_AXES = 8
DEFAULT_SEED = 0
"""Of every cell, where there is neither an axis of seeds nor one seed for all: what differs is then due to the axes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One option with the values that it takes in turn."""

    name: str
    values: tuple[Any, ...]
    """None: the option is left out."""


def checked_axes(axes: Mapping[str, Sequence[Any]], fixed: Mapping[str, Any]) -> tuple[Axis, ...]:
    """The axes in their order; `fixed`: options that all cells share. Raises InvalidRequest: no axis, one without
    values or with one twice, one that is fixed too, `n`, too many axes or cells."""
    if not isinstance(axes, Mapping) or not axes:
        raise InvalidRequest('a grid needs axes, like {"prompt": ["a cat", "a dog"], "seed": [1, 2, 3]}')
    if len(axes) > MAX_AXES:
        raise InvalidRequest(f"a grid has at most {MAX_AXES} axes, not {len(axes)}")
    found = tuple(_checked_axis(name, values, fixed) for name, values in axes.items())
    if fixed.get("n", 1) != 1:
        raise InvalidRequest("each cell of a grid is one output; leave n out, and give an axis of seeds")
    num_cells = math.prod(len(axis.values) for axis in found)
    if num_cells > MAX_CELLS:
        sizes = " x ".join(str(len(axis.values)) for axis in found)
        raise InvalidRequest(f"a grid of {sizes} has {num_cells} cells; {MAX_CELLS} is the most")
    return found


def cells_of(axes: Sequence[Axis]) -> Iterator[dict[str, Any]]:
    """The values of each cell; the last axis changes fastest."""
    for values in itertools.product(*(axis.values for axis in axes)):
        yield {axis.name: value for axis, value in zip(axes, values, strict=True)}


def request_of(cell: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """All options of one cell."""
    request = {**fixed, **cell}
    request.setdefault("seed", DEFAULT_SEED)
    return {name: value for name, value in request.items() if value is not None}


def judge(axes: Sequence[Axis], fixed: Mapping[str, Any], check: Callable[[Iterable[Mapping[str, Any]]], None]) -> None:
    """Have `check`, which raises what is wrong with requests that it takes one by one, look at every cell. Raises what
    it raises; InvalidRequest names the cell."""
    cell: dict[str, Any] = {}

    def requests() -> Iterator[dict[str, Any]]:
        nonlocal cell
        for cell in cells_of(axes):
            yield request_of(cell, fixed)

    try:
        check(requests())
    except InvalidRequest as error:
        if not cell:
            raise
        named = ", ".join(f"{name} {label(value):.80}" for name, value in cell.items())
        raise InvalidRequest(f"the cell with {named:.300}: {error}") from error


def label(value: Any) -> str:
    """A value in a few words."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, os.PathLike):
        return Path(value).name
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(label, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {label(each)}" for name, each in value.items())
    return str(value) if isinstance(value, int) else type(value).__name__


def _checked_axis(name: str, values: Sequence[Any], fixed: Mapping[str, Any]) -> Axis:
    if not isinstance(name, str) or not name.isidentifier():
        raise InvalidRequest(f"{name!r:.80} is no option, so it cannot be an axis")
    if name == "n":
        raise InvalidRequest("n is no axis: each cell is one output; give an axis of seeds")
    if fixed.get(name) is not None:
        raise InvalidRequest(f"{name} is an axis, so it cannot have one value for all as well")
    if isinstance(values, (str, bytes, Mapping)):
        raise InvalidRequest(f"the axis {name} must be a list of values, not {type(values).__name__}")
    try:
        listed = tuple(values)
    except TypeError:
        raise InvalidRequest(f"the axis {name} must be a list of values, not {type(values).__name__}") from None
    if not listed:
        raise InvalidRequest(f"the axis {name} has no values")
    seen: set[str] = set()
    for value in listed:
        key = _key(value)
        if key in seen:
            raise InvalidRequest(f"the axis {name} has the value {label(value)!r:.80} twice")
        seen.add(key)
    return Axis(name=name, values=listed)


def _key(value: Any) -> str:
    """The same text for the same value."""
    try:
        return json.dumps(value, sort_keys=True)
    except (TypeError, ValueError):
        return f"{type(value).__name__} {id(value)}"
