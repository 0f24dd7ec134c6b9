"""The chat, as a person at a terminal sees it, with the real model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import PseudoTerminal

pytestmark = pytest.mark.slow


def test_a_chat(terminal: Callable[..., PseudoTerminal], smollm2: Path, tmp_path: Path) -> None:
    chat = terminal("run", smollm2, "--temperature", "0", "--max-tokens", "16")
    chat.wait_for("8192 tokens of context")
    chat.wait_for(">>>")
    chat.type("What is the capital of France?\r")
    chat.wait_for("Paris")
    chat.wait_for(r"\[\d+ tokens, [\d.]+ tokens/s")
    chat.wait_for(">>>")
    chat.type("/set temperature warm\r")
    chat.wait_for("is no value for temperature")
    chat.type("one line\x1b\ranother line\r")
    chat.wait_for(r"\[\d+ tokens")
    chat.type("\x1b[200~pasted\nlines\x1b[201~\r")
    chat.wait_for(r"\[\d+ tokens")
    chat.type(f"/save {tmp_path / 'saved.txt'}\r")
    chat.wait_for("Saved to")
    chat.type("/exit\r")
    assert chat.wait() == 0
    saved = (tmp_path / "saved.txt").read_text()
    assert "user:\none line\nanother line\n" in saved and "user:\npasted\nlines\n" in saved
    history = tmp_path / "home" / "chat_history"
    assert "What is the capital of France?" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


def test_ctrl_c_stops_the_answer_and_not_the_chat(terminal: Callable[..., PseudoTerminal], smollm2: Path) -> None:
    chat = terminal("run", smollm2, "--ignore-eos")
    chat.wait_for(">>>")
    chat.type("Tell me a very long story.\r")
    chat.wait_for(r"story\.")
    chat.wait_for(r"(?s)(\w+\W+){20}")  # well past the line that was typed, which the editor shows twice
    chat.type("\x03")
    chat.wait_for(r"\[stopped\]")
    chat.wait_for(">>>")
    chat.type("half a line\x03")
    chat.wait_for(">>>")
    chat.type("\x03")
    chat.wait_for("Ctrl-D or /exit leaves")
    chat.type("/stats\r")
    chat.wait_for("turns: 2")
    chat.wait_for(">>>")
    chat.type("\x04")
    assert chat.wait() == 0


def test_a_full_context_is_said_and_survived(terminal: Callable[..., PseudoTerminal], smollm2: Path) -> None:
    chat = terminal("run", smollm2, "--max-tokens", "4", "--kv-tokens", "9000")
    chat.wait_for(">>>")
    chat.type("\x1b[200~" + "word " * 9000 + "\x1b[201~\r")
    found = chat.wait_for(r"context holds 8192[^\n]*/clear")
    assert "The conversation is 90" in found
    chat.type("hello\r")
    chat.wait_for(r"\[4 tokens")
    chat.wait_for(">>>")
    chat.type("\x04")
    assert chat.wait() == 0
