"""A draft that guesses for another model, both on toys: every answer is what it is without, whatever becomes of the
draft, and all pages are given back."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kamado.events import Event
from kamado.sequence import TextStep
from kamado.speculation.costs import LaneSpeculation
from kamado.speculation.draft import DraftModel, Guests

from .toys import EOS, VOCABULARY, CountLane, CountTask, ToyModel, ends_of, tokens_of

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5], [2, 7, 1], [8] * 14]


def says(tokens: Sequence[int], seed: int, index: int) -> int:
    """What the model says: nothing in it repeats, so that a look-up finds nothing."""
    digest = hashlib.sha256(repr((list(tokens), seed, index)).encode()).digest()
    return EOS if digest[0] < 4 else 1 + digest[1] % (VOCABULARY - 1)


class Pair:
    """A model, its draft, and their loop. The draft says the same with the probability `agrees`."""

    def __init__(
        self,
        *,
        agrees: float = 0.8,
        share: int = 10,
        draft_blocks: int = 64,
        draft_window: int | None = None,
        **kw: Any,
    ) -> None:
        self.model = ToyModel(speculation=LaneSpeculation(max_rows=64, weight_bytes=share), **kw)
        self.model.lane.next_token = says
        self.draft = ToyModel(
            num_blocks=draft_blocks,
            block_tokens=3,
            step_budget=kw.get("step_budget", 16),
            window_tokens=draft_window,
        )
        self.draft.lane.name = "draft"
        self.draft.lane.next_token = self._guess
        self.agrees = agrees
        self.loop = self.model.loop
        self.loop.residency.add(self.draft.lane)
        self.guests = Guests()
        self.is_here = True
        self.as_draft = DraftModel(
            lane="draft",
            memory=self.draft.memory,
            vocab_size=VOCABULARY,
            context_tokens=min(100, self.draft.memory.capacity_tokens()),
            speculation=LaneSpeculation(max_rows=64, weight_bytes=1),
            guests=self.guests,
        )
        self.model.text_model = replace(
            self.model.text_model, vocab_size=VOCABULARY, draft=lambda: self.as_draft if self.is_here else None
        )
        self.draft.text_model = replace(self.draft.text_model, lane="draft", guests=self.guests)

    def _guess(self, tokens: Sequence[int], seed: int, index: int) -> int:
        digest = hashlib.sha256(repr(("draft", list(tokens))).encode()).digest()
        wrong = digest[0] >= 256 * self.agrees
        return digest[1] % VOCABULARY if wrong else says(tokens, seed, index)

    def evict(self) -> None:
        """As the keeper does it, between two steps."""
        self.is_here = False
        self.loop.residency.remove("draft")

    def check_empty(self) -> None:
        for memory in (self.model.memory, self.draft.memory):
            memory.check_integrity()
            assert memory.pool.num_free == memory.pool.num_blocks
        assert len(self.guests) == 0


def answers(loop: Any, model: ToyModel, requests: Sequence[dict[str, Any]], name: str = "r", after: Any = None) -> Any:
    """(tokens, reason, stop) of each answer. `after(step)` is called behind each step."""
    for number, request in enumerate(requests):
        loop.add(model.task(f"{name}{number}", **request))
    events: list[Event] = []
    for step in range(10_000):
        if not len(loop.scheduler):
            break
        events += loop.step()
        if after is not None:
            after(step)
    found = []
    for number, request in enumerate(requests):
        for index in range(request.get("n", 1)):
            (end,) = [each for each in ends_of(events, f"{name}{number}") if each.index == index]
            found.append((tokens_of(events, f"{name}{number}", index), end.reason, end.stop))
    return found


def plain(requests: Sequence[dict[str, Any]], **kw: Any) -> Any:
    model = ToyModel(**kw)
    model.lane.next_token = says
    return answers(model.loop, model, requests)


REQUEST: dict[str, Any] = {"prompt": PROMPTS[0], "max_tokens": 60, "ignore_eos": True}


def test_a_draft_that_agrees_saves_most_forwards() -> None:
    pair = Pair(agrees=1.0, share=50)
    assert answers(pair.loop, pair.model, [REQUEST]) == plain([REQUEST])
    assert len(pair.model.lane.batches) < 12
    assert pair.model.lane.speculation is not None
    figures = pair.model.lane.speculation.figures(drafts=True)
    assert figures["drafted_tokens"] == figures["accepted_drafted_tokens"] > 45
    pair.check_empty()


def test_a_draft_that_never_agrees_is_left_alone_soon() -> None:
    pair = Pair(agrees=0.0)
    assert answers(pair.loop, pair.model, [REQUEST]) == plain([REQUEST])
    assert len(pair.draft.lane.batches) < 25
    assert len(pair.model.lane.batches) == 60
    pair.check_empty()


def test_a_draft_that_costs_too_much_is_not_asked() -> None:
    pair = Pair(agrees=1.0, share=1)
    assert answers(pair.loop, pair.model, [REQUEST]) == plain([REQUEST])
    assert pair.draft.lane.batches == []


def test_drafts_of_several_requests_share_forwards() -> None:
    pair = Pair(agrees=1.0, share=50, num_blocks=200, draft_blocks=200, max_rows=4, step_budget=64)
    requests = [{**REQUEST, "seed": seed} for seed in range(4)]
    assert answers(pair.loop, pair.model, requests) == plain(requests, num_blocks=200)
    assert pair.draft.lane.batches.count(4) > 0.8 * len(pair.draft.lane.batches)
    checks = pair.model.lane.batches
    assert checks.count(4) > 0.7 * len(checks), "those that were prepared share a forward"
    pair.check_empty()


request_options = st.fixed_dictionaries(
    {"prompt": st.sampled_from(PROMPTS), "seed": st.integers(0, 5), "n": st.integers(1, 3)},
    optional={
        "max_tokens": st.integers(1, 70),
        "ignore_eos": st.just(True),
        "stop": st.sampled_from([["AB"], ["G", "Q"]]),
    },
)


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(request_options, min_size=1, max_size=5),
    own=st.lists(request_options, max_size=2),
    agrees=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    num_blocks=st.integers(26, 60),
    draft_blocks=st.integers(2, 70),
    step_budget=st.integers(2, 40),
    max_rows=st.integers(1, 8),
    leaves=st.one_of(st.none(), st.integers(0, 60)),
    window=st.sampled_from([None, 5, 20]),
)
def test_answers_are_those_without_a_draft(
    requests: list[dict[str, Any]],
    own: list[dict[str, Any]],
    agrees: float,
    num_blocks: int,
    draft_blocks: int,
    step_budget: int,
    max_rows: int,
    leaves: int | None,
    window: int | None,
) -> None:
    """With little memory for either, pre-emption, several answers, stops, short steps; with requests of the draft's own
    in its memory; and where it leaves in between."""
    room = {"num_blocks": num_blocks, "step_budget": step_budget, "max_rows": max_rows}
    blocks = draft_blocks if not own else max(draft_blocks, 40)
    pair = Pair(agrees=agrees, draft_blocks=blocks, draft_window=window, **room)
    for number, request in enumerate(own):
        pair.loop.add(pair.draft.task(f"own{number}", **request))

    def leave(step: int) -> None:
        if step == leaves and not any(entry.task.id.startswith("own") for entry in pair.loop.scheduler.entries()):
            pair.evict()

    assert answers(pair.loop, pair.model, requests, after=leave) == plain(requests, **room)
    pair.check_empty()


def test_requests_of_the_draft_itself_come_first() -> None:
    """Its memory is full of what it guesses with: that goes, and its own answer is what it is alone."""
    pair = Pair(agrees=1.0, share=50, draft_blocks=24)
    own = {"prompt": PROMPTS[2], "max_tokens": 50, "ignore_eos": True}
    pair.loop.add(pair.model.task("r0", **{**REQUEST, "max_tokens": 80}))
    while pair.draft.memory.pool.num_free > 8:
        pair.loop.step()
    begun = answers(pair.loop, pair.draft, [own], "own")
    alone = ToyModel(num_blocks=100)
    alone.lane.next_token = pair._guess
    assert begun == answers(alone.loop, alone, [own])
    pair.check_empty()


@pytest.mark.parametrize("when", ["reading", "guessing"])
def test_a_draft_that_fails_fails_nobody(when: str) -> None:
    pair = Pair(agrees=1.0, share=50)

    def fail(steps: list[TextStep]) -> Exception | None:
        late = steps[0].sequence.num_computed > 12
        return MemoryError("full") if late == (when == "guessing") else None

    pair.draft.lane.fail_when = fail
    requests = [REQUEST, {**REQUEST, "seed": 4}]
    assert answers(pair.loop, pair.model, requests) == plain(requests)
    assert pair.loop.forwards.rescued == 0
    pair.check_empty()


def test_cancelling_while_the_draft_guesses_gives_everything_back() -> None:
    pair = Pair(agrees=1.0, share=50)
    task = pair.model.task("r0", **REQUEST)
    pair.loop.add(task)
    while task.lane != "draft":
        pair.loop.step()
    pair.loop.step()
    pair.loop.cancel("r0")
    pair.check_empty()
    assert not len(pair.loop.scheduler)


def test_what_it_guessed_before_it_left_is_still_checked() -> None:
    pair = Pair(agrees=1.0, share=50)
    task = pair.model.task("r0", **REQUEST)
    pair.loop.add(task)
    while len(pair.draft.lane.batches) < 4:
        pair.loop.step()
    pair.evict()
    assert task.lane == "toy"
    work = task.work(16)
    assert work is not None
    assert len(work.payload.proposed) == 4
    while len(pair.loop.scheduler):
        pair.loop.step()
    pair.check_empty()


def test_tokens_that_the_draft_does_not_know() -> None:
    """Of the prompt: it is not asked at all. Of its own: they are proposed to nobody."""
    pair = Pair(agrees=1.0, share=50)
    pair.as_draft = replace(pair.as_draft, vocab_size=9)
    assert answers(pair.loop, pair.model, [REQUEST]) == plain([REQUEST])
    assert pair.draft.lane.batches == []

    other = Pair(agrees=1.0, share=50)
    other.draft.lane.next_token = lambda tokens, seed, index: VOCABULARY + 3
    assert answers(other.loop, other.model, [REQUEST]) == plain([REQUEST])
    assert other.draft.lane.batches != []
    other.check_empty()


def test_time_of_the_draft_counts_for_the_model() -> None:
    """Beside another lane that is as busy, model and draft together get half of the time."""
    pair = Pair(agrees=1.0, share=50, num_blocks=200, draft_blocks=200)
    other = CountLane("other")
    pair.loop.residency.add(other)
    pair.loop.add(CountTask("count", 10_000, lane="other"))
    pair.loop.add(pair.model.task("r0", **{**REQUEST, "max_tokens": 90}))
    while pair.loop.has("r0"):
        pair.loop.step()
    text = len(pair.model.lane.batches) + len(pair.draft.lane.batches)
    assert 0.8 < text / len(other.batches) < 1.25
