"""How fast a stream of events came, for people."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..events import Event, Finished, Token
from ..units import format_seconds


class Speed:
    """Watches the events of one request."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start = clock()
        self._first: float | None = None
        self._last = self._start
        self.num_tokens = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.proposed_tokens = 0
        self.accepted_tokens = 0
        self.reasons: list[str] = []

    def put(self, event: Event) -> None:
        """One more event."""
        if isinstance(event, Token):
            self._last = self._clock()
            if self._first is None:
                self._first = self._last
            self.num_tokens += 1
        elif isinstance(event, Finished):
            self.prompt_tokens = max(self.prompt_tokens, event.prompt_tokens)
            self.cached_tokens = max(self.cached_tokens, event.cached_tokens)
            self.proposed_tokens += event.proposed_tokens
            self.accepted_tokens += event.accepted_tokens
            self.reasons.append(event.reason)

    @property
    def tokens_per_s(self) -> float | None:
        """Of the tokens after the first one: how fast they follow each other."""
        if self._first is None or self._last <= self._first:
            return None
        return (self.num_tokens - 1) / (self._last - self._first)

    @property
    def first_s(self) -> float | None:
        """Seconds until the first token."""
        return None if self._first is None else self._first - self._start

    def lines(self) -> list[str]:
        """What -v says after an answer."""
        prompt = f"prompt {self.prompt_tokens} tokens" + (
            f" ({self.cached_tokens} cached)" if self.cached_tokens else ""
        )
        guessed = f" ({self.accepted_tokens} of {self.proposed_tokens} guessed right)" if self.proposed_tokens else ""
        parts = [prompt, f"answer {self.num_tokens} tokens{guessed}"]
        if self.first_s is not None:
            parts.append(f"first after {format_seconds(self.first_s)}")
        if self.tokens_per_s is not None:
            parts.append(f"{self.tokens_per_s:.1f} tokens/s")
        return [", ".join([*parts, "ended by " + "/".join(dict.fromkeys(self.reasons))])] if self.reasons else []
