"""Guesses from what stood before, against a plain search."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kamado.speculation.lookup import MAX_MATCH, MAX_PLACES, MIN_MATCH, NO_GUESS, Guess, Lookup


def searched(tokens: list[int], length: int) -> Guess:
    """The same by looking at every place: of the newest ones the longest match, the newest of equal ones."""
    end = len(tokens)
    places = [p for p in range(end - 1, 1, -1) if tokens[p - 2 : p] == tokens[end - 2 :]][:MAX_PLACES]
    best, best_match = -1, 0
    for place in places:
        match = 0
        while match < min(place, MAX_MATCH) and tokens[place - 1 - match] == tokens[end - 1 - match]:
            match += 1
        if match > best_match:
            best, best_match = place, match
    if best < 0 or end <= MIN_MATCH:
        return NO_GUESS
    made = list(tokens)
    for i in range(length):
        made.append(made[best + i])
    return Guess(tuple(made[end:]), best_match)


@given(st.lists(st.integers(0, 3), max_size=60), st.lists(st.integers(1, 9), max_size=8), st.integers(1, 20))
def test_it_finds_what_a_plain_search_finds(tokens: list[int], cuts: list[int], length: int) -> None:
    """In whatever pieces the tokens come."""
    lookup = Lookup()
    end = 0
    for cut in cuts:
        end = min(end + cut, len(tokens))
        assert lookup.guess(tokens[:end], length) == searched(tokens[:end], length)
    assert lookup.guess(tokens, length) == searched(tokens, length)


def test_the_longest_match_wins_over_a_newer_one() -> None:
    tokens = [9, 1, 2, 3, 8, 2, 3, 7, 9, 1, 2, 3]
    assert Lookup().guess(tokens, 3) == Guess((8, 2, 3), 4)


def test_the_newest_of_equal_matches_wins() -> None:
    assert Lookup().guess([1, 2, 5, 1, 2, 6, 3, 1, 2], 1) == Guess((6,), 2)


def test_a_text_that_repeats_itself_goes_on_repeating() -> None:
    assert Lookup().guess([4, 5, 6, 4, 5, 6, 4, 5], 7).tokens == (6, 4, 5, 6, 4, 5, 6)


def test_no_guess() -> None:
    assert Lookup().guess([], 4) == NO_GUESS
    assert Lookup().guess([1, 2], 4) == NO_GUESS
    assert Lookup().guess([1, 2, 3, 4], 4) == NO_GUESS
    assert Lookup().guess([1, 2, 3, 1, 2], 0) == NO_GUESS
