"""Tasks that guess, on the toy: every answer is what it is without guesses, and every page is given back."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kamado.errors import Cancelled
from kamado.events import Event
from kamado.sequence import TextStep
from kamado.speculation.costs import LaneSpeculation

from .toys import EOS, ToyModel, ends_of, tokens_of


def refrain(tokens: Sequence[int], seed: int, index: int) -> int:
    """What the repetitive toy says: mostly decided by the last two tokens, so that it can be guessed."""
    digest = hashlib.sha256(repr((list(tokens[-2:]), seed, index, len(tokens) // 9)).encode()).digest()
    if digest[0] < 3:
        return EOS
    return 1 + (tokens[-1] + (1 if digest[1] < 230 else digest[2])) % 7


def toy(*, guesses: bool = True, max_rows_drawn: int = 64, **kw: Any) -> ToyModel:
    model = ToyModel(speculation=LaneSpeculation(max_rows=max_rows_drawn) if guesses else None, **kw)
    model.lane.next_token = refrain
    return model


PROMPTS = [[1, 2, 3, 4, 5, 6, 7] * 3, [3, 4, 5], [7, 1, 7, 1, 7, 1], [2] * 12]


def answers(model: ToyModel, requests: Sequence[dict[str, Any]]) -> list[tuple[list[int], str, Any, str]]:
    for number, request in enumerate(requests):
        model.loop.add(model.task(f"r{number}", **request))
    events = model.run()
    found = []
    for number, request in enumerate(requests):
        for index in range(request.get("n", 1)):
            (end,) = [each for each in ends_of(events, f"r{number}") if each.index == index]
            made = tokens_of(events, f"r{number}", index)
            assert end.completion_tokens == len(made)
            assert 0 <= end.accepted_tokens <= end.proposed_tokens
            found.append((made, end.reason, end.stop, text_of(events, f"r{number}", index)))
    model.memory.check_integrity()
    assert model.memory.pool.num_free == model.memory.pool.num_blocks
    return found


def text_of(events: Sequence[Event], request_id: str, index: int) -> str:
    mine = [e for e in events if e.request_id == request_id and getattr(e, "index", None) == index]
    return "".join(getattr(e, "text", "") for e in mine)


def test_it_takes_fewer_forwards() -> None:
    request = {"prompt": PROMPTS[0], "max_tokens": 60, "ignore_eos": True}
    plain, guessing = toy(guesses=False), toy()
    assert answers(guessing, [request]) == answers(plain, [request])
    assert len(guessing.lane.batches) < 0.6 * len(plain.lane.batches)
    assert guessing.lane.speculation is not None
    figures = guessing.lane.speculation.figures()
    assert figures["accepted_tokens"] > 20
    assert figures["proposed_tokens"] >= figures["accepted_tokens"]


request_options = st.fixed_dictionaries(
    {"prompt": st.sampled_from(PROMPTS), "seed": st.integers(0, 5), "n": st.integers(1, 3)},
    optional={
        "max_tokens": st.integers(1, 80),
        "ignore_eos": st.just(True),
        "stop": st.sampled_from([["ABC"], ["G"], ["EFGA", "BCD"]]),
    },
)


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(request_options, min_size=1, max_size=6),
    num_blocks=st.integers(26, 60),
    step_budget=st.integers(2, 40),
    max_rows=st.integers(1, 8),
    drawn=st.integers(1, 64),
    window=st.sampled_from([None, 6, 20]),
)
def test_answers_are_those_without_guesses(
    requests: list[dict[str, Any]], num_blocks: int, step_budget: int, max_rows: int, drawn: int, window: int | None
) -> None:
    """With pages for one request or for many, pre-emption, several answers, stops and short steps."""
    room = {"num_blocks": num_blocks, "step_budget": step_budget, "max_rows": max_rows, "window_tokens": window}
    wanted = answers(toy(guesses=False, **room), requests)
    assert answers(toy(max_rows_drawn=drawn, **room), requests) == wanted


def test_guesses_take_no_memory_from_others() -> None:
    """Two that just fit beside each other: nobody is pre-empted who would not be without guesses."""
    requests = [{"prompt": PROMPTS[0], "max_tokens": 19, "ignore_eos": True, "seed": seed} for seed in (1, 2)]
    plain, guessing = toy(guesses=False, num_blocks=20), toy(num_blocks=20)
    assert answers(guessing, requests) == answers(plain, requests)
    assert plain.loop.scheduler.num_preemptions == guessing.loop.scheduler.num_preemptions == 0


def test_pages_of_wrong_guesses_are_given_back() -> None:
    model = toy(block_tokens=2, num_blocks=64)
    model.loop.add(model.task("r0", PROMPTS[0], max_tokens=40, ignore_eos=True))
    for _ in range(25):
        model.loop.step()
        for entry in model.loop.scheduler.entries():
            sequence = entry.task.sequence
            if sequence.state is not None:
                assert len(sequence.state.blocks) <= -(-len(sequence.tokens) // 2)


def test_cancelling_between_checks_gives_everything_back() -> None:
    model = toy()
    model.loop.add(model.task("r0", PROMPTS[0], max_tokens=60, ignore_eos=True))
    for _ in range(8):
        model.loop.step()
    (end,) = model.loop.cancel("r0")
    assert isinstance(end.error, Cancelled)
    assert model.memory.pool.num_free == model.memory.pool.num_blocks
    model.memory.check_integrity()


def test_a_batch_that_runs_out_of_memory_is_run_in_pieces() -> None:
    model = toy()
    wanted = answers(toy(guesses=False), [{"prompt": PROMPTS[0], "max_tokens": 50}] * 3)
    model.lane.fail_when = lambda steps: MemoryError("full") if sum(step.num_new for step in steps) > 8 else None
    assert answers(model, [{"prompt": PROMPTS[0], "max_tokens": 50}] * 3) == wanted
    assert model.loop.forwards.splits > 0


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 7])
def test_no_token_is_drawn_beyond_the_limit(max_tokens: int) -> None:
    model = toy()
    drawn: list[int] = []
    says = model.lane.next_token
    model.lane.next_token = lambda tokens, seed, index: drawn.append(len(tokens)) or says(tokens, seed, index)
    answers(model, [{"prompt": PROMPTS[0], "max_tokens": max_tokens, "ignore_eos": True}])
    assert max(drawn) == len(PROMPTS[0]) + max_tokens - 1


def test_where_a_guess_spoils_its_step_that_is_run_again_without() -> None:
    """As a lane has it whose forward gives NaN: nothing was computed, and the request guesses no more."""
    model = toy()
    wanted = answers(toy(guesses=False), [{"prompt": PROMPTS[0], "max_tokens": 40, "ignore_eos": True}])
    plain_step, spoiled = model.lane._step, []

    def step_of(step: TextStep) -> Any:
        if step.proposed:
            spoiled.append(step)
            return ()
        return plain_step(step)

    model.lane._step = step_of  # type: ignore[method-assign]
    assert answers(model, [{"prompt": PROMPTS[0], "max_tokens": 40, "ignore_eos": True}]) == wanted
    assert len(spoiled) == 1
