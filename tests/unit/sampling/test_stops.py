"""Stop strings against a brute-force oracle, whatever the pieces the text comes in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kamado.sampling.stops import StopMatcher


def oracle(text: str, stops: tuple[str, ...]) -> tuple[str, str | None]:
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


def held_by_oracle(text: str, stops: tuple[str, ...]) -> int:
    lengths = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
    return max(lengths, default=0)


def run(pieces: list[str], stops: tuple[str, ...]) -> tuple[str, str | None]:
    matcher = StopMatcher(stops)
    out = ""
    for piece in pieces:
        emit, hit = matcher.feed(piece)
        out += emit
        if hit is not None:
            assert matcher.feed("more") == ("", hit)
            assert matcher.flush() == ""
            return out, hit
    return out + matcher.flush(), None


LETTERS = st.text(alphabet="ab\n", max_size=6)
STOPS = st.lists(LETTERS.filter(bool), max_size=5).map(tuple)


@given(pieces=st.lists(LETTERS, max_size=12), stops=STOPS)
def test_same_as_brute_force_for_any_pieces(pieces: list[str], stops: tuple[str, ...]) -> None:
    assert run(pieces, stops) == oracle("".join(pieces), stops)


@given(pieces=st.lists(LETTERS, max_size=12), stops=STOPS)
def test_holds_back_exactly_what_may_begin_a_stop(pieces: list[str], stops: tuple[str, ...]) -> None:
    matcher = StopMatcher(stops)
    text = out = ""
    for piece in pieces:
        text += piece
        emit, hit = matcher.feed(piece)
        if hit is not None:
            return
        out += emit
        assert text[len(out) :] == text[len(text) - held_by_oracle(text, stops) :]
        assert text.startswith(out)


@pytest.mark.parametrize(
    ("pieces", "stops", "expected"),
    [
        (["aaab"], ("aab",), ("a", "aab")),
        (["a", "a", "a", "b"], ("aab",), ("a", "aab")),
        (["one\n", "\nUser", ": two"], ("\n\nUser:",), ("one", "\n\nUser:")),
        (["one\n", "\nUse"], ("\n\nUser:",), ("one\n\nUse", None)),
        (["abc"], ("bc", "abc"), ("", "abc")),
        (["ab", "cd"], ("abcd", "bc"), ("a", "bc")),
        (["\n", "\n"], ("\n\n", "\n"), ("", "\n")),
        (["日本", "語。次"], ("語。",), ("日本", "語。")),
        (["text"], (), ("text", None)),
    ],
)
def test_examples(pieces: list[str], stops: tuple[str, ...], expected: tuple[str, str | None]) -> None:
    assert run(pieces, stops) == expected


def test_long_texts_and_unlucky_stops_take_linear_work() -> None:
    matcher = StopMatcher(("a" * 1000 + "b",))
    steps = 0
    step = matcher._step

    def counted(state: int, character: str) -> int:
        nonlocal steps
        steps += 1
        return step(state, character)

    matcher._step = counted  # type: ignore[method-assign]
    out = "".join(matcher.feed("a" * 50)[0] for _ in range(200))
    assert steps == 10_000
    assert out == "a" * 9_000


def test_an_empty_stop_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopMatcher(("",))
