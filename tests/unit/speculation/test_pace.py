"""Guessing goes on where it pays and ends where it does not."""

from __future__ import annotations

import random

import pytest

from kamado.speculation.costs import LaneSpeculation, StepCosts
from kamado.speculation.pace import FREE_LOSS, LOSS_SHARE, MAX_LENGTH, Pace


def lane(*, rows: int = 1, per_token: float = 0.05, max_rows: int = 64) -> LaneSpeculation:
    """One whose forwards were measured: a token more costs the part `per_token` of a forward with one."""
    shared = LaneSpeculation(max_rows=max_rows)
    for tokens in (1, 2, 4, 8, 16, 32, 64, 128):
        shared.costs.note(tokens, 0.03 * (1 + per_token * (tokens - 1)))
    shared.forward_done(rows=rows, tokens=rows, proposed=0, seconds=0.03 * (1 + per_token * (rows - 1)))
    return shared


def run(pace: Pace, tokens: list[int], answer: list[int]) -> tuple[float, int]:
    """(forwards' time in units of a plain one, forwards) of an answer that is known."""
    prompt, spent, steps = len(tokens), 0.0, 0
    tokens = list(tokens)
    while len(tokens) - prompt < len(answer):
        made = len(tokens) - prompt
        guess = pace.propose(tokens, made, len(answer) - made - 1) if made else ()
        right = 0
        while right < len(guess) and guess[right] == answer[made + right]:
            right += 1
        if guess:
            pace.checked(len(guess), right)
        spent += 1 + pace.lane.extra(len(guess))
        steps += 1
        tokens += answer[made : made + right + 1]
    return spent, steps


def test_text_that_is_repeated_takes_few_forwards() -> None:
    text = [random.Random(1).randrange(1000) for _ in range(300)]
    pace = Pace(lane())
    spent, steps = run(pace, text, text)
    assert steps < 40
    assert spent < 70
    assert pace.num_accepted > 250


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("per_token", [0.0, 0.05, 0.3, 1.0])
def test_guesses_that_are_always_wrong_cost_no_more_than_allowed(seed: int, per_token: float) -> None:
    """A text of few tokens, so that there is always something to guess, which never comes."""
    draw = random.Random(seed)
    answer = [draw.randrange(3) for _ in range(400)]
    pace = Pace(lane(per_token=per_token))
    spent, _ = run(pace, [draw.randrange(3) for _ in range(50)], answer)
    most_at_once = pace.lane.extra(MAX_LENGTH)
    assert spent <= 400 * (1 + LOSS_SHARE) + FREE_LOSS + most_at_once


def test_full_batches_are_left_alone() -> None:
    """Where a forward's time grows with its tokens, guesses cost as much as they bring."""
    text = list(range(100))
    crowded = Pace(lane(rows=16, per_token=1.0, max_rows=1000))
    assert crowded.propose(text + text[:20], 20, 100) == ()
    assert Pace(lane(rows=1, per_token=0.05)).propose(text + text[:20], 20, 100) == tuple(range(20, 28))


def test_no_more_tokens_are_drawn_than_memory_was_planned_for() -> None:
    text = list(range(100)) * 2
    for rows in (1, 2, 5, 10, 11, 20):
        shared = lane(rows=rows, per_token=0.0, max_rows=20)
        assert len(Pace(shared).propose(text, 100, 100)) == min(max(20 // rows - 1, 0), MAX_LENGTH)


def test_asking_twice_gives_the_same() -> None:
    pace, text = Pace(lane()), list(range(50)) * 2
    first = pace.propose(text, 5, 100)
    assert pace.propose(text, 5, 0) == ()
    assert pace.propose(text, 5, 3) == first[:3]
    assert pace.propose(text, 5, 100) == first


def test_guesses_are_tried_again_after_some_failures() -> None:
    """Free text first, then a copy of it."""
    draw = random.Random(3)
    words = [draw.randrange(12) for _ in range(200)]
    copied = [draw.randrange(5000) for _ in range(300)]
    pace = Pace(lane())
    _, steps = run(pace, copied, words + copied)
    assert steps < 200 + 80


def test_costs_between_and_beyond_measurements() -> None:
    costs = StepCosts()
    assert costs.extra(1, 4) == pytest.approx(0.24)
    costs.note(1, 1.0)
    costs.note(9, 1.4)
    assert costs.extra(1, 8) == pytest.approx(0.4)
    assert costs.extra(1, 4) == pytest.approx(0.2)
    assert costs.extra(1, 16) > 0.4
    costs.note(5, 0.1)  # smaller than what fewer tokens took: noise
    assert costs.extra(1, 4) == 0.0
    for _ in range(9):
        costs.note(1, 2.0)
    costs.note(1, 1000.0)  # somebody else's work
    assert costs.extra(1, 8) == 0.0


def test_prompts_do_not_count_as_steps() -> None:
    costs = StepCosts()
    costs.note(5000, 10.0)
    costs.note(0, 1.0)
    costs.note(3, 0.0)
    assert costs.extra(1, 1) == pytest.approx(0.06)
