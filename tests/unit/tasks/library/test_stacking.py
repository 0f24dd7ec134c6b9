"""Calls of several requests as one: what may be joined, and that each gets its own rows back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils import _pytree as pytree

from kamado.tasks.library.stacking import Stacker

from .toys import DTYPES, content

PLAIN = (None, True, False, 0, 1, 1.0, 0.5, "text", b"bytes", torch.float16, torch.device("cpu"))
_SHARED_ROWS = 7
"""More than any call has, so that no shared tensor is taken for rows."""

Make = Callable[[int, int], Any]
"""A value of an argument, from a call's rows and a seed."""


@st.composite
def row_tensors(draw: st.DrawFn) -> Make:
    tail = draw(st.lists(st.integers(1, 3), max_size=3))
    dtype, salt = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 99))
    return lambda rows, seed: content((rows, *tail), dtype, seed * 100 + salt)


@st.composite
def plain_values(draw: st.DrawFn) -> Make:
    value = draw(st.sampled_from(PLAIN))
    return lambda rows, seed: value


def trees(leaves: st.SearchStrategy[Make]) -> st.SearchStrategy[Make]:
    """Leaves, and tuples and dicts of them."""

    def grown(children: st.SearchStrategy[Make]) -> st.SearchStrategy[Make]:
        tuples = st.lists(children, min_size=1, max_size=3).map(
            lambda makes: lambda rows, seed: tuple(make(rows, seed) for make in makes)
        )
        dicts = st.dictionaries(st.sampled_from("pqr"), children, min_size=1, max_size=3).map(
            lambda makes: lambda rows, seed: {name: make(rows, seed) for name, make in makes.items()}
        )
        return tuples | dicts

    return st.recursive(leaves, grown, max_leaves=5)


@st.composite
def shared_tensors(draw: st.DrawFn) -> Make:
    tail = draw(st.lists(st.integers(1, 3), max_size=2))
    dtype, scalar = draw(st.sampled_from(DTYPES)), draw(st.booleans())
    return lambda rows, seed: content(() if scalar else (_SHARED_ROWS, *tail), dtype, 5)


ROWS = st.lists(st.integers(1, 4), min_size=2, max_size=5)
ARGUMENTS = st.dictionaries(st.sampled_from("bcdef"), trees(row_tensors() | plain_values()), max_size=4)
SHARED = st.dictionaries(st.sampled_from("uvw"), trees(shared_tensors()), max_size=2)


def calls_of(makes: Mapping[str, Make], rows: Sequence[int]) -> list[dict[str, Any]]:
    """Calls that differ in their rows alone; their lead is `a`."""
    return [
        {
            "a": content((count, 2, 3), torch.float32, number + 1),
            **{name: make(count, number + 1) for name, make in makes.items()},
        }
        for number, count in enumerate(rows)
    ]


def equal(one: Any, other: Any) -> bool:
    ours, spec = pytree.tree_flatten(one)
    theirs, other_spec = pytree.tree_flatten(other)
    return spec == other_spec and all(
        a.dtype == b.dtype and torch.equal(a, b) if isinstance(a, Tensor) else type(a) is type(b) and a == b
        for a, b in zip(ours, theirs, strict=True)
    )


@settings(max_examples=150)
@given(arguments=ARGUMENTS, shared=SHARED, rows=ROWS)
def test_each_call_gets_its_own_rows_back(arguments: dict[str, Make], shared: dict[str, Make], rows: list[int]) -> None:
    stacker = Stacker()
    calls = calls_of({**shared, **arguments}, rows)
    forms = [stacker.form(call) for call in calls]
    assert [form.rows for form in forms if form is not None] == rows
    assert len({form.key for form in forms if form is not None}) == 1
    assert len({form.kind for form in forms if form is not None}) == 1
    joined = stacker.join(calls, rows)
    assert joined.keys() == calls[0].keys()
    assert all(equal(joined[name], calls[0][name]) for name in shared)
    result = {name: joined[name] for name in joined if name not in shared}
    pieces = stacker.split(result, joined, rows)
    assert pieces is not None
    for piece, call in zip(pieces, calls, strict=True):
        assert equal(piece, {name: call[name] for name in result})


@given(rows=ROWS)
def test_pieces_are_in_the_order_of_the_calls(rows: list[int]) -> None:
    stacker = Stacker()
    calls = [{"x": torch.full((count, 2), number)} for number, count in enumerate(rows)]
    joined = stacker.join(calls, rows)
    pieces = stacker.split((joined["x"] * 2,), joined, rows)
    assert pieces is not None
    assert [piece[0].tolist() for piece in pieces] == [[[number * 2] * 2] * n for number, n in enumerate(rows)]


TIMES: dict[str, Callable[[int, int], Any]] = {
    "scalar": lambda number, rows: torch.tensor(float(number)),
    "one": lambda number, rows: torch.tensor([float(number)]),
    "one a row": lambda number, rows: torch.full((rows,), float(number)),
    "whole scalar": lambda number, rows: torch.tensor(number),
    "whole one": lambda number, rows: torch.tensor([number]),
    "whole one a row": lambda number, rows: torch.full((rows,), number),
}


@pytest.mark.parametrize("first", list(TIMES))
@pytest.mark.parametrize("second", list(TIMES))
@pytest.mark.parametrize(("name", "rows"), [("timestep", (2, 3)), ("t", (1, 2)), ("sigma", (1, 1))])
def test_a_time_step_becomes_one_for_each_row(first: str, second: str, name: str, rows: tuple[int, int]) -> None:
    stacker = Stacker()
    calls = [
        {"x": torch.zeros(rows[0], 1), name: TIMES[first](3, rows[0])},
        {"x": torch.zeros(rows[1], 1), name: TIMES[second](7, rows[1])},
    ]
    one, other = (stacker.form(call) for call in calls)
    assert one is not None
    assert other is not None
    assert one.key == other.key
    joined = stacker.join(calls, rows)
    assert joined[name].tolist() == [3] * rows[0] + [7] * rows[1]
    assert joined[name].is_floating_point() == (not (first.startswith("whole") and second.startswith("whole")))


def test_time_steps_with_further_dimensions_are_like_other_tensors() -> None:
    """Some models have a time step for each position."""
    stacker = Stacker()
    calls = [{"x": torch.zeros(1, 1), "timestep": torch.full((1, 1), number)} for number in (3, 7)]
    assert stacker.join(calls, [1, 1])["timestep"].tolist() == [[3], [7]]


def test_generators_keep_calls_apart_unless_they_have_no_effect() -> None:
    calls = [{"z": torch.zeros(1, 2), "generator": torch.Generator()} for _ in range(2)]
    for stacker, joinable in ((Stacker(), False), (Stacker(frozenset({"generator"})), True)):
        one, other = (stacker.form(call) for call in calls)
        assert one is not None
        assert other is not None
        assert (one.key == other.key) is joinable
    one = Stacker().form(calls[0])
    assert one == Stacker().form(calls[0])


def test_what_has_no_effect_may_be_anything() -> None:
    stacker = Stacker(frozenset({"generator", "hint"}))
    calls: list[dict[str, Any]] = [
        {"generator": [torch.Generator()], "hint": torch.zeros(4, 4), "z": torch.ones(1, 2)},
        {"generator": [torch.Generator(), torch.Generator()], "z": torch.full((2, 2), 2.0)},
        {"z": torch.full((1, 2), 3.0), "hint": [torch.zeros(3)], "generator": None},
    ]
    forms = [stacker.form(call) for call in calls]
    assert len({form.key for form in forms if form is not None}) == 1
    joined = stacker.join(calls, [1, 2, 1])
    assert joined["z"].tolist() == [[1, 1], [2, 2], [2, 2], [3, 3]]
    assert joined["generator"] is calls[0]["generator"]


def lists_of(rows: int, seed: int, shape: tuple[int, ...] = (2, 1, 3, 3)) -> dict[str, Any]:
    """As a model takes them that has a list of pictures in place of a batch."""
    return {
        "x": [content(shape, torch.float32, seed * 10 + row) for row in range(rows)],
        "t": content((rows,), torch.float32, seed),
        "cap_feats": [content((4, 2), torch.float32, seed * 10 + row) for row in range(rows)],
        "patch_size": 2,
    }


@given(rows=ROWS)
def test_lists_of_tensors_are_joined(rows: list[int]) -> None:
    rows = [max(count, 2) for count in rows]
    stacker = Stacker()
    calls = [lists_of(count, number) for number, count in enumerate(rows)]
    forms = [stacker.form(call) for call in calls]
    assert len({form.key for form in forms if form is not None}) == 1
    assert [form.rows for form in forms if form is not None] == rows
    joined = stacker.join(calls, rows)
    assert isinstance(joined["x"], list)
    assert len(joined["x"]) == len(joined["cap_feats"]) == len(joined["t"]) == sum(rows)
    for result, pick in ((joined["x"], lambda piece: piece), ((joined["x"],), lambda piece: piece[0])):
        pieces = stacker.split(result, joined, rows)
        assert pieces is not None
        for piece, call in zip(pieces, calls, strict=True):
            assert equal(pick(piece), call["x"])


def test_a_single_picture_in_a_list_may_be_joined() -> None:
    stacker = Stacker()
    calls = [lists_of(1, seed) for seed in range(3)]
    assert len({form.key for call in calls if (form := stacker.form(call))}) == 1
    joined = stacker.join(calls, [1, 1, 1])
    assert joined["t"].tolist() == [call["t"].item() for call in calls]
    assert [tensor.data_ptr() for tensor in joined["x"]] == [call["x"][0].data_ptr() for call in calls]


def test_lists_whose_entries_have_as_many_entries_as_there_are_rows() -> None:
    """Two pictures of two channels: it is the list that has the rows."""
    stacker = Stacker()
    calls = [lists_of(1, seed) for seed in range(2)]
    joined = stacker.join(calls, [1, 1])
    pieces = stacker.split({"sample": joined["x"]}, joined, [1, 1])
    assert pieces is not None
    assert all(equal(piece, {"sample": call["x"]}) for piece, call in zip(pieces, calls, strict=True))


def test_pictures_of_other_sizes_make_another_form() -> None:
    one, other = Stacker().form(lists_of(2, 1)), Stacker().form(lists_of(2, 1, (2, 1, 3, 4)))
    assert one is not None
    assert other is not None
    assert one.key != other.key


def test_lists_of_numbers_with_one_for_each_row_are_joined() -> None:
    stacker = Stacker()
    calls = [{"x": torch.zeros(2, 3), "shapes": [[(1, 4, 4)]] * 2, "lengths": [5, 7]} for _ in range(2)]
    joined = stacker.join(calls, [2, 2])
    assert joined["shapes"] == [[(1, 4, 4)]] * 4
    assert joined["lengths"] == [5, 7, 5, 7]


def test_tuples_of_tensors_beside_a_tensor_are_taken_apart() -> None:
    """As a ControlNet's residuals go into a UNet."""
    stacker = Stacker()
    calls = [
        {"x": torch.zeros(2, 3), "residuals": (torch.full((2, 1), number), torch.full((2, 4), number))}
        for number in (1, 2)
    ]
    joined = stacker.join(calls, [2, 2])
    assert [tuple(tensor.shape) for tensor in joined["residuals"]] == [(4, 1), (4, 4)]
    assert joined["residuals"][1][:, 0].tolist() == [1, 1, 2, 2]


NOT_SPLIT: dict[str, Any] = {
    "other rows": torch.zeros(3, 1),
    "a scalar": torch.tensor(1.0),
    "one of several": (torch.zeros(4, 1), torch.zeros(())),
    "an object": SimpleNamespace(sample=torch.zeros(4, 1)),
    "something in a dict": {"a": torch.zeros(4), "b": object()},
}


@pytest.mark.parametrize("what", list(NOT_SPLIT))
def test_a_result_without_those_rows_is_not_split(what: str) -> None:
    assert Stacker().split(NOT_SPLIT[what], {"x": torch.zeros(4, 1)}, [2, 2]) is None


def test_plain_parts_of_a_result_go_to_all() -> None:
    pieces = Stacker().split((torch.arange(3), None, 2, "x", {}), {"x": torch.zeros(3, 1)}, [1, 2])
    assert pieces is not None
    assert pieces[0][1:] == pieces[1][1:] == (None, 2, "x", {})
    assert pieces[1][0].tolist() == [1, 2]
