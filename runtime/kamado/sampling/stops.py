"""Where an answer ends, in text that arrives in pieces: at stop strings (Aho and Corasick 1975), at the end of a block
of code. No torch."""

from __future__ import annotations

from collections import deque

from .block import BlockEnd

BLOCK = "block"
"""In place of a stop string, where the end of a block ended the answer."""


class AnswerEnd:
    """Finds whichever of both comes first; see StopMatcher and BlockEnd."""

    def __init__(self, stops: tuple[str, ...], block: BlockEnd | None = None) -> None:
        self._stops = StopMatcher(stops)
        self._block = block

    def feed(self, text: str) -> tuple[str, str | None]:
        """More text. Returns what is now known to belong to the answer, and what ended it: a stop, BLOCK, or None."""
        known, hit = self._stops.feed(text)
        if self._block is None:
            return known, hit
        known, has_ended = self._block.feed(known)
        if hit is not None and not has_ended:
            rest, has_ended = self._block.flush()
            known += rest
        return known, BLOCK if has_ended else hit

    def flush(self) -> str:
        """The text has ended: what was held back belongs to the answer after all."""
        held = self._stops.flush()
        if self._block is None:
            return held
        known, has_ended = self._block.feed(held)
        return known if has_ended else known + self._block.flush()[0]


class StopMatcher:
    """Finds the end of an answer, and holds back what could still turn out to be the beginning of a stop string.

    The stop that is complete first wins; of several complete at the same character, the one that begins first, which
    is the longest. So how the text is cut into pieces never matters, and no text beyond the end is waited for.
    Cost: linear in the text, whatever the number of stops.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        """`stops`: texts that end the answer, none of them empty; none at all lets everything through."""
        if not all(stops):
            raise ValueError("a stop string is empty")
        self._next: list[dict[str, int]] = [{}]
        self._fail: list[int] = [0]
        self._depth: list[int] = [0]
        self._found: list[str | None] = [None]
        """The longest stop that ends in this state."""
        for stop in stops:
            self._add(stop)
        self._link()
        self._state = 0
        self._held = ""
        self._hit: str | None = None

    def feed(self, text: str) -> tuple[str, str | None]:
        """More text. Returns what is now known to belong to the answer, and the stop that ended it, or None.

        After a stop was found everything further is dropped.
        """
        if self._hit is not None:
            return "", self._hit
        if not self._next[0]:  # no stops at all
            return text, None
        known = self._held + text
        position = len(self._held)
        for character in text:
            position += 1
            self._state = self._step(self._state, character)
            found = self._found[self._state]
            if found is not None:
                self._hit, self._held = found, ""
                return known[: position - len(found)], found
        keep = self._depth[self._state]
        self._held = known[len(known) - keep :]
        return known[: len(known) - keep], None

    def flush(self) -> str:
        """The text has ended: what was held back belongs to the answer after all."""
        held, self._held, self._state = self._held, "", 0
        return held

    def _add(self, stop: str) -> None:
        state = 0
        for character in stop:
            following = self._next[state].get(character)
            if following is None:
                following = self._next[state][character] = len(self._next)
                self._next.append({})
                self._fail.append(0)
                self._depth.append(self._depth[state] + 1)
                self._found.append(None)
            state = following
        self._found[state] = stop

    def _link(self) -> None:
        """For each state, the state of its longest proper suffix, shallow states first."""
        queue = deque(self._next[0].values())
        while queue:
            state = queue.popleft()
            for character, following in self._next[state].items():
                queue.append(following)
                self._fail[following] = self._step(self._fail[state], character)
                if self._found[following] is None:
                    self._found[following] = self._found[self._fail[following]]

    def _step(self, state: int, character: str) -> int:
        while True:
            following = self._next[state].get(character)
            if following is not None:
                return following
            if state == 0:
                return 0
            state = self._fail[state]
