"""Recipes as values: they survive JSON, ask for what they were made with, and tell what is different now."""

from __future__ import annotations

import copy
from types import MappingProxyType
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import pytest
from hypothesis import given

from kamado.errors import InvalidRequest
from kamado.media.recipe import (
    MAX_DIFFERENCES,
    MAX_RECIPE_BYTES,
    differences,
    parse_recipe,
    recipe_json,
    recipe_loading,
    recipe_request,
    rounding_levels,
)
from kamado.results import Result
from media_recipes import ODD_RECIPES, RECIPE, RECIPES


@given(RECIPES)
def test_json_gives_the_same_recipe_back(recipe: dict[str, Any]) -> None:
    text = recipe_json(recipe)
    assert parse_recipe(text, what="it") == recipe
    assert parse_recipe(recipe_json(dict(reversed(recipe.items()))), what="it") == recipe
    assert ElementTree.fromstring(f"<a>{escape(text)}</a>").text == text, "fit for XML"
    assert text.encode().decode() == text, "fit for UTF-8"


@pytest.mark.parametrize("odd", ["\ud800", "\udfff x", "\ufffe", "\uffff", "\0", "\u2028", "\x7f\x85", '"\\\n'])
def test_odd_characters_survive(odd: str) -> None:
    assert parse_recipe(recipe_json({"prompt": odd}), what="it") == {"prompt": odd}


def test_any_mapping_will_do() -> None:
    assert recipe_json(MappingProxyType({"b": (1, 2), "a": MappingProxyType({})})) == '{"a":{},"b":[1,2]}'


@pytest.mark.parametrize(
    "bad",
    [
        {"x": float("nan")},
        {"x": object()},
        {"x": b"bytes"},
        {1: 1, "1": 2},
        {"x": "y" * MAX_RECIPE_BYTES},
        {"x": "ä" * (MAX_RECIPE_BYTES // 2)},
        {"x": 10**5000},
    ],
    ids=["nan", "object", "bytes", "the same key", "too long", "too many bytes", "huge number"],
)
def test_what_no_reader_takes_is_not_written(bad: dict[Any, Any]) -> None:
    with pytest.raises(InvalidRequest, match="the recipe"):
        recipe_json(bad)


def test_no_endless_and_no_deep_recipe() -> None:
    endless: dict[str, Any] = {}
    endless["self"] = endless
    deep: Any = 1
    for _ in range(100):
        deep = [deep]
    for bad in (endless, {"x": deep}):
        with pytest.raises(InvalidRequest):
            recipe_json(bad)


def test_request_of_a_recipe() -> None:
    reference, options = recipe_request(RECIPE)
    assert reference == "./models/dreamer_8.safetensors"
    assert options == RECIPE["options"]
    assert recipe_loading(RECIPE) == {"dtype": "float32", "quant": "none"}


@pytest.mark.parametrize("quant", ["int8", {"scheme": "int8", "group_size": 64}])
def test_int8_of_older_recipes_is_the_exact_form(quant: Any) -> None:
    """As it was then; recipes of today never hold the name."""
    exact = "int8-weight-only" if quant == "int8" else {**quant, "scheme": "int8-weight-only"}
    assert recipe_loading({**RECIPE, "quant": quant})["quant"] == exact
    assert differences({**RECIPE, "quant": quant}, {**RECIPE, "quant": exact}) == []
    (found,) = differences({**RECIPE, "quant": quant}, {**RECIPE, "quant": "int4"})
    assert "int8-weight-only" in found and "int4 now" in found


@pytest.mark.parametrize(
    ("reference", "revision", "pinned"),
    [
        ("org/name", "0a1b2c", "org/name@0a1b2c"),
        ("org/name@main", "0a1b2c", "org/name@0a1b2c"),
        ("org/name@v1", None, "org/name@v1"),
        ("pypi:Some_Package", "1.2", "pypi:some-package==1.2"),
        ("smollm2:135m", "0a1b2c", "smollm2:135m"),
        ("/no/such/folder", "0a1b2c", "/no/such/folder"),
        ("x.gguf", None, "x.gguf"),
    ],
)
def test_references_are_pinned(reference: str, revision: str | None, pinned: str) -> None:
    recipe = {"model": {"reference": reference, "revision": revision}, "options": {"seed": 0, "negative": None}}
    assert recipe_request(recipe) == (pinned, {"seed": 0})


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"model": {"reference": "org/name"}},
        {"model": {"reference": ""}, "options": {}},
        {"model": {"reference": ["org/name"]}, "options": {}},
        {"model": {"reference": "org/na\x1bme"}, "options": {}},
        {"model": {"reference": "org/name", "revision": "../../x"}, "options": {}},
        {"model": {"reference": "org/name"}, "options": []},
    ],
)
def test_requests_that_cannot_be(recipe: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        recipe_request(recipe)


def test_permission_for_code_is_never_taken_from_a_recipe() -> None:
    recipe = {**RECIPE, "allow_code": "*", "model": {**RECIPE["model"], "allow_code": "*"}}
    assert "allow_code" not in recipe_loading(recipe)
    assert "allow_code" not in recipe_request(recipe)[1]


def test_adapters_are_loaded_with_their_weight() -> None:
    recipe = {"adapters": [{"reference": "a/b", "weight": 0.5, "sha256": "1"}, {"reference": "c/d"}, {"weight": 2}, 3]}
    assert recipe_loading(recipe) == {
        "adapters": [{"reference": "a/b", "weight": 0.5}, {"reference": "c/d", "weight": 1.0}]
    }


def test_the_base_of_a_single_file() -> None:
    base = {"reference": "org/name", "revision": "0a1b2c", "files": {"tokenizer/vocab.json": "1" * 64}}
    assert recipe_loading({"base": base}) == {"base": "org/name@0a1b2c"}
    assert recipe_loading({"base": 3}) == recipe_loading({"base": {"reference": 3}}) == {}
    assert recipe_loading({"tokenizers": base}) == {}, "they are found by themselves"
    other = {**base, "files": {"tokenizer/vocab.json": "2" * 64}}
    for name in ("base", "tokenizers"):
        assert differences({name: base}, {name: base}) == []
        assert differences({name: base}, {name: other}) == [f"{name} file tokenizer/vocab.json: other content now"]
        assert differences({name: base}, {}) == [f"{name} file tokenizer/vocab.json: missing now"]


def test_each_picture_of_a_request_has_its_own_recipe() -> None:
    recipe = {**RECIPE, "options": {**RECIPE["options"], "n": 4}}
    result = Result(request_id="r", images=(1, 2, 3), seeds=(1, 2, 4), batched=(False, True, True), recipe=recipe)
    assert result.recipe_of(0) == {**RECIPE, "options": {**RECIPE["options"], "n": 1}}
    assert result.recipe_of(2)["options"] == {**RECIPE["options"], "seed": 4, "n": 1}
    assert result.recipe_of(1)["batched"] is True
    assert recipe["options"]["n"] == 4 and "batched" not in recipe
    assert Result(request_id="r", images=(1,), seeds=(3,)).recipe_of(0) == {"options": {"seed": 3, "n": 1}}


@pytest.mark.parametrize(
    ("changes", "levels"),
    [
        ({}, 1),
        ({"batched": False}, 0),
        ({"batched": 1}, 0),
        ({"batched": "true"}, 0),
        ({"dtype": "bfloat16"}, 16),
        ({"quant": "int8"}, 16),
        ({"device": "cuda:0"}, 16),
        ({"device": None}, 16),
    ],
)
def test_only_what_shared_forwards_may_differ(changes: dict[str, Any], levels: int) -> None:
    recipe = {**RECIPE, "device": "cpu", "dtype": "float32", "quant": "none", "batched": True, **changes}
    assert rounding_levels(recipe) == levels
    alone = {**recipe, "batched": None}
    assert rounding_levels(alone) == 0
    assert rounding_levels(alone, batched=True) == (levels or 1)
    assert recipe_request(recipe) == recipe_request(alone) and recipe_loading(recipe) == recipe_loading(alone)


def test_nothing_is_different_from_itself() -> None:
    assert differences(RECIPE, RECIPE) == []
    assert differences({}, RECIPE) == []


def test_what_is_different_is_said() -> None:
    then = copy.deepcopy(RECIPE)
    then["adapters"] = [{"reference": "a/b", "weight": 0.5, "sha256": "1"}, {"reference": "gone", "weight": 1}]
    then["inputs"] = {"image": {"sha256": "2", "name": "cat.png"}, "control": [{"sha256": "3"}, {"sha256": "4"}]}
    now = copy.deepcopy(then)
    now["model"]["files"] = {"dreamer_8.safetensors": "f" * 64, "more.json": "e" * 64}
    now["adapters"] = [{"reference": "a/b", "weight": 0.75, "sha256": "1"}]
    now["inputs"] = {"image": {"sha256": "9", "name": "cat.png"}, "control": [{"sha256": "3"}, {"sha256": "4"}]}
    now["device"] = "cuda"
    now["versions"] = {"torch": "2.11.0"}
    assert differences(then, now) == [
        "model file dreamer_8.safetensors: other content now",
        "model file more.json is there now and was not then",
        "adapter a/b: weight 0.5 then, 0.75 now",
        "adapter gone: missing, or other content now",
        "input image: other content now",
        "device: cpu then, cuda now",
        "version of torch: 2.13.0 then, 2.11.0 now",
        "version of diffusers: 0.42.1 then, none now",
    ]


def test_a_stranger_cannot_flood_or_colour_the_terminal() -> None:
    files = {f"\x1b[31m{i}" + "x" * 500: "0" for i in range(1000)}
    found = differences({"model": {"files": files}, "device": "\x1b[31m"}, {"device": "cpu"})
    assert len(found) == MAX_DIFFERENCES + 2
    assert found[MAX_DIFFERENCES] == "980 more differences of model files"
    assert all(line.isprintable() and len(line) < 200 for line in found)


@given(ODD_RECIPES, ODD_RECIPES)
def test_odd_recipes_raise_nothing_else(recipe: dict[str, Any], other: dict[str, Any]) -> None:
    for line in differences(recipe, other):
        assert line.isprintable()
    recipe_loading(recipe)
    assert rounding_levels(recipe) in (0, 1, 16)
    for use in (recipe_request, recipe_json):
        try:
            use(recipe)
        except InvalidRequest as error:
            assert str(error).isprintable()
