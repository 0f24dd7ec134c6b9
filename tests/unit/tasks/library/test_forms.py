"""What calls must have in common to be joined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kamado.tasks.library.stacking import Stacker

from .toys import DTYPES, content


def test_time_steps_as_numbers_must_be_equal() -> None:
    stacker = Stacker()
    x = torch.zeros(1, 1)
    forms = [stacker.form({"x": x, "timestep": value}) for value in (5, 5, 6, 5.0, torch.tensor(5))]
    keys = [form.key for form in forms if form is not None]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 4


def test_a_scalar_that_is_no_time_step_must_be_equal() -> None:
    stacker = Stacker()
    forms = [stacker.form({"x": torch.zeros(1, 1), "guidance": torch.tensor(value)}) for value in (1.0, 1.0, 2.0)]
    one, same, other = (form.key for form in forms if form is not None)
    assert one == same != other


def base() -> dict[str, Any]:
    return {
        "x": torch.zeros(2, 3, 4),
        "text": torch.zeros(2, 5),
        "ids": torch.arange(21).reshape(7, 3),
        "scale": 1,
        "extra": {"images": [torch.zeros(2, 2)], "flag": True},
        "shapes": [(1, 2), (3, 4)],
        "none": None,
    }


DIFFERENT: dict[str, Callable[[], dict[str, Any]]] = {
    "channels of the lead": lambda: {"x": torch.zeros(2, 4, 4)},
    "type of the lead": lambda: {"x": torch.zeros(2, 3, 4, dtype=torch.float16)},
    "length of the text": lambda: {"text": torch.zeros(2, 6)},
    "device": lambda: {"text": torch.zeros(2, 5, device="meta")},
    "content of a shared tensor": lambda: {"ids": torch.arange(1, 22).reshape(7, 3)},
    "type of a shared tensor": lambda: {"ids": torch.arange(21, dtype=torch.int32).reshape(7, 3)},
    "shape of a shared tensor": lambda: {"ids": torch.arange(21).reshape(7, 3, 1)},
    "number": lambda: {"scale": 2},
    "type of a number": lambda: {"scale": 1.0},
    "truth for a number": lambda: {"scale": True},
    "structure": lambda: {"extra": {"images": [torch.zeros(2, 2)] * 2, "flag": True}},
    "tuple for a list": lambda: {"extra": {"images": (torch.zeros(2, 2),), "flag": True}},
    "names in a dict": lambda: {"extra": {"images": [torch.zeros(2, 2)], "flags": True}},
    "value in a dict": lambda: {"extra": {"images": [torch.zeros(2, 2)], "flag": False}},
    "tensor for none": lambda: {"none": torch.zeros(2, 1)},
    "an argument more": lambda: {"more": None},
    "a shape": lambda: {"shapes": [(1, 2), (3, 5)]},
    "a generator": lambda: {"none": torch.Generator()},
    "an object": lambda: {"none": object()},
}


def test_calls_that_agree_have_one_form() -> None:
    one, other = Stacker().form(base()), Stacker().form(base())
    assert one == other


@pytest.mark.parametrize("what", list(DIFFERENT))
def test_calls_that_differ_have_different_forms(what: str) -> None:
    stacker = Stacker()
    one, other = stacker.form(base()), stacker.form(base() | DIFFERENT[what]())
    assert one is not None
    assert other is not None
    assert one.key != other.key


def test_the_order_of_sizes_in_a_list_does_not_matter() -> None:
    sizes = [(2, height, width) for height in range(1, 5) for width in range(1, 5)]
    one, other = (Stacker().form({"x": [torch.zeros(size) for size in order]}) for order in (sizes, sizes[::-1]))
    assert one is not None
    assert other is not None
    assert one.key == other.key


def test_an_argument_that_is_left_out_makes_another_form() -> None:
    stacker = Stacker()
    arguments = base()
    whole = stacker.form(arguments)
    for name in ("text", "none", "scale"):
        less = stacker.form({key: value for key, value in arguments.items() if key != name})
        assert whole is not None
        assert less is not None
        assert less.key != whole.key


def test_a_shared_tensor_that_changes_in_place_is_another() -> None:
    """Tensors of inference mode do not tell that they were changed."""
    stacker = Stacker()
    with torch.inference_mode():
        arguments = {"x": torch.zeros(2, 1), "position": torch.zeros(7)}
        before = stacker.form(arguments)
        arguments["position"] += 1
        after = stacker.form(arguments)
    assert before is not None
    assert after is not None
    assert before.key != after.key


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float8_e4m3fn], ids=str)
def test_shared_tensors_of_every_type_and_layout(dtype: torch.dtype) -> None:
    stacker = Stacker()
    tensor = content((7, 6), torch.float32, 1).to(dtype)
    shared = [
        tensor,
        tensor.clone(),
        tensor.t().contiguous().t(),
        tensor[::1],
        content((7, 6), torch.float32, 2).to(dtype),
    ]
    forms = [stacker.form({"x": torch.zeros(2, 1), "ids": value}) for value in shared]
    keys = [form.key for form in forms if form is not None]
    assert len(set(keys[:4])) == 1
    assert keys[4] != keys[0]
    assert stacker.form({"x": torch.zeros(2, 1), "ids": torch.zeros(7, 0)}) is not None
    assert stacker.form({"x": torch.zeros(2, 1), "ids": torch.tensor([1 + 2j] * 7).conj()}) is not None


NO_ROWS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "numbers": {"a": 1, "b": None},
    "a scalar": {"a": torch.tensor(1.0)},
    "a line": {"a": torch.zeros(3)},
    "an empty tensor": {"a": torch.zeros(0, 3)},
    "an empty row": {"a": torch.zeros(3, 0)},
    "an empty list": {"a": []},
}


@pytest.mark.parametrize("what", list(NO_ROWS))
def test_a_call_without_rows_has_no_form(what: str) -> None:
    assert Stacker().form(NO_ROWS[what]) is None


@pytest.mark.parametrize(
    ("lead", "positions"),
    [
        (torch.zeros(2, 9), 9),
        (torch.zeros(2, 9, 16), 9),
        (torch.zeros(2, 4, 8, 8), 64),
        (torch.zeros(2, 4, 3, 8, 8), 192),
        ([torch.zeros(4, 1, 8, 8)] * 2, 64),
        ([torch.zeros(())] * 2, 1),
    ],
)
def test_positions_leave_channels_out(lead: Any, positions: int) -> None:
    form = Stacker().form({"x": lead})
    assert form is not None
    assert (form.rows, form.positions) == (2, positions)


def test_a_shared_tensor_with_as_many_entries_as_rows_is_stacked() -> None:
    """It cannot be told from rows. That shows in the kind, so that calls with it are compared for themselves."""
    stacker = Stacker()
    by_chance = {"x": torch.zeros(2, 5), "ids": torch.zeros(2, 3)}
    otherwise = {"x": torch.zeros(2, 5), "ids": torch.zeros(7, 3)}
    one, other = stacker.form(by_chance), stacker.form(otherwise)
    assert one is not None
    assert other is not None
    assert one.kind != other.kind
    assert stacker.join([by_chance, by_chance], [2, 2])["ids"].shape == (4, 3)
    assert stacker.join([otherwise, otherwise], [2, 2])["ids"] is otherwise["ids"]
