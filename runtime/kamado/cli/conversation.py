"""A conversation and its commands, without a terminal: what is typed comes in, a screen shows what goes out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

from ..errors import ContextOverflow, InvalidRequest, KamadoError
from ..events import Event, Finished, Token
from ..files import replacing
from .kinds import check_text_options
from .speed import Speed

HELP = """\
/help               this
/clear              a new conversation; system message and settings stay
/system TEXT        set the system message; without TEXT, show it; /system - removes it
/retry              answer the last message once more
/set NAME VALUE     set an option, like /set temperature 0.7; /set NAME takes it back; /set shows all
/save FILE          write the conversation to a file, as JSON if it ends in .json
/stats              what the runtime holds, and the size of the conversation
/exit               leave (or Ctrl-D)
Enter sends, Alt-Enter starts a new line. Ctrl-C stops an answer, and clears the line."""

SETTINGS = (
    *("temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "presence_penalty"),
    *("frequency_penalty", "max_tokens", "seed", "stop", "ignore_eos"),
)


class ChatModel(Protocol):
    """What a chat needs of a model."""

    def stream(self, prompt: str | None = None, **options: Any) -> Iterator[Event]:
        """See `kamado.api.Model.stream`."""


class Screen(Protocol):
    """Where a chat shows things."""

    def answer(self, text: str) -> None:
        """A piece of the answer."""

    def end_answer(self, status: str) -> None:
        """The answer is over; `status` is a line about it, possibly empty."""

    def say(self, text: str) -> None:
        """Something that is not from the model."""


class Leave(Exception):
    """The person wants to leave."""


class Conversation:
    """Turns so far, options, and what each typed line does to them."""

    def __init__(
        self,
        model: ChatModel,
        screen: Screen,
        *,
        options: Mapping[str, Any],
        stats: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        """`options` are generation options, `system` among them; `stats` gives what /stats shows."""
        self._model = model
        self._screen = screen
        self._stats = stats
        self.options = {name: value for name, value in options.items() if name != "system"}
        self.system: str | None = options.get("system")
        self.turns: list[dict[str, str]] = []
        self._last_speed: Speed | None = None
        self._saved: set[Path] = set()
        self._commands: Mapping[str, Callable[[str], None]] = {
            "/help": lambda _: self._screen.say(HELP),
            "/exit": self._leave,
            "/quit": self._leave,
            "/bye": self._leave,
            "/clear": self._clear,
            "/system": self._set_system,
            "/retry": self._retry,
            "/set": self._set,
            "/save": self._save,
            "/stats": self._show_stats,
        }

    def take(self, line: str) -> None:
        """What was typed: a command or a message. Raises Leave; shows other errors and lives on."""
        text = line.strip()
        try:
            if not text:
                return
            name, _, rest = text.partition(" ")
            if text.startswith("/") and "\n" not in name:
                self._command(name)(rest.strip())
            else:
                self.send(line.strip("\n"))
        except KamadoError as error:
            self._report(error)

    def send(self, text: str) -> None:
        """A message of the person and the answer to it. A message without an answer is not part of the conversation."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise InvalidRequest("the message has characters that are not valid Unicode; it was not sent") from None
        self.turns.append({"role": "user", "content": text})
        try:
            self._answer()
        finally:
            if self.turns[-1]["role"] == "user":
                self.turns.pop()

    def messages(self) -> list[dict[str, str]]:
        """The turns as the model gets them."""
        head = [{"role": "system", "content": self.system}] if self.system else []
        return [*head, *self.turns]

    def _answer(self) -> None:
        """Let the model answer the last turn. A stopped or failed answer stays as far as it came."""
        pieces: list[str] = []
        speed = self._last_speed = Speed()
        error: KamadoError | None = None
        status = "stopped"
        try:
            with closing(self._model.stream(messages=self.messages(), **self.options)) as events:  # type: ignore[type-var]
                for event in events:
                    speed.put(event)
                    self._show(event, pieces)
            status = self._status(speed)
        except KeyboardInterrupt:
            pass  # Ctrl-C stops the answer, not the chat
        except KamadoError as caught:
            error, status = caught, "failed" if pieces else ""
        if pieces or status not in ("stopped", ""):
            self.turns.append({"role": "assistant", "content": "".join(pieces)})
        if pieces or status:
            self._screen.end_answer(status)
        if error is not None:
            self._report(error)

    def _report(self, error: KamadoError) -> None:
        text = str(error)
        if isinstance(error, ContextOverflow):
            text = (
                f"The conversation is {error.prompt_tokens} tokens long, but the model's context holds "
                f"{error.context_tokens}. /clear starts a new one; /save FILE keeps this one."
            )
        self._screen.say(text)

    def _show(self, event: Event, pieces: list[str]) -> None:
        if isinstance(event, (Token, Finished)) and event.text:
            pieces.append(event.text)
            self._screen.answer(event.text)
        if isinstance(event, Finished) and event.error is not None:
            raise event.error

    def _status(self, speed: Speed) -> str:
        parts = [f"{speed.num_tokens} tokens"]
        if speed.tokens_per_s is not None:
            parts.append(f"{speed.tokens_per_s:.1f} tokens/s")
        if "length" in speed.reasons:
            limit = self.options.get("max_tokens")
            is_limit = limit is not None and speed.num_tokens >= limit
            parts.append(
                f"cut at max_tokens {limit}" if is_limit else "cut: the model's context is full, /clear starts anew"
            )
        return ", ".join(parts)

    def _command(self, name: str) -> Callable[[str], None]:
        command = self._commands.get(name.lower())
        if command is None:
            near = [known for known in self._commands if known.startswith(name.lower()[:3])]
            hint = f"did you mean {near[0]}? " if near else ""
            raise InvalidRequest(f"{name} is no command; {hint}/help shows all. A message cannot start with a slash.")
        return command

    def _leave(self, _: str) -> None:
        raise Leave

    def _clear(self, _: str) -> None:
        self.turns.clear()
        self._screen.say("A new conversation.")

    def _set_system(self, text: str) -> None:
        if not text:
            self._screen.say(self.system or "There is no system message.")
            return
        self.system = None if text == "-" else text
        self._screen.say("The system message is removed." if text == "-" else "The system message is set.")

    def _retry(self, _: str) -> None:
        if not self.turns:
            raise InvalidRequest("there is no answer yet to make again")
        before = self.turns.pop()
        try:
            self._answer()
        finally:
            if self.turns[-1]["role"] == "user":
                self.turns.append(before)  # nothing came instead

    def _set(self, rest: str) -> None:
        name, _, value = rest.partition(" ")
        name = name.replace("-", "_")
        if not name:
            shown = [f"{key} = {json.dumps(self.options[key], ensure_ascii=False)}" for key in sorted(self.options)]
            self._screen.say(
                "\n".join(shown) or f"Everything is as the model's makers set it. Settings: {', '.join(SETTINGS)}"
            )
            return
        if name not in SETTINGS:
            raise InvalidRequest(f"{name} is no setting; there are {', '.join(SETTINGS)}")
        if not value:
            self.options.pop(name, None)
            self._screen.say(f"{name} is back to its default.")
            return
        changed = {**self.options, name: parse_setting(name, value.strip())}
        check_text_options(changed)
        self.options = changed
        self._screen.say(f"{name} = {json.dumps(changed[name], ensure_ascii=False)}")

    def _save(self, name: str) -> None:
        if not name:
            raise InvalidRequest("/save needs the name of a file")
        path = Path(name).expanduser().absolute()
        if path.exists() and path not in self._saved:
            raise InvalidRequest(f"{path} is there already; choose another name")
        if path.suffix == ".json":
            text = (
                json.dumps({"messages": self.messages(), "options": self.options}, ensure_ascii=False, indent=2) + "\n"
            )
        else:
            text = "\n\n".join(f"{turn['role']}:\n{turn['content']}" for turn in self.messages()) + "\n"
        try:
            with replacing(path) as file:
                file.write(text.encode("utf-8", errors="replace"))
        except OSError as error:
            raise InvalidRequest(f"cannot write {path}: {error.strerror or error}") from error
        self._saved.add(path)
        self._screen.say(f"Saved to {path}.")

    def _show_stats(self, _: str) -> None:
        lines = [f"turns: {len(self.turns)}"]
        if self._last_speed is not None:
            lines += self._last_speed.lines()
        lines += [f"{name}: {json.dumps(value, default=str)}" for name, value in self._stats().items()]
        self._screen.say("\n".join(lines))


def parse_setting(name: str, value: str) -> Any:
    """What `/set name value` means: numbers and true or false as such, a stop text as it is or as JSON."""
    if name == "stop" and not value.startswith(("[", '"')):
        return [value]
    try:
        return json.loads(value)
    except ValueError:
        raise InvalidRequest(f"{value!r} is no value for {name}; write a number like 0.7, true or false") from None
