"""A draft guesses where that pays for its own forwards, and as far; and it is left alone where it does not."""

from __future__ import annotations

import random

import pytest

from kamado.speculation.costs import DRAFT_RATE, DraftCosts, LaneSpeculation
from kamado.speculation.pace import FREE_LOSS, LOSS_SHARE, MAX_LENGTH, Pace


def lane(step_s: float, *, per_token: float = 0.05, rows: int = 1, max_rows: int = 64) -> LaneSpeculation:
    """One whose forwards were measured."""
    shared = LaneSpeculation(max_rows=max_rows)
    for _ in range(5):
        for tokens in (1, 2, 4, 8, 16, 32, 64, 128):
            shared.costs.note(tokens, step_s * (1 + per_token * (tokens - 1)))
    shared.forward_done(rows=rows, tokens=rows, proposed=0, seconds=step_s * (1 + per_token * (rows - 1)))
    return shared


def run(pace: Pace, costs: DraftCosts, length: int, right: float, *, seed: int = 0) -> tuple[float, int, int]:
    """(forwards' time in units of a plain one, forwards, tokens that the draft guessed) of an answer without repeats,
    of whose tokens the draft knows the part `right`."""
    draw, text = random.Random(seed), list(range(40 + length))
    spent, steps, drafted, made, pending = 0.0, 0, 0, 1, 1
    while made < length:
        left = length - made
        num = pace.draft_length(text[: 40 + made], made, left - 1, pending=pending, costs=costs, left=left)
        if num:
            for forward in range(num):
                cost = costs.of(pending if forward == 0 else 1)
                pace.drafted(cost)
                spent += cost
            pending = 0
        drafted += num
        accepted = 0
        if num:
            guess = pace.take(tuple(text[40 + made : 40 + made + num]), left - 1)
            while accepted < len(guess) and draw.random() < right:
                accepted += 1
            pace.checked(len(guess), accepted)
        spent += 1 + pace.lane.extra(num)
        steps += 1
        made += accepted + 1
        pending += (2 if accepted == num else 1) if num else 1
    return spent, steps, drafted


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_a_good_draft_makes_answers_quicker(share: float) -> None:
    model = lane(0.03)
    spent, steps, _ = run(Pace(model), DraftCosts(model, lane(0.03 * share)), 400, 0.95)
    assert steps < 150
    assert spent < (200 if share == 0.05 else 270)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 2.0])
def test_a_draft_that_is_always_wrong_costs_no_more_than_allowed(share: float, seed: int) -> None:
    model = lane(0.03)
    costs = DraftCosts(model, lane(0.03 * share))
    spent, _, _ = run(Pace(model), costs, 400, 0.0, seed=seed)
    most_at_once = model.extra(MAX_LENGTH) + MAX_LENGTH * costs.of(1)
    assert spent <= 400 * (1 + LOSS_SHARE) + FREE_LOSS + most_at_once


def test_what_requests_learned_of_a_draft_the_next_one_knows() -> None:
    """And after some without, it is tried again."""
    model = lane(0.03)
    costs = DraftCosts(model, lane(0.003))
    for seed in range(4):
        run(Pace(model), costs, 200, 0.0, seed=seed)
    assert model.draft_rate < 0.5 * DRAFT_RATE
    drafted = [run(Pace(model), costs, 20, 0.0)[2] for _ in range(60)]
    assert drafted.count(0) > 20
    assert any(drafted[-30:])


def test_a_draft_as_slow_as_the_model_is_not_asked() -> None:
    model = lane(0.03)
    assert run(Pace(model), DraftCosts(model, lane(0.03)), 100, 1.0)[2] == 0


def test_a_long_prompt_is_not_read_for_a_short_answer() -> None:
    model = lane(0.03)
    costs, tokens = DraftCosts(model, lane(0.003)), list(range(3000))
    short = Pace(model).draft_length(tokens, 1, 7, pending=3000, costs=costs, left=8)
    long = Pace(model).draft_length(tokens, 1, 999, pending=3000, costs=costs, left=1000)
    few = Pace(model).draft_length(tokens, 1, 7, pending=30, costs=costs, left=8)
    assert short == 0
    assert long > 0
    assert few > 0


def test_full_batches_are_left_alone() -> None:
    """Where a forward's time grows with its tokens."""
    model = lane(0.03, per_token=1.0, rows=16, max_rows=1000)
    costs = DraftCosts(model, lane(0.003, per_token=1.0))
    assert Pace(model).draft_length(list(range(50)), 5, 100, pending=2, costs=costs, left=100) == 0


def test_no_more_than_memory_was_planned_for() -> None:
    for rows in (1, 5, 10, 11):
        model = lane(0.03, per_token=0.0, rows=rows, max_rows=20)
        costs = DraftCosts(model, lane(0.0003, per_token=0.0))
        length = Pace(model).draft_length(list(range(50)), 5, 100, pending=2, costs=costs, left=100)
        assert length <= max(20 // rows - 1, 0)
        assert len(Pace(model).take(tuple(range(16)), 100)) == min(max(20 // rows - 1, 0), 16)


def test_what_is_repeated_is_looked_up_rather_than_drafted() -> None:
    """Guesses that cost nothing go before such that are hardly better."""
    model = lane(0.03)
    costs, text = DraftCosts(model, lane(0.009)), list(range(100))
    pace = Pace(model)
    assert pace.draft_length(text + text[:20], 20, 100, pending=2, costs=costs, left=100) == 0
    assert pace.propose(text + text[:20], 20, 100) == tuple(range(20, 28))
    fresh = [draw % 97 for draw in random.Random(1).sample(range(10_000), 120)]
    assert Pace(model).draft_length(fresh, 20, 100, pending=2, costs=costs, left=100) > 0


def test_before_anything_is_measured_sizes_tell() -> None:
    model, draft = LaneSpeculation(max_rows=8, weight_bytes=1000), LaneSpeculation(max_rows=8, weight_bytes=50)
    assert DraftCosts(model, draft).of(1) == pytest.approx(0.05)
    model.costs.note(1, 0.03)
    draft.costs.note(40, 9.0)  # a prompt, and the first forward of all
    assert DraftCosts(model, draft).of(1) == pytest.approx(0.05)
    for _ in range(5):
        draft.costs.note(1, 0.006)
    assert DraftCosts(model, draft).of(1) == pytest.approx(0.2)
    assert 0 < DraftCosts(LaneSpeculation(max_rows=8), LaneSpeculation(max_rows=8)).of(1) < 1
