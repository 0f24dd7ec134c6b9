"""`kamado run`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..batch.runner import choice_document
from ..errors import InvalidRequest
from ..events import Event, Finished, Token
from ..files import replacing
from ..units import format_seconds
from .common import LoadOptions, Output, common_options, model_options, text_options
from .loading import loaded_model
from .prompt import check_text, read_prompt
from .speed import Speed

if TYPE_CHECKING:
    from ..results import Result


@click.command()
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("-o", "path", metavar="FILE", type=click.Path(path_type=Path), help="Write the answer to a file.")
@text_options
@model_options
@common_options
def run(
    model: str,
    prompt: str | None,
    *,
    path: Path | None,
    text: dict[str, Any],
    load: LoadOptions,
    out: Output,
) -> None:
    """Generate with MODEL. Without PROMPT, stdin is the prompt; on a terminal, chat.

    With PROMPT and piped stdin, stdin follows the prompt as a document. Several answers (--n) are separated by lines
    `--- 2 ---`.
    """
    for name in ("system", "stop"):
        check_text(f"--{name}", "".join(text.get(name, "")))
    if path is not None and not path.parent.is_dir():
        raise InvalidRequest(f"-o {path}: there is no folder {path.parent}")
    if path is not None and path.is_dir():
        raise InvalidRequest(f"-o {path} is a folder; give the name of a file")
    if prompt is None and _is_terminal(sys.stdin) and out.is_terminal and path is None and not out.is_json:
        from .chat import chat

        chat(model, text, load, out)
        return
    asked = read_prompt(prompt, raw=text.get("chat") is False, out=out)
    with loaded_model(model, load, out) as (_, loaded):
        if out.is_json or path is not None:
            result = loaded.generate(asked, **text)
            out.json(result_document(model, asked, text, result))
            if path is not None:
                _write(path, result, out)
            out.detail(f"{result.usage.completion_tokens} tokens in {format_seconds(result.timings.total_s)}")
        else:
            speed = show_stream(loaded.stream(asked, **text), text.get("n", 1), out)
            for line in speed.lines():
                out.detail(line)
            if "length" in speed.reasons and "max_tokens" not in text:
                out.note("the answer was cut: the model's context is full")


def _is_terminal(stream: Any) -> bool:
    return stream is not None and not stream.closed and bool(stream.isatty())


def show_stream(events: Iterable[Event], num_answers: int, out: Output) -> Speed:
    """Print answers as they come: the first one live, the others after it. Raises what a request failed of."""
    answers = _Answers(num_answers, out)
    try:
        with closing(events) as stream:  # type: ignore[type-var]  # a generator; closing it cancels the request
            for event in stream:
                answers.put(event)
    finally:
        answers.end()
    return answers.speed


class _Answers:
    """Puts the interleaved pieces of several answers in order."""

    def __init__(self, num_answers: int, out: Output) -> None:
        self._num_answers = num_answers
        self._out = out
        self._current = 0
        self._waiting = [""] * num_answers
        self._finished: set[int] = set()
        self._at_line_start = True
        self.speed = Speed()

    def put(self, event: Event) -> None:
        """One more event."""
        self.speed.put(event)
        if isinstance(event, Token):
            self._add(event.index, event.text)
        elif isinstance(event, Finished):
            self._add(event.index, event.text)
            if event.error is not None:
                raise event.error
            self._finished.add(event.index)
            self._advance()

    def _add(self, index: int, text: str) -> None:
        if index != self._current:
            self._waiting[index] += text
        elif text:
            self._at_line_start = text.endswith("\n")
            self._out.text(text)

    def _advance(self) -> None:
        while self._current in self._finished and self._current + 1 < self._num_answers:
            self.end()
            self._current += 1
            self._out.text(f"--- {self._current + 1} ---\n")
            self._add(self._current, self._waiting[self._current])

    def end(self) -> None:
        """An answer ends its line, as texts in files and pipes do."""
        if not self._at_line_start:
            self._out.text("\n")
            self._at_line_start = True


def result_document(model: str, prompt: str, options: dict[str, Any], result: Result) -> dict[str, Any]:
    """What --json prints."""
    return {
        "model": model,
        "request": {"prompt": prompt, **options},
        "text": result.text,
        "choices": [choice_document(choice) for choice in result.choices],
        "finish_reason": result.finish_reason,
        "usage": {
            "prompt_tokens": result.usage.prompt_tokens,
            "completion_tokens": result.usage.completion_tokens,
            "cached_tokens": result.usage.cached_tokens,
            "total_tokens": result.usage.total_tokens,
        },
        "timings": {
            "queued_s": result.timings.queued_s,
            "ttft_s": result.timings.ttft_s,
            "total_s": result.timings.total_s,
        },
        "recipe": dict(result.recipe),
    }


def joined_answers(result: Result) -> str:
    """All answers as one text, each ending its line."""
    parts = []
    for choice in result.choices:
        head = f"--- {choice.index + 1} ---\n" if choice.index else ""
        parts.append(head + choice.text + ("" if choice.text.endswith("\n") else "\n"))
    return "".join(parts)


def _write(path: Path, result: Result, out: Output) -> None:
    with replacing(path) as file:
        file.write(joined_answers(result).encode("utf-8", errors="replace"))
    out.line(str(path))
