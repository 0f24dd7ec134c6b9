"""Text of tokens that arrive one by one. No torch, no tokenizer: it takes a decode function."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_REPLACEMENT = "\ufffd"
_MAX_HELD = 3
"""A UTF-8 character has at most 4 bytes, so an unfinished one shows as at most 3 replacement characters."""
_MAX_LATE = 4
"""So many tokens later, a replacement character is no longer a character that may yet be finished."""
_MIN_CONTEXT = 6
_MAX_CONTEXT = 16
_MAX_PENDING = 8


class IncrementalDetokenizer:
    """Emits whole characters only, as soon as they are known.

    All that `feed` and `flush` return is together what the tokens add to the decoded prompt: each token is decoded
    within a window of tokens before it, because decoders treat the beginning of a text differently (a leading space
    is dropped) and because a character may be spread over tokens. A window never grows beyond about thirty tokens,
    so the cost of a token does not depend on the length of the text.

    Bytes that are no character come out as U+FFFD at most four tokens late. A decoder that blames a whole run of byte
    tokens for one wrong byte (Llama's byte fallback) may show such a run differently when decoded as a whole.
    """

    def __init__(self, decode: Callable[[list[int]], str], prompt_tokens: Sequence[int]) -> None:
        """`decode` turns token ids into text, leaving out special tokens and without cleaning up spaces."""
        self._decode = decode
        self._ids: list[int] = []
        """The window: context, then pending tokens."""
        self._num_context = 0
        self._context = ""
        """Text of the context, all of which was emitted."""
        self._emitted = ""
        """What was emitted of the text of the pending tokens."""
        self._window = ""
        """Text of the whole window, as last decoded."""
        self._lengths: list[int] = []
        """Length of the pending text after each pending token."""
        self._start(prompt_tokens)

    def feed(self, token_id: int) -> str:
        """One more token; returns the characters that are complete with it, often one or more, sometimes none."""
        self._ids.append(token_id)
        text = self._pending_text()
        if not text and self._context:
            # It shows nothing (a special token). As context it would only push out what does show.
            self._ids.pop()
            return ""
        self._lengths.append(len(text))
        new = self._emit(text[: len(text) - self._num_held(text)])
        if len(self._emitted) >= len(text):
            self._commit()
        elif len(self._lengths) > _MAX_PENDING and not self._shorten(text):
            new += self._emit(text)
            self._commit()
        return new

    def flush(self) -> str:
        """No more tokens: what was held back, as it is."""
        if not self._lengths:
            return ""
        new = self._emit(self._pending_text())
        self._commit()
        return new

    def _start(self, prompt_tokens: Sequence[int]) -> None:
        """The end of the prompt becomes the context, but for what shows nothing at its very end."""
        length, end = 2 * _MAX_CONTEXT, len(prompt_tokens)
        while end > 0:
            self._ids = list(prompt_tokens[max(0, end - length) : end])
            self._context = self._decode(self._ids)
            if self._context:
                break
            end -= length
        self._num_context = len(self._ids)
        self._trim()

    def _pending_text(self) -> str:
        text = self._window = self._decode(self._ids)
        context = self._context
        new = text[len(context) :]
        # A wrong byte may change how the bytes before it are shown; what was emitted stays, the rest stands alone.
        changed = not text.startswith(context) or (context.endswith(_REPLACEMENT) and new.startswith(_REPLACEMENT))
        return self._decode(self._ids[self._num_context :]) if changed else new

    def _num_held(self, text: str) -> int:
        """How many characters at the end of the pending text may be parts of an unfinished character."""
        lengths = self._lengths
        if len(lengths) > 1 and lengths[-1] < lengths[-2]:
            return 0  # Text became shorter: bytes have just become a character, which happens to be U+FFFD itself.
        held = 0
        while held < _MAX_HELD and text.endswith(_REPLACEMENT, 0, len(text) - held):
            held += 1
        if len(lengths) > _MAX_LATE:
            held = min(held, max(0, len(text) - lengths[-1 - _MAX_LATE]))
        return held

    def _emit(self, text: str) -> str:
        new = text[len(self._emitted) :]
        self._emitted += new
        return new

    def _commit(self) -> None:
        """Everything pending was emitted and becomes context."""
        self._num_context = len(self._ids)
        self._lengths.clear()
        self._emitted = ""
        self._context = self._window
        if self._num_context > _MAX_CONTEXT:
            self._trim()

    def _trim(self) -> None:
        """Shorten the context to a few tokens that show something and do not begin within a character."""
        for length in range(_MIN_CONTEXT, min(_MAX_CONTEXT, len(self._ids)) + 1):
            ids = self._ids[-length:]
            text = self._decode(ids)
            if text and _REPLACEMENT not in text:
                self._ids, self._context, self._num_context = ids, text, length
                return
        if len(self._ids) > 2 * _MAX_CONTEXT:
            self._ids = self._ids[-_MAX_CONTEXT:]
            self._context, self._num_context = self._decode(self._ids), len(self._ids)

    def _shorten(self, text: str) -> bool:
        """Too much is pending: make context of the oldest pending tokens, all of whose text was emitted, and cut
        between characters, as the parts' own texts tell.

        Returns False, and changes nothing, when no place to cut leaves the rest of `text` as it is.
        """
        pending = self._ids[self._num_context :]
        whole = self._decode(pending)
        for cut in range(len(pending) - _MAX_LATE, 0, -1):
            context = self._decode(pending[:cut])
            rest = self._decode(pending[cut:])
            gone = len(text) - len(rest)
            if context and whole == context + rest and text.endswith(rest) and gone <= len(self._emitted):
                self._ids, self._num_context, self._context = pending, cut, context
                self._emitted = self._emitted[gone:]
                self._lengths = [max(0, length - gone) for length in self._lengths[cut:]]
                return True
        return False
