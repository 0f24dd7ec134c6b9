"""Weights in prompts."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kamado.errors import InvalidRequest
from kamado_models.diffusion.prompt_syntax import MAX_DEPTH, parse_weights


def parsed(prompt: str) -> list[list[tuple[str, float]]]:
    return [[(span.text, round(span.weight, 4)) for span in part] for part in parse_weights(prompt)]


@pytest.mark.parametrize(
    ("prompt", "spans"),
    [
        ("a cat", [("a cat", 1)]),
        ("a (cat) here", [("a ", 1), ("cat", 1.1), (" here", 1)]),
        ("((cat))", [("cat", 1.21)]),
        ("[cat]", [("cat", 0.9091)]),
        ("[[cat]]", [("cat", 0.8264)]),
        ("([cat])", [("cat", 1)]),
        ("(cat:1.3)", [("cat", 1.3)]),
        ("(cat: .5 )", [("cat", 0.5)]),
        ("(cat:-1)", [("cat", -1)]),
        ("((a cat:1.5) on a mat:2)", [("a cat", 3), (" on a mat", 2)]),
        ("(a [b] c)", [("a ", 1.1), ("b", 1), (" c", 1.1)]),
        (r"anime_\(character\)", [("anime_(character)", 1)]),
        (r"(\(cat\):1.2)", [("(cat)", 1.2)]),
        (r"\[x\] C:\dir", [(r"[x] C:\dir", 1)]),
        ("at 12:30) :)", [("at 12:30) :)", 1)]),
        ("(at 12:30)", [("at 12", 30)]),
        ("[cat:1.3]", [("cat:1.3", 0.9091)]),
        ("(a cat", [("a cat", 1.1)]),
        ("[a (cat", [("a ", 0.9091), ("cat", 1)]),
        ("(cat]", [("cat]", 1.1)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("BREAKING", [("BREAKING", 1)]),
        ("", []),
    ],
)
def test_documented_forms(prompt: str, spans: list[tuple[str, float]]) -> None:
    assert parsed(prompt) == [spans]


@pytest.mark.parametrize(
    "prompt",
    [
        "(" + ":" + "1" * 100_000,
        "(a:" + "1" * 50_000 + "." + "1" * 50_000,
        "(a:" + "." + "1" * 100_000 + "x)",
        "(a:" + " " * 50_000 + "1" + " " * 50_000,
        ":" * 100_000,
        "(:1 " * 33 + "(b:1)" * 18_000,
        "B" * 100_000,
        "\\(" * 50_000,
    ],
)
def test_long_prompts_take_no_longer_than_their_length(prompt: str) -> None:
    """In processor time; what takes back digits or spaces needs minutes."""
    began = time.process_time()
    (part,) = parse_weights(prompt)
    assert time.process_time() - began < 5
    assert part


def test_a_weight_of_many_digits() -> None:
    assert parsed("(a:1." + "0" * 100_000 + ")") == [[("a", 1)]]
    with pytest.raises(InvalidRequest, match="the largest is 100"):
        parse_weights("(a:" + "1" * 100_000 + ")")


def test_break_begins_a_chunk() -> None:
    assert parsed("a cat BREAK a dog") == [[("a cat ", 1)], [(" a dog", 1)]]
    assert parsed("(a BREAK b:2)") == [[("a ", 2)], [(" b", 2)]]
    assert parsed("BREAK") == [[], []]


@given(st.text(st.characters(exclude_characters="\\()[]"), max_size=60).filter(lambda text: "BREAK" not in text))
def test_text_without_brackets_is_itself(text: str) -> None:
    assert parsed(text) == [[(text, 1)] if text else []]


@given(st.text(st.sampled_from("ab ()[]:.1-\\B"), max_size=40), st.text(max_size=10))
def test_anything_is_read(text: str, more: str) -> None:
    try:
        parts = parse_weights(text + more)
    except InvalidRequest:
        return
    assert all(span.text for part in parts for span in part)


def test_limits() -> None:
    with pytest.raises(InvalidRequest, match="weight 101"):
        parse_weights("(cat:101)")
    with pytest.raises(InvalidRequest, match="weight"):
        parse_weights("(" * 60 + "cat")
    with pytest.raises(InvalidRequest, match="open brackets"):
        parse_weights("(" * (MAX_DEPTH + 1))
    assert parsed("B" * 50_000) == [[("B" * 50_000, 1)]]
