"""Checking proposed tokens: each position's own token is drawn as ever, and proposals hold while they are that token.

What is accepted is thereby what would have been drawn without proposals, for greedy and for sampled answers: the random
number of a position depends on seed, answer and position alone. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import GenerationFailed
from ..sequence import Drawn, TextStep, TokenSequence


def drawn_rows(step: TextStep) -> list[TokenSequence]:
    """The sequence as it stands when the next token is drawn, and with each proposal more."""
    sequence = step.sequence
    if sequence.sampling.greedy and not sequence.sampling.has_penalties:
        return [sequence] * (1 + len(step.proposed))
    rows = [sequence]
    private: dict[str, Any] = {}  # rows are drawn in order, so their counts can be one and grow
    for length in range(1, len(step.proposed) + 1):
        rows.append(
            TokenSequence(
                id=sequence.id,
                tokens=[*sequence.tokens, *step.proposed[:length]],
                num_prompt=sequence.num_prompt,
                sampling=sequence.sampling,
                seed=sequence.seed,
                index=sequence.index,
                logprobs=sequence.logprobs,
                private=private,
            )
        )
    return rows


def accepted(proposed: Sequence[int], drawn: Sequence[Drawn | GenerationFailed]) -> tuple[Drawn, ...]:
    """Of the tokens drawn behind each of 0, 1, ... proposals those that count: the last one is new, the ones before are
    proposals. None where any could not be drawn: a proposal whose state is NaN makes NaN of tokens before it that share
    its forward, so the step has to be run without proposals to know whose fault it is."""
    kept = [each for each in drawn if isinstance(each, Drawn)]
    if len(kept) < len(drawn):
        return ()
    right = 0
    while right < len(proposed) and kept[right].token_id == proposed[right]:
        right += 1
    return tuple(kept[: right + 1])
