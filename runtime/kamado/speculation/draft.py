"""Guesses of a smaller model: what it says next is proposed to the larger one. No torch.

The draft is a model like others: its forwards are works of its own lane, its state lies in its own pages. Of an answer
it computes the same tokens, draws with the same random numbers, and forgets what did not hold:

    begin    what held is known, what did not is cut off; room for the guesses is reserved
    work     the next forward: what is not computed yet, at first perhaps the whole prompt, and then token by token
    guessed  the tokens to propose
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..contracts import Work
from ..sequence import Drawn, SequenceMemory, TextStep, TokenSequence
from .costs import DraftCosts, LaneSpeculation


class Guests:
    """Answers of other models that have state in a draft's memory. Whom the memory belongs to needs it more."""

    def __init__(self) -> None:
        self._drafts: dict[Draft, None] = {}

    def __len__(self) -> int:
        return len(self._drafts)

    def enter(self, draft: Draft) -> None:
        """It holds state from now on."""
        self._drafts[draft] = None

    def leave(self, draft: Draft) -> None:
        """It holds none any more."""
        self._drafts.pop(draft, None)

    def send_one_away(self) -> bool:
        """The one that came first gives its state back. False: there is none."""
        first = next(iter(self._drafts), None)
        if first is not None:
            first.release()
        return first is not None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DraftModel:
    """What answers of another model have to know of one that guesses for them."""

    lane: str
    memory: SequenceMemory
    vocab_size: int
    context_tokens: int
    """The longest sequence that it can hold, alone."""
    speculation: LaneSpeculation
    """Where the time of its forwards is measured."""
    guests: Guests


class Draft:
    """What the draft model makes of one answer. Not thread safe: the loop's thread owns it."""

    def __init__(
        self,
        find: Callable[[], DraftModel | None],
        answer: TokenSequence,
        *,
        account: str,
        speculation: LaneSpeculation,
        vocab_size: int,
        end_ids: frozenset[int],
    ) -> None:
        """`find`: the draft model, while it is in memory. `answer` has tokens of a vocabulary of `vocab_size`, and ends
        with one of `end_ids`; its lane is `account`, about which `speculation` knows."""
        self._find = find
        self._answer = answer
        self._account = account
        self._speculation = speculation
        self._vocab_size = vocab_size
        self._end_ids = end_ids
        self._model: DraftModel | None = None
        """Where the state is."""
        self._sequence: TokenSequence | None = None
        self._known = 0
        """Tokens of the answer that the sequence begins with; guesses follow."""
        self._left = 0
        """Tokens to guess."""
        self._is_useless = False
        """It cannot read this answer, or gave nonsense."""
        self._has_begun = False
        """Whether it has read the prompt."""

    @property
    def lane(self) -> str | None:
        """Where its next forward is to run. None: there is none."""
        model = self._model
        return model.lane if self._left and model is not None and model is self._find() else None

    def pending(self) -> int:
        """How many tokens it would have to read before it can guess one. 0: it cannot guess."""
        model = self._find()
        if model is None or self._is_useless or len(self._answer.tokens) >= model.context_tokens:
            return 0
        computed = 0
        if self._sequence is not None and model is self._model:
            computed = min(self._sequence.num_computed, self._known + self._num_right())
        return len(self._answer.tokens) - computed

    def costs(self) -> DraftCosts | None:
        """Of its forwards; None: there is no draft model now."""
        model = self._find()
        return DraftCosts(self._speculation, model.speculation) if model is not None else None

    def begin(self, length: int) -> bool:
        """Guess so many tokens that may follow the answer. False: it cannot, for want of memory, and holds none."""
        model = self._find()
        self._left = 0
        if model is not self._model:
            self.release()
        if model is None or not self._read(model):
            return False
        sequence = self._sequence
        assert sequence is not None, "it was made above"
        length = min(length, model.context_tokens - len(sequence.tokens) + 1)
        if sequence.state is None:
            sequence.num_computed = model.memory.attach(sequence)
            model.guests.enter(self)
        if length < 1 or not model.memory.acquire(sequence, len(sequence.tokens) + length - 1):
            self.release()  # others can use the rest of it
            return False
        self._left = length
        return True

    def work(self, budget: int) -> Work:
        """The next forward, where `lane` says that there is one."""
        model, sequence = self._model, self._sequence
        assert model is not None and sequence is not None, "begun"
        num_new = min(len(sequence.tokens) - sequence.num_computed, budget)
        sample = sequence.num_computed + num_new == len(sequence.tokens)
        step = TextStep(sequence, num_new, sample, is_guess=True)
        return Work(model.lane, model.memory.key(sequence, num_new), num_new, step, spare=True)

    def accept(self, step: TextStep, result: Any) -> float:
        """Commit the result of the last `work`. Returns what it cost, in forwards of the answer's model with one token
        a sequence; reading the prompt for the first time counts as none."""
        sequence, costs = self._sequence, self.costs()
        if step.sequence is not sequence or costs is None or not self._left:  # its memory was taken meanwhile
            return 0.0
        if isinstance(result, Exception):
            self._is_useless = True
            self.release()
            return 0.0
        sequence.num_computed += step.num_new
        if not step.sample:
            return costs.of(step.num_new) if self._has_begun else 0.0
        spent = costs.of(step.num_new if self._has_begun else 1)
        self._has_begun = True
        assert isinstance(result, Drawn), "a step that reaches the last token draws the next"
        self._left -= 1
        if result.token_id >= self._vocab_size:
            self._left = 0
            return spent
        sequence.tokens.append(result.token_id)
        if result.token_id in self._end_ids:
            self._left = 0
        return spent

    def guessed(self) -> tuple[int, ...]:
        """The tokens that may follow the answer as it is now."""
        if self._sequence is None or self._known != len(self._answer.tokens):
            return ()
        return tuple(self._sequence.tokens[self._known :])

    def release(self) -> None:
        """Give back all state memory. What was guessed stays."""
        self._left = 0
        if self._model is not None and self._sequence is not None:
            if self._sequence.state is not None:
                self._model.memory.release(self._sequence)
            self._sequence.num_computed = 0
            self._model.guests.leave(self)

    def _read(self, model: DraftModel) -> bool:
        """Take in what the answer has become. False: the model cannot read it."""
        answer, sequence = self._answer, self._sequence
        if sequence is None or model is not self._model:
            self._model, self._known, self._has_begun = model, 0, False
            sequence = self._sequence = self._fresh(model)
        right = self._num_right()
        if self._known + right < len(sequence.tokens):
            sequence.private.clear()  # counts of tokens that were guessed
        del sequence.tokens[self._known + right :]
        sequence.num_computed = min(sequence.num_computed, len(sequence.tokens))
        new = answer.tokens[len(sequence.tokens) :]
        self._is_useless = self._is_useless or max(new, default=0) >= model.vocab_size
        sequence.tokens += new
        self._known = len(sequence.tokens)
        if sequence.state is not None:
            model.memory.committed(sequence)  # never before a guess is known to be right: others find these pages
        return not self._is_useless

    def _fresh(self, model: DraftModel) -> TokenSequence:
        """The answer as the draft draws it: with the same numbers, and the bias of tokens that it knows."""
        answer = self._answer
        bias = {token: value for token, value in answer.sampling.logit_bias.items() if token < model.vocab_size}
        return TokenSequence(
            id=f"{answer.id}/draft",
            tokens=[],
            num_prompt=answer.num_prompt,
            sampling=replace(answer.sampling, logit_bias=bias),
            seed=answer.seed,
            index=answer.index,
        )

    def _num_right(self) -> int:
        """How many of the guesses the answer has."""
        assert self._sequence is not None, "asked of what was guessed"
        guesses, made = self._sequence.tokens, self._answer.tokens
        place = self._known
        while place < min(len(guesses), len(made)) and guesses[place] == made[place]:
            place += 1
        return place - self._known
