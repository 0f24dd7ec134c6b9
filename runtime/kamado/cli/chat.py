"""The chat on a terminal: line editing, history, streaming. What is said and done is in `conversation`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..checkpoint.home import default_home
from ..errors import InvalidRequest
from .common import LoadOptions
from .conversation import Conversation, Leave, Screen
from .loading import loaded_model
from .output import Output, printable

_UNUSABLE = {"n": "--n", "logprobs": "--logprobs", "chat": "--raw"}
HISTORY_NAME = "chat_history"


class TerminalScreen:
    """Shows a conversation on stdout."""

    def __init__(self, out: Output, *, colour: bool) -> None:
        self._out = out
        self._colour = colour
        self._at_line_start = True

    def answer(self, text: str) -> None:
        """See Screen."""
        self._out.text(text)
        self._at_line_start = text.endswith("\n")

    def end_answer(self, status: str) -> None:
        """See Screen."""
        if not self._at_line_start:
            self._write("\n")
        if status and not self._out.quiet:
            self._write(self._dim(f"[{status}]") + "\n")
        self._at_line_start = True

    def say(self, text: str) -> None:
        """See Screen."""
        self._write(self._dim(printable(text)) + "\n")

    def _dim(self, text: str) -> str:
        return f"\x1b[2m{text}\x1b[0m" if self._colour else text

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def chat(model: str, text: dict[str, Any], load: LoadOptions, out: Output) -> None:
    """Talk with a model until the person leaves. Raises what loading raises."""
    for name, option in _UNUSABLE.items():
        if name in text:
            raise InvalidRequest(f"{option} cannot be used in a chat; give a prompt as well")
    read = _line_reader()
    screen = TerminalScreen(out, colour=_wants_colour())
    with loaded_model(model, load, out) as (runtime, loaded):
        if not out.quiet:
            screen.say(f"{model}, {loaded.plan.context_tokens} tokens of context. /help shows commands, Ctrl-D leaves.")
        talk(Conversation(loaded, screen, options=text, stats=runtime.stats), read, screen)


def talk(conversation: Conversation, read: Callable[[], str], screen: Screen) -> None:
    """Read and take lines until Leave or the end of input. `read` raises KeyboardInterrupt and EOFError as a terminal
    does: the first Ctrl-C only clears the line, further ones say how to leave."""
    interrupts = 0
    while True:
        try:
            line = read()
        except KeyboardInterrupt:
            interrupts += 1
            if interrupts > 1:
                screen.say("Ctrl-D or /exit leaves.")
            continue
        except EOFError:
            return
        interrupts = 0
        try:
            conversation.take(line)
        except Leave:
            return
        except KeyboardInterrupt:
            continue  # a second Ctrl-C while an answer was being stopped


def _wants_colour() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _line_reader() -> Callable[[], str]:
    """A function that reads one message with line editing. prompt_toolkit is imported here: it costs 130 ms."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("escape", "c-j")  # what Enter is when it was typed before the prompt was there
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    # Multi-line, so that pasted text keeps its lines; Enter sends all the same.
    session: PromptSession[str] = PromptSession(
        ">>> ", multiline=True, prompt_continuation="... ", key_bindings=keys, history=_history()
    )
    return session.prompt


def _history() -> Any:
    """What was typed earlier, in a file that only its owner can read; in memory where there can be no file."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path = default_home() / HISTORY_NAME
    return FileHistory(str(path)) if _make_private(path) else InMemoryHistory()


def _make_private(path: Path) -> bool:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError:
        return False
    return True
