"""One language model guesses tokens for another: whether it can, and what the other one has to know of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from kamado.checkpoint.types import Checkpoint
from kamado.errors import InvalidRequest
from kamado.speculation.draft import DraftModel, Guests

from .batching import PAGED, batching_of
from .shape import text_shape
from .tokenizer import load_tokenizer

if TYPE_CHECKING:
    from .model import Execution

MOST_EXTRA = 0.02
"""Of the tokens, those that one of two vocabularies may have alone: names for turns of a chat and the like."""


def as_draft(execution: Execution, vocab_size: int, context_tokens: int) -> DraftModel | None:
    """What others have to know of a model so run; None: it cannot guess for them."""
    if execution.speculation is None:
        return None
    return DraftModel(
        lane=execution.lane.name,
        memory=execution.memory,
        vocab_size=vocab_size,
        context_tokens=context_tokens,
        speculation=execution.speculation,
        guests=Guests(),
    )


def check_draft(checkpoint: Checkpoint, draft: Checkpoint) -> None:
    """See Family.check_draft; both configurations in the form of a `config.json`."""
    for each, role in ((checkpoint, "take a draft"), (draft, "be one")):
        how = batching_of(text_shape(each.config))
        if how != PAGED:
            raise InvalidRequest(
                f"{checkpoint.reference} with the draft {draft.reference}: {each.reference} cannot {role}, because it "
                f"does not run over pages ({how}); leave the draft out (--draft)"
            )
    problem = difference(_vocabulary(checkpoint), _vocabulary(draft))
    if problem:
        raise InvalidRequest(
            f"{draft.reference} cannot guess for {checkpoint.reference}: their tokens differ, {problem}; take a draft "
            "with the same vocabulary, of the same series for example"
        )


def difference(ours: Mapping[str, int], theirs: Mapping[str, int]) -> str:
    """What keeps one vocabulary's ids from meaning the same in the other one; "" if nothing does. Ids that only one of
    them has matter where they are many."""
    tokens, others = ({number: token for token, number in each.items()} for each in (ours, theirs))
    for number in sorted(tokens.keys() & others.keys()):
        if tokens[number] != others[number]:
            return f"{number} is {tokens[number]!r:.40} in one and {others[number]!r:.40} in the other"
    alone = len(tokens.keys() ^ others.keys())
    if alone > MOST_EXTRA * max(len(tokens), len(others)):
        return f"they have {len(tokens)} and {len(others)}"
    return ""


def _vocabulary(checkpoint: Checkpoint) -> dict[str, int]:
    tokenizer = load_tokenizer(checkpoint)
    try:
        found: dict[str, int] = tokenizer.backend.get_vocab(with_added_tokens=True)
        return found
    finally:
        tokenizer.close()
