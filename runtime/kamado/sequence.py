"""One token sequence in flight, the memory behind it, and what a text lane is asked for.

Prefill, chunked prefill, decode and resumption after pre-emption are one thing: `num_computed` chases `len(tokens)`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from .requests import Sampling

MOST_READ_SINGLY = 16
"""Tokens that a prompt's way of computing is no quicker at than an answer's."""


@dataclass(slots=True, kw_only=True, eq=False)
class TokenSequence:
    """One answer: tokens so far, tokens computed so far, and how to draw the next."""

    id: str
    tokens: list[int]
    """Prompt and answer so far. For an encoder-decoder model: the decoder's tokens, start token first."""
    num_prompt: int
    """How many of `tokens` were given."""
    sampling: Sampling
    seed: int
    index: int = 0
    """Which of the request's answers this is; each has random numbers of its own."""
    logprobs: int | None = None
    most_tokens: int | None = None
    """With so many tokens, prompt and answer together, it ends; it may end before. None: nobody knows."""
    source: tuple[int, ...] = ()
    """Encoder input tokens of an encoder-decoder model; otherwise empty."""
    seen: Any = None
    """What the lane keeps of pictures, sounds and videos in the prompt; None: there are none."""
    contents: tuple[tuple[int, int, bytes], ...] = ()
    """(first, end, name) of tokens whose state depends on more than the tokens up to them: equal names mean equal
    media, and equal tokens where these see each other ahead."""
    blocks: tuple[tuple[int, int], ...] = ()
    """(first, end) of tokens that must be computed together."""
    num_computed: int = 0
    """How many of `tokens` have their state in memory. Written by the task alone, when a result is accepted."""
    state: Any = None
    """What the lane's memory keeps for it: a block table, a row cache. None while it holds nothing."""
    private: dict[str, Any] = field(default_factory=dict)
    """Scratch of the sampler (penalty counts); may be dropped at any time and made again from `tokens`."""

    @property
    def num_made(self) -> int:
        return len(self.tokens) - self.num_prompt

    def uncut(self, num_new: int) -> int:
        """`num_new` tokens to compute next, or such a number near it that ends inside of no block: fewer, or as many as
        the block needs where it comes first."""
        end = self.num_computed + num_new
        for first, last in self.blocks:
            if first < end < last:
                return (first if first > self.num_computed else last) - self.num_computed
        return num_new


@dataclass(frozen=True, slots=True)
class TextStep:
    """Payload of a text work: compute tokens `num_computed .. num_computed + num_new` of the sequence and, behind its
    end, of `proposed`."""

    sequence: TokenSequence
    num_new: int
    sample: bool
    """Whether these reach the last token, so that the next one is to be drawn."""
    proposed: tuple[int, ...] = ()
    """Tokens that may come next; the last of the `num_new`. The lane may leave them out. If it does not, the result is
    a tuple of `Drawn`: see `kamado.sampling.verify.accepted`. Of its tokens all but the last one are computed. An empty
    one: nothing was computed, and the step is to be run without proposals."""
    is_guess: bool = False
    """Whether what is drawn is only a guess, so that it does not matter how numbers are rounded on the way."""

    @property
    def is_answering(self) -> bool:
        """Whether it may be computed as tokens of an answer are, where prompts are computed in another way."""
        return self.num_new == 1 + len(self.proposed) or (self.is_guess and self.num_new <= MOST_READ_SINGLY)

    @property
    def new_tokens(self) -> list[int]:
        """Those that it computes."""
        start = self.sequence.num_computed
        return [*self.sequence.tokens[start : start + self.num_new - len(self.proposed)], *self.proposed]


def drawn_places(steps: Sequence[TextStep]) -> list[int]:
    """Of the new tokens of all steps, in order, those behind which something may be drawn: the last of each step and,
    before it, its proposals."""
    places: list[int] = []
    end = 0
    for step in steps:
        end += step.num_new
        places += range(end - 1 - len(step.proposed), end)
    return places


@dataclass(frozen=True, slots=True)
class Drawn:
    """The next token, as the lane drew it. Results of steps with `sample=False` are None."""

    token_id: int
    logprob: float | None = None
    """Natural log of its probability under the unmodified logits; None where not asked for."""
    top: tuple[tuple[int, float], ...] = ()
    """The most probable tokens with their log-probabilities, best first."""


class SequenceMemory(Protocol):
    """State memory of one lane: pages of a KV cache, or state slots. Plain integers, no tensors."""

    chunked: bool
    """Whether a prompt may be computed in pieces."""

    restart_tokens: int | None
    """A sequence that grows beyond this is computed anew: positions mean something else from there on (LongRoPE)."""

    def key(self, sequence: TokenSequence, num_new: int) -> Hashable:
        """Batching key of computing the next `num_new` tokens."""

    def attach(self, sequence: TokenSequence) -> int:
        """Take over cached state of the longest known prefix, if any; called while the sequence holds nothing and has
        nothing computed. Returns how many tokens are thereby computed: less than `len(sequence.tokens)`, 0 for none."""

    def acquire(self, sequence: TokenSequence, num_tokens: int) -> bool:
        """Make room for the first `num_tokens` tokens in all. False: no room, and nothing was changed."""

    def victims_needed(self, sequence: TokenSequence, num_tokens: int, others: Sequence[TokenSequence]) -> int | None:
        """How many of `others`, in order, would have to be released so that `acquire` succeeds; None: all of them would
        not suffice. Changes nothing."""

    def committed(self, sequence: TokenSequence) -> None:
        """`sequence.num_computed` has grown: state up to there is final and may be shared. What was acquired beyond the
        sequence's tokens is given back."""

    def release(self, sequence: TokenSequence) -> None:
        """Give back everything that the sequence holds."""

    def fits(self, num_tokens: int, num_source: int) -> bool:
        """Whether a sequence of that many tokens, with that many encoder tokens, could ever be held, alone."""

    def capacity_tokens(self) -> int:
        """The longest sequence that could ever be held, alone."""
