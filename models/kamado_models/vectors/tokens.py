"""Texts to rows of tokens, as a checkpoint's own tokenizer makes them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kamado.errors import ContextOverflow, InvalidRequest

from ..language.tokenizer import guarded

UNLIMITED = 1 << 20
"""Tokens of a text where nobody says how many can be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One text, or a pair of them, for a network."""

    ids: tuple[int, ...]
    types: tuple[int, ...] = ()
    """Which of two texts each token is of, for networks that want to be told."""
    skipped: int = 0
    """Tokens at the start that are not pooled."""
    asked: tuple[int, ...] = ()
    """Positions about which something is asked."""
    wanted: int = -1
    """The token that stands there."""
    cut: bool = False
    """Whether the text was longer."""


class Tokens:
    """The tokenizer of one model. Thread safe."""

    def __init__(self, tokenizer: Any, *, max_tokens: int | None, pad_id: int | None, reference: str) -> None:
        """`tokenizer`: of transformers. `max_tokens`: that the model reads. `pad_id`: what its network was made for."""
        self.tokenizer = tokenizer
        own = getattr(tokenizer, "model_max_length", None)
        limits = [limit for limit in (max_tokens, own) if isinstance(limit, int) and 0 < limit < UNLIMITED]
        self.max_tokens = min(limits, default=UNLIMITED)
        known = (pad_id, tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self.pad_id: int = next(each for each in known if isinstance(each, int))
        self._reference = reference
        # Cutting and padding are states of the tokenizer, and files may come with them switched on.
        self._lock = threading.Lock()

    def row(self, text: str, pair: str | None = None, *, cut: bool, skipped: int = 0) -> Row:
        """`cut`: leave out the end of a text that is too long, of two that of the longer one. Raises InvalidRequest,
        ContextOverflow."""
        found = self._encoded(text, pair, None)
        count = len(found["input_ids"])
        if not count:
            raise InvalidRequest(f"{self._reference} makes no tokens of {text!r:.60}")
        if count > self.max_tokens:
            if not cut:
                raise ContextOverflow(
                    f"the text has {count} tokens, and {self._reference} reads {self.max_tokens}; shorten it",
                    prompt_tokens=count,
                    context_tokens=self.max_tokens,
                )
            found = self._encoded(text, pair, self.max_tokens)
        return Row(
            ids=tuple(found["input_ids"]),
            types=tuple(found.get("token_type_ids", ())),
            skipped=skipped,
            cut=count > self.max_tokens,
        )

    def prefix(self, text: str) -> int:
        """How many tokens a text takes at the start of a longer one, with what stands before it."""
        ids = self._encoded(text, None, None)["input_ids"]
        ends = {self.tokenizer.eos_token_id, self.tokenizer.sep_token_id} - {None}
        return len(ids) - (1 if ids and ids[-1] in ends else 0)

    def asked_at_the_end(self, text: str) -> Row:
        """A text with everything written out in it, about whose last token something is asked. Raises InvalidRequest,
        ContextOverflow."""
        ids = tuple(self.plain(text))
        if len(ids) > self.max_tokens:
            raise ContextOverflow(
                f"query and document have {len(ids)} tokens, {self._reference} reads {self.max_tokens}; shorten them",
                prompt_tokens=len(ids),
                context_tokens=self.max_tokens,
            )
        return Row(ids=ids, asked=(len(ids) - 1,))

    def plain(self, text: str) -> list[int]:
        """The tokens of a text alone, without those at its ends. Raises InvalidRequest."""
        return list(self._encoded(text, None, None, special=False)["input_ids"])

    def is_special(self, ids: Sequence[int]) -> list[bool]:
        """Of each token, whether it stands for no text."""
        special = set(self.tokenizer.all_special_ids)
        return [each in special for each in ids]

    def _encoded(self, text: str, pair: str | None, limit: int | None, *, special: bool = True) -> Any:
        for each in (text, pair or ""):
            try:
                each.encode()
            except UnicodeEncodeError as error:
                raise InvalidRequest(f"the text has half a surrogate pair at character {error.start}") from error
        cutting = {} if limit is None else {"truncation": "longest_first", "max_length": limit}
        with self._lock:
            return guarded(
                lambda: self.tokenizer(
                    text, pair, add_special_tokens=special, return_attention_mask=False, verbose=False, **cutting
                ),
                "the tokenizer failed",
            )


def cut_notes(rows: Sequence[Row], max_tokens: int, what: str = "texts") -> list[str]:
    """A sentence about texts that were cut, if there are any."""
    count = sum(row.cut for row in rows)
    if not count:
        return []
    return [
        f"{count} of {len(rows)} {what} were longer than the {max_tokens} tokens that the model reads, and were cut"
    ]


def count(rows: Sequence[Row]) -> int:
    """Tokens in all of them."""
    return sum(len(row.ids) for row in rows)
