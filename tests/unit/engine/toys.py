"""A language model of integers: no torch, state in pages, and a complaint when a page holds what it should not."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from kamado.contracts import Accepted, Work
from kamado.events import Event, Finished, Progress, Token
from kamado.memory.blocks import BlockPool, PagedMemory
from kamado.requests import resolve_text_options
from kamado.sampling.verify import accepted
from kamado.sequence import Drawn, TextStep
from kamado.speculation.costs import LaneSpeculation
from kamado.tasks.text import TextModel, TextTask
from ticking import run_to_end, ticking_loop

EOS = 0
VOCABULARY = 50


def next_token(tokens: Sequence[int], seed: int, index: int) -> int:
    """What the toy says after these tokens; EOS about once in forty."""
    digest = hashlib.sha256(repr((list(tokens), seed, index)).encode()).digest()
    return EOS if digest[0] < 6 else 1 + digest[1] % (VOCABULARY - 1)


class ToyLane:
    """Keeps each token in its page slot, as its "key and value", and draws from what the pages say."""

    interactive = True

    def __init__(self, memory: PagedMemory, *, step_budget: int = 16, max_rows: int = 8, name: str = "toy") -> None:
        self.name, self.step_budget, self.max_rows = name, step_budget, max_rows
        self.memory = memory
        self.slots: list[int | None] = [None] * memory.capacity_tokens()
        self.batches: list[int] = []
        self.fail_when: Any = None
        """Called with the steps; what it returns is raised before anything is written."""
        self.next_token: Callable[[Sequence[int], int, int], int] = next_token
        self.speculation: LaneSpeculation | None = None

    def run(self, works: Sequence[Work]) -> list[Any]:
        steps: list[TextStep] = [work.payload for work in works]
        assert len(works) <= self.max_rows
        assert len({work.key for work in works}) == 1
        assert sum(work.cost for work in works) <= self.step_budget or len(works) == 1
        if self.fail_when is not None and (error := self.fail_when(steps)) is not None:
            raise error
        self.batches.append(len(works))
        if self.speculation is not None:
            self.speculation.forward_done(
                rows=len(steps),
                tokens=sum(step.num_new for step in steps),
                proposed=sum(len(step.proposed) for step in steps),
                seconds=0.0,
            )
        return [self._step(step) for step in steps]

    def ease(self, work: Work) -> Work | None:
        return None

    def _step(self, step: TextStep) -> Any:
        sequence = step.sequence
        length = sequence.num_computed + step.num_new
        window = self.memory.window_tokens
        first = 0 if window is None else max(sequence.num_computed + 1 - window, 0)
        slots = {position: self._slot(sequence.state.blocks, position) for position in range(first, length)}
        tokens = [*sequence.tokens, *step.proposed]
        for position in range(sequence.num_computed, length):
            self.slots[slots[position]] = tokens[position]
        seen = [self.slots[slot] for slot in slots.values()]
        assert seen == tokens[first:length], f"{sequence.id}: its pages hold another sequence's state"
        assert step.sample == (length == len(tokens))
        if not step.sample:
            return None
        ends = range(len(sequence.tokens), len(tokens) + 1)
        drawn = [Drawn(self.next_token(tokens[:end], sequence.seed, sequence.index)) for end in ends]
        return accepted(step.proposed, drawn) if step.proposed else drawn[0]

    def _slot(self, blocks: list[int], position: int) -> int:
        size = self.memory.block_tokens
        assert blocks[position // size] >= 0, "a page was given back too early"
        return blocks[position // size] * size + position % size


class ToyModel:
    """Lane, memory, and a loop with a clock that moves by one a reading."""

    def __init__(
        self,
        *,
        num_blocks: int = 32,
        block_tokens: int = 4,
        step_budget: int = 16,
        max_rows: int = 8,
        speculation: LaneSpeculation | None = None,
        **kw: Any,
    ) -> None:
        self.memory = PagedMemory(BlockPool(num_blocks), block_tokens, salt=b"toy", **kw)
        self.lane = ToyLane(self.memory, step_budget=step_budget, max_rows=max_rows)
        self.lane.speculation = speculation
        self.loop = ticking_loop([self.lane])
        self.text_model = TextModel(
            lane="toy",
            memory=self.memory,
            decode=lambda tokens: "".join(chr(64 + token) for token in tokens if token != EOS),
            eos_ids=frozenset({EOS}),
            context_tokens=min(100, self.memory.capacity_tokens()),
            speculation=speculation,
        )

    def task(
        self, request_id: str, prompt: Sequence[int], *, deadline: float | None = None, **options: Any
    ) -> TextTask:
        resolved = resolve_text_options({"prompt_tokens": list(prompt), "seed": 1, **options})
        return TextTask(request_id, self.text_model, resolved, prompt, deadline=deadline)

    def run(self, limit: int = 10_000) -> list[Event]:
        return run_to_end(self.loop, limit)


def expected(prompt: Sequence[int], max_tokens: int, *, seed: int = 1, index: int = 0, context: int = 100) -> list[int]:
    """The toy's answer, made alone and without pages."""
    tokens = list(prompt)
    while len(tokens) - len(prompt) < max_tokens and len(tokens) < context:
        tokens.append(next_token(tokens, seed, index))
        if tokens[-1] == EOS:
            break
    return tokens[len(prompt) :]


def tokens_of(events: Sequence[Event], request_id: str, index: int = 0) -> list[int]:
    return [e.token_id for e in events if isinstance(e, Token) and (e.request_id, e.index) == (request_id, index)]


def ends_of(events: Sequence[Event], request_id: str) -> list[Finished]:
    return [e for e in events if isinstance(e, Finished) and e.request_id == request_id]


class CountTask:
    """A task of another kind: `total` steps of equal cost, as a denoiser has them."""

    def __init__(
        self, request_id: str, total: int, *, lane: str = "counter", cost: int = 1000, key: str = "step"
    ) -> None:
        self.id, self.lane, self.account, self.deadline = request_id, lane, lane, None
        self.total, self.cost, self.key = total, cost, key
        self.done = 0
        self.finished = False

    def work(self, budget: int) -> Work | None:
        return None if self.finished else Work(self.lane, self.key, self.cost, self)

    def acquire(self, work: Work) -> Work | None:
        return work

    def victims_needed(self, work: Work, others: Sequence[Any]) -> int | None:
        return 0

    def release(self) -> None:
        return None

    def holds(self) -> bool:
        return False

    def accept(self, result: Any) -> Accepted:
        self.done += 1
        events: list[Event] = [Progress(self.id, self.done, self.total)]
        if self.done == self.total:
            self.finished = True
            events.append(Finished(self.id, "complete"))
        return Accepted(events)

    def finish(self, reason: Any, error: Exception | None = None) -> Finished:
        self.finished = True
        return Finished(self.id, reason, error=error)


class CountLane:
    """Runs CountTasks."""

    interactive = True

    def __init__(self, name: str = "counter", *, max_rows: int = 8, step_budget: int = 10**6) -> None:
        self.name, self.max_rows, self.step_budget = name, max_rows, step_budget
        self.batches: list[int] = []

    def run(self, works: Sequence[Work]) -> list[Any]:
        self.batches.append(len(works))
        return [None] * len(works)

    def ease(self, work: Work) -> Work | None:
        return None
