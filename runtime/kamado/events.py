"""What a request emits while it runs. A list of results is this stream, collected.

Order: one `Started`, any number of `Token`, `Progress`, `Preview` and `Media`, exactly one `Finished`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length", "complete", "cancelled", "deadline", "failed"]


@dataclass(frozen=True, slots=True)
class Started:
    """The request got its first forward."""

    request_id: str


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token and its natural-log probability under the model, before temperature and filters."""

    token_id: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token.

    `text` is what became readable with it: whole characters only, possibly empty, never part of a stop string.
    """

    request_id: str
    index: int
    """Which of the request's `n` answers this belongs to, from 0."""
    token_id: int
    text: str
    logprob: TokenLogprob | None = None
    top_logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """`step` of `total` steps are done."""

    request_id: str
    step: int
    total: int
    index: int = 0
    """Which of the request's `n` answers this is about, from 0."""


@dataclass(frozen=True, slots=True)
class Preview:
    """An unfinished picture."""

    request_id: str
    step: int
    image: Any
    index: int = 0
    """Which of the request's `n` answers this becomes, from 0."""


@dataclass(frozen=True, slots=True)
class Media:
    """One finished picture, sound, video, mesh, transcript, ...; or a piece of one that goes out before the rest."""

    request_id: str
    index: int
    kind: Literal["image", "audio", "video", "mesh", "score", "transcript", "embedding", "scores"]
    data: Any
    """PIL image, or one of `kamado.outputs`."""
    is_part: bool = False
    """Whether more of it follows; pieces in order are the whole."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of one answer (`index`) of a request.

    `text` is the remainder that was held back (a half-seen stop string that never came), usually empty.
    """

    request_id: str
    reason: FinishReason
    index: int = 0
    text: str = ""
    error: Exception | None = None
    stop: str | int | None = None
    """The stop string or end token that ended it."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens whose state was taken from the prefix cache."""
    proposed_tokens: int = 0
    """Tokens that were guessed and checked, and how many of them were right."""
    accepted_tokens: int = 0
    output: Any = field(default=None, repr=False)


Event = Started | Token | Progress | Preview | Media | Finished
