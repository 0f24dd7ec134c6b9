"""Text generation as a task: tokens so far, tokens computed so far; the lane computes the missing ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..contracts import Accepted, Task, Work
from ..events import Event, Finished, FinishReason, Token, TokenLogprob
from ..media.detokenize import IncrementalDetokenizer
from ..requests import TextOptions
from ..sampling.block import BlockEnd
from ..sampling.stops import AnswerEnd
from ..sequence import Drawn, SequenceMemory, TextStep, TokenSequence
from ..speculation.costs import LaneSpeculation
from ..speculation.draft import Draft, DraftModel, Guests
from ..speculation.pace import Pace


@dataclass(frozen=True, slots=True, kw_only=True)
class TextModel:
    """What a text task has to know of the model."""

    lane: str
    memory: SequenceMemory
    decode: Callable[[list[int]], str]
    """Token ids -> text, special tokens left out."""
    eos_ids: frozenset[int]
    context_tokens: int
    """Longest sequence, prompt and answer together."""
    stepwise: bool = False
    """Whether an answer that is computed again (after pre-emption) goes token by token, as it did the first time, so
    that not a bit differs."""
    speculation: LaneSpeculation | None = None
    """What guessing tokens is judged by; None: there is none."""
    vocab_size: int = 0
    """Token ids are below this. Matters where there is a draft."""
    draft: Callable[[], DraftModel | None] | None = None
    """The model that guesses for this one, while it is in memory. None: there is no such model."""
    guests: Guests | None = None
    """Whom this model guesses for: their state lies in its memory as long as nobody else needs that."""


class TextTask:
    """One answer. An `n > 1` request starts with its first answer; when the prompt is computed that one spawns the
    others, which find the prompt's state in memory."""

    def __init__(
        self,
        request_id: str,
        model: TextModel,
        options: TextOptions,
        prompt: Sequence[int],
        *,
        source: Sequence[int] = (),
        deadline: float | None = None,
        index: int = 0,
        ends: frozenset[int] = frozenset(),
    ) -> None:
        """`ends`: tokens that end this answer, beside those of the model."""
        self.id = request_id
        self.account = model.lane
        self.deadline = deadline
        self._model = model
        self._ends = ends
        self.options = options
        self._unspawned = options.n - 1 if index == 0 else 0
        self._cached_tokens: int | None = None
        self._granted: TextStep
        self._pace = Pace(model.speculation) if model.speculation is not None else None
        self._may_guess = self._pace is not None
        self._finished = False
        self.sequence = TokenSequence(
            id=f"{request_id}/{index}",
            tokens=list(prompt),
            num_prompt=len(prompt),
            sampling=options.sampling,
            seed=options.seed,
            index=index,
            logprobs=options.logprobs,
            source=tuple(source),
        )
        self.sequence.most_tokens = len(prompt) + self._left()
        self._draft = self._new_draft()
        self._detokenizer = IncrementalDetokenizer(model.decode, prompt)
        self._stops = AnswerEnd(options.stop, _block_end(options))

    @property
    def lane(self) -> str:
        """See Task: the draft's, while that guesses."""
        return (self._draft.lane if self._draft is not None else None) or self.account

    def work(self, budget: int) -> Work | None:
        """See Task. A lane that cannot compute a prompt in pieces gets it whole, whatever the budget."""
        if self._finished:
            return None
        if self._draft is not None and self._draft.lane is not None:
            return self._draft.work(budget)
        sequence = self.sequence
        missing = len(sequence.tokens) - sequence.num_computed
        num_new = sequence.uncut(min(missing, budget)) if self._model.memory.chunked else missing
        if self._model.stepwise:
            num_new = min(num_new, max(sequence.num_prompt - sequence.num_computed, 1))
        if self._pace is None or not self._guesses_now():
            return self._work(num_new)
        if self._draft is not None and (drafted := self._draft.guessed()):
            return self._work(num_new, self._pace.take(drafted, self._guesses(budget)))
        return self._work(num_new, self._pace.propose(sequence.tokens, sequence.num_made, self._guesses(budget)))

    def acquire(self, work: Work) -> Work | None:
        """See Task. A task without state first takes over the longest prefix that memory knows. Proposals are left out
        where there is no room for them: nobody makes room for a guess. A draft's guesses have their room already."""
        if work.spare:
            self._granted = work.payload
            return work
        sequence, memory = self.sequence, self._model.memory
        fresh = sequence.state is None
        if fresh:
            work = self._attach(work)
        if work.payload.proposed and not memory.acquire(sequence, sequence.num_computed + work.payload.num_new):
            work = self._without_proposals(work)
        if not self._acquire(sequence.num_computed + work.payload.num_new):
            if fresh:
                self.release()
            return None
        self._granted = work.payload
        if fresh and self._cached_tokens is None:
            self._cached_tokens = sequence.num_computed
        return work

    def victims_needed(self, work: Work, others: Sequence[Task]) -> int | None:
        """See Task. A prefix that would be taken over is held for the count, so it counts as no victim's to free."""
        sequence, memory = self.sequence, self._model.memory
        fresh = sequence.state is None
        if fresh:
            work = self._attach(work)
        work = self._without_proposals(work)
        victims = [other.sequence for other in others if isinstance(other, TextTask)]
        assert len(victims) == len(others), "a text lane's state is held by text tasks alone"
        needed = memory.victims_needed(sequence, sequence.num_computed + work.payload.num_new, victims)
        if fresh:
            self.release()
        return needed

    def release(self) -> None:
        """See Task."""
        if self.sequence.state is not None:
            self._model.memory.release(self.sequence)
        self.sequence.num_computed = 0
        if self._draft is not None:
            self._draft.release()

    def holds(self) -> bool:
        """See Task."""
        return self.sequence.state is not None

    def accept(self, result: Drawn | tuple[Drawn, ...] | Exception | None) -> Accepted:
        """See Task."""
        step = self._granted
        if self._draft is not None and self._pace is not None and step.sequence is not self.sequence:
            self._pace.drafted(self._draft.accept(step, result))
            return Accepted(())
        assert not isinstance(result, Exception), "only what is spare may fail"
        accepted = self._accept(step, result)
        self._have_drafted()
        return accepted

    def _accept(self, step: TextStep, result: Drawn | tuple[Drawn, ...] | None) -> Accepted:
        sequence = self.sequence
        if isinstance(result, tuple):
            return Accepted(self._accept_proposals(step, result))
        sequence.num_computed += step.num_new - len(step.proposed)
        self._model.memory.committed(sequence)
        if not step.sample:
            return Accepted(())
        assert result is not None, "a step that reaches the last token draws the next"
        spawned = [self._sibling(index) for index in range(1, self._unspawned + 1)]
        self._unspawned = 0
        return Accepted(self._advance(result), spawned)

    def finish(self, reason: FinishReason, error: Exception | None = None) -> Finished:
        """See Task."""
        return self._finish(reason, text=self._stops.flush() if error is None else "", error=error)

    def _accept_proposals(self, step: TextStep, drawn: tuple[Drawn, ...]) -> list[Event]:
        """Take in the tokens that were drawn behind proposals that held; all but the last one are computed already."""
        assert self._pace is not None, "it proposed something"
        if not drawn:
            self._may_guess = False
            return []
        self._pace.checked(len(step.proposed), len(drawn) - 1)
        events: list[Event] = []
        for each in drawn:
            self.sequence.num_computed += 1  # the token before it
            events += self._advance(each)
            if self._finished:
                break
        self._model.memory.committed(self.sequence)
        return events

    def _guesses(self, budget: int) -> int:
        """How many tokens may be proposed: behind the last of them one more is drawn."""
        return min(self._left(), budget) - 1

    def _left(self) -> int:
        """How many tokens the answer may get yet."""
        sequence, limit = self.sequence, self.options.max_tokens
        left = self._model.context_tokens - len(sequence.tokens)
        return left if limit is None else min(left, limit - sequence.num_made)

    def _guesses_now(self) -> bool:
        """Whether the next token, and others behind it, can be guessed: all but the last one are computed."""
        sequence = self.sequence
        missing = len(sequence.tokens) - sequence.num_computed
        return self._may_guess and not self._finished and missing == 1 and sequence.num_made > 0

    def _have_drafted(self) -> None:
        """The draft guesses now, if that pays."""
        if self._draft is None or self._pace is None or not self._guesses_now():
            return
        sequence, left = self.sequence, self._left()
        costs, pending = self._draft.costs(), self._draft.pending()
        if costs is None or not pending or self._pace.has_given_drafts_up(sequence.num_made):
            self._draft.release()  # others can use the room
            return
        length = self._pace.draft_length(
            sequence.tokens, sequence.num_made, left - 1, pending=pending, costs=costs, left=left
        )
        if length:
            self._draft.begin(length)

    def _new_draft(self) -> Draft | None:
        model = self._model
        if model.draft is None or model.speculation is None:
            return None
        return Draft(
            model.draft,
            self.sequence,
            account=model.lane,
            speculation=model.speculation,
            vocab_size=model.vocab_size,
            end_ids=frozenset() if self.options.ignore_eos else model.eos_ids | self._ends,
        )

    def _acquire(self, num_tokens: int) -> bool:
        """Room for so many tokens; those for whom the model guesses leave for it."""
        memory, guests = self._model.memory, self._model.guests
        while not memory.acquire(self.sequence, num_tokens):
            if guests is None or not guests.send_one_away():
                return False
        return True

    def _attach(self, work: Work) -> Work:
        """Take over the longest prefix that memory knows: what is left of the work."""
        sequence = self.sequence
        sequence.num_computed = self._model.memory.attach(sequence)
        return self._work(sequence.uncut(min(work.cost, len(sequence.tokens) - sequence.num_computed)))

    def _without_proposals(self, work: Work) -> Work:
        step: TextStep = work.payload
        return self._work(step.num_new - len(step.proposed)) if step.proposed else work

    def _work(self, num_new: int, proposed: tuple[int, ...] = ()) -> Work:
        sequence = self.sequence
        sample = sequence.num_computed + num_new == len(sequence.tokens)
        num_new += len(proposed)
        key = self._model.memory.key(sequence, num_new)
        return Work(self.lane, key, num_new, TextStep(sequence, num_new, sample, proposed))

    def _sibling(self, index: int) -> TextTask:
        options = replace(self.options, n=1)
        prompt = self.sequence.tokens[: self.sequence.num_prompt]
        source, deadline = self.sequence.source, self.deadline
        return TextTask(
            self.id, self._model, options, prompt, source=source, deadline=deadline, index=index, ends=self._ends
        )

    def _advance(self, drawn: Drawn) -> list[Event]:
        """Take the drawn token in: text, stop conditions."""
        sequence = self.sequence
        token = drawn.token_id
        sequence.tokens.append(token)
        restart = self._model.memory.restart_tokens
        if restart is not None and len(sequence.tokens) == restart + 1:
            self.release()
        if (token in self._model.eos_ids or token in self._ends) and not self.options.ignore_eos:
            tail, hit = self._stops.feed(self._detokenizer.flush())
            event = self._token(drawn, tail)
            if hit is not None:
                return [event, self._finish("stop", stop=hit)]
            return [event, self._finish("stop", text=self._stops.flush(), stop=token)]
        text, hit = self._stops.feed(self._detokenizer.feed(token))
        event = self._token(drawn, text)
        if hit is not None:
            return [event, self._finish("stop", stop=hit)]
        limit = self.options.max_tokens
        if len(sequence.tokens) >= self._model.context_tokens or (limit is not None and sequence.num_made >= limit):
            rest, hit = self._stops.feed(self._detokenizer.flush())
            if hit is not None:
                return [event, self._finish("stop", text=rest, stop=hit)]
            return [event, self._finish("length", text=rest + self._stops.flush())]
        return [event]

    def _token(self, drawn: Drawn, text: str) -> Token:
        def named(token_id: int, logprob: float) -> TokenLogprob:
            return TokenLogprob(token_id, self._model.decode([token_id]), logprob)

        chosen = named(drawn.token_id, drawn.logprob) if drawn.logprob is not None else None
        top = tuple(named(token_id, logprob) for token_id, logprob in drawn.top)
        return Token(self.id, self.sequence.index, drawn.token_id, text, chosen, top)

    def _finish(
        self, reason: FinishReason, *, text: str = "", stop: str | int | None = None, error: Exception | None = None
    ) -> Finished:
        assert not self._finished, f"{self.sequence.id} finished twice"
        self._finished = True
        return Finished(
            self.id,
            reason,
            index=self.sequence.index,
            text=text,
            error=error,
            stop=stop,
            prompt_tokens=len(self.sequence.source) or self.sequence.num_prompt,
            completion_tokens=self.sequence.num_made,
            cached_tokens=self._cached_tokens or 0,
            proposed_tokens=self._pace.num_proposed if self._pace is not None else 0,
            accepted_tokens=self._pace.num_accepted if self._pace is not None else 0,
        )


def _block_end(options: TextOptions) -> BlockEnd | None:
    if options.stop_at is None:
        return None
    assert options.prompt is not None, "it is checked that there is a text before the cursor"
    return BlockEnd(options.prompt, is_last=not options.suffix)
