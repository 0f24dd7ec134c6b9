"""Text in sentences: nothing lost, nothing twice, whatever the language."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kamado_models.speech.sentences import packed, sentences

_PIECES = st.sampled_from(
    ["Hello", "dr", "U.S", "3.14", ". ", "! ", "? ", "。", "\n\n", " ", ", ", "...", "”", "ß", "今"]
)


@given(st.one_of(st.text(max_size=300), st.lists(_PIECES, max_size=40).map("".join)), st.integers(8, 100))
def test_joined_they_are_the_text_and_none_is_too_long_or_silent(text: str, longest: int) -> None:
    found = sentences(text, longest)
    assert "".join(found) == text
    spoken = [each for each in found if any(map(str.isalnum, each))]
    assert found == spoken or len(found) == 1
    # What cannot be spoken stays with its neighbour, so it does not count.
    assert all(sum(map(str.isalnum, each)) <= longest for each in found)
    assert "".join(packed(found, longest)) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello there. How are you? Fine!", ["Hello there. ", "How are you? ", "Fine!"]),
        ("Dr. Smith met J. R. R. Tolkien at 3.14 p.m. today. He left.", None),
        ("See e.g. Fig. 5. It is on p. 12.", ["See e.g. Fig. 5. ", "It is on p. 12."]),
        ("I said no. Then I left.", ["I said no. ", "Then I left."]),
        ("今日は。元気ですか？はい。", ["今日は。", "元気ですか？", "はい。"]),
        ('Wait... what? "Stop!" he said. (Really?) Yes', None),
        ("A heading\n\nA text", ["A heading\n\n", "A text"]),
        ("— Yes. — No.", ["— Yes. ", "— No."]),
        ("The U.S. Army won. Es gibt z.B. Brot.", ["The U.S. Army won. ", "Es gibt z.B. Brot."]),
        ("...", ["..."]),
        ("", []),
    ],
)
def test_sentences(text: str, expected: list[str] | None) -> None:
    others = {
        "Dr. S": ["Dr. Smith met J. R. R. Tolkien at 3.14 p.m. today. ", "He left."],
        "Wait.": ["Wait... what? ", '"Stop!" he said. ', "(Really?) ", "Yes"],
    }
    assert sentences(text) == (others[text[:5]] if expected is None else expected)


def test_long_sentences_are_cut_where_people_breathe() -> None:
    text = "one two three, four five six seven eight nine ten eleven twelve"
    assert sentences(text, 30) == ["one two three, ", "four five six seven eight ", "nine ten eleven twelve"]
    assert sentences("x" * 25, 10) == ["x" * 10, "x" * 10, "x" * 5]
    assert packed(["aa. ", "bb. ", "cc. "], 8) == ["aa. bb. ", "cc. "]
