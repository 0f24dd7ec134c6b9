"""The chat without a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fake_model import FakeModel
from kamado.cli.chat import talk
from kamado.cli.conversation import Conversation, Leave
from kamado.cli.main import main


class Recorder:
    """A screen that remembers."""

    def __init__(self) -> None:
        self.answers: list[str] = []
        self.said: list[str] = []
        self.statuses: list[str] = []
        self._live = ""

    def answer(self, text: str) -> None:
        self._live += text

    def end_answer(self, status: str) -> None:
        self.answers.append(self._live)
        self.statuses.append(status)
        self._live = ""

    def say(self, text: str) -> None:
        self.said.append(text)


def start(model: FakeModel | None = None, **options: Any) -> tuple[Conversation, Recorder, FakeModel]:
    model, screen = model or FakeModel(), Recorder()
    return Conversation(model, screen, options=options, stats=lambda: {"queued": 0}), screen, model


def test_turns_go_back_and_forth() -> None:
    chat, screen, model = start(system="Be brief.", temperature=0.0)
    chat.take("hello")
    chat.take("and again")
    assert screen.answers == ["You said: hello", "You said: and again"]
    assert model.requests[1] == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "You said: hello"},
            {"role": "user", "content": "and again"},
        ],
        "temperature": 0.0,
    }
    assert screen.statuses[0].startswith("3 tokens")


def test_ctrl_c_keeps_the_answer_so_far() -> None:
    chat, screen, model = start(FakeModel(interrupt_at=2))
    chat.take("hello you there")
    assert screen.answers == ["You said:"] and screen.statuses == ["stopped"]
    assert chat.turns[-1] == {"role": "assistant", "content": "You said:"}
    assert model.closed_streams == 1
    model.interrupt_at = None
    chat.take("go on")
    assert len(chat.turns) == 4


def test_ctrl_c_before_the_first_token_drops_the_message() -> None:
    chat, screen, _ = start(FakeModel(interrupt_at=0))
    chat.take("hello")
    assert chat.turns == [] and screen.statuses == ["stopped"]


def test_a_failed_answer_is_shown_and_the_chat_lives_on() -> None:
    chat, screen, _ = start()
    chat.take("boom now please")
    assert screen.said == ["the request failed: boom"] and screen.statuses == ["failed"]
    assert [turn["role"] for turn in chat.turns] == ["user", "assistant"]
    chat.take("hello")
    assert screen.answers[-1] == "You said: hello"


def test_a_full_context_names_both_numbers_and_cuts_nothing() -> None:
    chat, screen, _ = start()
    chat.take("short")
    before = list(chat.turns)
    chat.take("word " * 300)
    assert "304 tokens" in screen.said[0] and "holds 200" in screen.said[0] and "/clear" in screen.said[0]
    assert chat.turns == before
    chat.take("/clear")
    assert chat.turns == []


def test_an_answer_cut_short_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    chat, screen, _ = start(max_tokens=2)
    chat.take("hello")
    assert "cut at max_tokens 2" in screen.statuses[0]
    chat.take("/set max_tokens")
    monkeypatch.setattr(FakeModel, "answer", lambda self, resolved, asked, index: (["cut"], "length"))
    chat.take("hello")
    assert "context is full" in screen.statuses[1]


def test_retry_answers_the_last_message_again() -> None:
    chat, screen, model = start()
    chat.take("/retry")
    assert "no answer yet" in screen.said[0]
    chat.take("hello")
    chat.take("/retry")
    assert len(chat.turns) == 2 and len(model.requests) == 2
    assert model.requests[0]["messages"] == model.requests[1]["messages"]
    model.interrupt_at = 0
    chat.take("/retry")
    assert [turn["content"] for turn in chat.turns] == ["hello", "You said: hello"], (
        "nothing came, so the old one stays"
    )


def test_settings_are_checked() -> None:
    chat, screen, model = start()
    for line in (
        "/set temperature 0.5",
        "/set top-k 3",
        "/set stop END",
        '/set stop ["a", "b"]',
        "/set ignore_eos true",
    ):
        chat.take(line)
    assert chat.options == {"temperature": 0.5, "top_k": 3, "stop": ["a", "b"], "ignore_eos": True}
    chat.take("hi")
    assert model.requests[0]["temperature"] == 0.5
    for line in ("/set temperature -1", "/set temperature warm", "/set n 2", "/set top_k 1.5", "/set seed [1]"):
        chat.take(line)
        assert chat.options == {"temperature": 0.5, "top_k": 3, "stop": ["a", "b"], "ignore_eos": True}
    assert "n is no setting" in screen.said[-3] and "temperature must be" in screen.said[-5]
    chat.take("/set temperature")
    assert "temperature" not in chat.options
    chat.take("/set")
    assert "top_k = 3" in screen.said[-1]


def test_system_message() -> None:
    chat, screen, model = start()
    chat.take("/system")
    chat.take("/system You are a cat.")
    chat.take("/system")
    assert screen.said == ["There is no system message.", "The system message is set.", "You are a cat."]
    chat.take("hi")
    assert model.requests[0]["messages"][0] == {"role": "system", "content": "You are a cat."}
    chat.take("/system -")
    assert chat.messages()[0]["role"] == "user"


def test_unknown_commands_get_a_hint() -> None:
    chat, screen, model = start()
    chat.take("/sytem x")
    chat.take("/sys x")
    chat.take("/\x1b[2J")
    assert "/help" in screen.said[0] and "did you mean /system?" in screen.said[1]
    assert model.requests == []


def test_save(tmp_path: Path) -> None:
    chat, screen, _ = start(system="S", seed=1)
    chat.take("hello")
    for name in ("a.json", "a.txt"):
        chat.take(f"/save {tmp_path / name}")
        chat.take(f"/save {tmp_path / name}")
    saved = json.loads((tmp_path / "a.json").read_text())
    assert [turn["role"] for turn in saved["messages"]] == ["system", "user", "assistant"]
    assert (tmp_path / "a.txt").read_text() == "system:\nS\n\nuser:\nhello\n\nassistant:\nYou said: hello\n"
    (tmp_path / "mine").write_text("mine")
    screen.said.clear()
    for name in ("mine", "no/folder", "", "."):
        chat.take(f"/save {tmp_path / name}" if name else "/save")
    assert (
        "is there already" in screen.said[0] and "cannot write" in screen.said[1] and "needs the name" in screen.said[2]
    )
    assert (tmp_path / "mine").read_text() == "mine"


def test_other_commands() -> None:
    chat, screen, model = start()
    chat.take("hi")
    chat.take("/stats")
    assert "turns: 2" in screen.said[0] and "queued: 0" in screen.said[0]
    chat.take("/help")
    assert "/retry" in screen.said[1]
    chat.take("   ")
    chat.take("a\udcffb")
    assert "not valid Unicode" in screen.said[2] and len(model.requests) == 1
    for line in ("/exit", "/quit", "/EXIT"):
        with pytest.raises(Leave):
            chat.take(line)


def reader(*lines: str | type[BaseException]) -> Any:
    items: Iterator[str | type[BaseException]] = iter(lines)

    def read() -> str:
        item = next(items)
        if isinstance(item, str):
            return item
        raise item

    return read


def test_ctrl_c_and_ctrl_d_at_the_prompt() -> None:
    chat, screen, model = start()
    talk(chat, reader(KeyboardInterrupt, "hi", KeyboardInterrupt, KeyboardInterrupt, "ho", EOFError), screen)
    assert screen.said == ["Ctrl-D or /exit leaves."]
    assert len(model.requests) == 2
    talk(chat, reader("/exit", "never read"), screen)
    assert len(model.requests) == 2


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize("options", [("--n", "2"), ("--logprobs", "1"), ("--raw",)])
def test_options_that_make_no_sense_in_a_chat(options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kamado.cli.run._is_terminal", lambda stream: True)
    monkeypatch.setattr("kamado.cli.output.Output.is_terminal", True)
    assert main(["run", "m", *options]) == 2
