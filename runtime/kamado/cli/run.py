"""`kamado run`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..batch.texts import choice_document
from ..code_requests import CODE_OPTION_NAMES
from ..errors import Cancelled, InvalidRequest, KamadoError
from ..events import Event, Finished, Token
from ..files import check_place, replacing
from ..media.saving import media_suffixes
from ..results import Failure, failure_notes
from ..units import format_seconds
from .common import LoadOptions, Output, SectionedCommand, common_options, model_options, text_options
from .kinds import as_typed, check_values, options_for
from .loading import abilities, loaded_model
from .media import run_media
from .media_options import INPUT_FLAGS, Given, media_options
from .partly import check_whole
from .picture_options import picture_options
from .pictures import run_pictures
from .prompt import read_before_cursor, read_prompt
from .speed import Speed

if TYPE_CHECKING:
    from ..results import Result


@click.command(cls=SectionedCommand)
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("-o", "path", metavar="FILE", type=click.Path(path_type=Path), help="Write the answer to a file.")
@text_options
@picture_options
@media_options
@click.option(
    "--preview", "previews", metavar="DIR", type=click.Path(path_type=Path), help="Write unfinished pictures there."
)
@model_options
@common_options
def run(
    model: str,
    prompt: str | None,
    *,
    path: Path | None,
    given: Given,
    previews: Path | None,
    load: LoadOptions,
    out: Output,
) -> None:
    """Generate with MODEL: text, pictures, sound, video, ..., as it makes. Options that it cannot use are an error.

    Text goes to stdout. Without PROMPT, stdin is the prompt; on a terminal, chat. With PROMPT and piped stdin, stdin
    follows the prompt as a document. Several answers (--n) are separated by lines `--- 2 ---`.

    Pictures go to FILE (.png, .webp or .jpg; several to FILE-1, FILE-2, ...), or to new files in the current folder,
    and their paths to stdout, and so do sounds, videos and meshes. Each holds its recipe: `kamado replay` makes a
    picture again. Transcripts, scores and vectors go to stdout, or to FILE.
    """
    check_values(given)
    if path is not None and not path.parent.is_dir():
        raise InvalidRequest(f"-o {path}: there is no folder {path.parent}")
    if path is not None and path.is_dir():
        raise InvalidRequest(f"-o {path} is a folder; give the name of a file")
    found = abilities(model, load, out)
    kind, options = options_for(found, model, given)
    if kind == "image":
        kinds = found.makes
        run_pictures(model, prompt, path=path, previews=previews, kinds=kinds, options=options, load=load, out=out)
        return
    if previews is not None:
        raise InvalidRequest(f"--preview is for picture models, and {model} makes {' and '.join(found.makes)}")
    if found.takes is not None:
        kinds, takes = found.makes, found.takes
        run_media(model, prompt, path=path, kinds=kinds, takes=takes, options=options, load=load, out=out)
        return
    if not options.keys().isdisjoint(CODE_OPTION_NAMES):
        _run_text(model, read_before_cursor(prompt, out), path, options, load, out)
        return
    if prompt is None and (shown := [name for name in INPUT_FLAGS if name in options]):
        raise InvalidRequest(f"--{shown[0]} needs a PROMPT: what is asked about it")
    if prompt is None and _is_terminal(sys.stdin) and out.is_terminal and path is None and not out.is_json:
        from .chat import chat

        chat(model, options, load, out)
        return
    _run_text(model, read_prompt(prompt, raw=given.text.get("chat") is False, out=out), path, options, load, out)


def _run_text(
    model: str, asked: str, path: Path | None, options: dict[str, Any], load: LoadOptions, out: Output
) -> None:
    if path is not None:
        if path.suffix.lower() in media_suffixes():
            raise InvalidRequest(f"-o {path}: {model} makes text, which is no {path.suffix.lower()} file; name a .txt")
        check_place(path)
    with loaded_model(model, load, out, {"prompt": asked, **options}) as (_, loaded):
        if out.is_json or path is not None:
            result = loaded.generate(asked, **options)
            out.json(result_document(model, asked, options, result))
            if path is not None:
                _write(path, result, out)
            out.detail(f"{result.usage.completion_tokens} tokens in {format_seconds(result.timings.total_s)}")
            missing = result.failure_notes
        else:
            speed, missing = show_stream(loaded.stream(asked, **options), options.get("n", 1), out)
            for line in speed.lines():
                out.detail(line)
            if "length" in speed.reasons and "max_tokens" not in options:
                out.note("the answer was cut: the model's context is full")
    check_whole(missing, out)


def _is_terminal(stream: Any) -> bool:
    return stream is not None and not stream.closed and bool(stream.isatty())


def show_stream(events: Iterable[Event], num_answers: int, out: Output) -> tuple[Speed, tuple[str, ...]]:
    """Print answers as they come: the first one live, the others after it. Raises what ended a request; answers that
    failed while others did not are returned, a sentence each."""
    answers = _Answers(num_answers, out)
    try:
        with closing(events) as stream:  # type: ignore[type-var]  # a generator; closing it cancels the request
            for event in stream:
                answers.put(event)
    finally:
        answers.end()
    return answers.speed, answers.missing()


class _Answers:
    """Puts the interleaved pieces of several answers in order."""

    def __init__(self, num_answers: int, out: Output) -> None:
        self._num_answers = num_answers
        self._out = out
        self._current = 0
        self._waiting = [""] * num_answers
        self._finished: set[int] = set()
        self._failures: list[Failure] = []
        self._at_line_start = True
        self.speed = Speed()

    def put(self, event: Event) -> None:
        """One more event."""
        self.speed.put(event)
        if isinstance(event, Token):
            self._add(event.index, event.text)
        elif isinstance(event, Finished):
            self._add(event.index, event.text)
            if isinstance(event.error, Cancelled):
                raise event.error
            if isinstance(event.error, KamadoError):
                self._failures.append(Failure(index=event.index, seed=None, error=event.error))
            self._finished.add(event.index)
            self._advance()

    def missing(self) -> tuple[str, ...]:
        """There are no more events. Raises the first failure if no answer was made."""
        if len(self._failures) == len(self._finished) > 0:
            raise self._failures[0].error
        return failure_notes(self._failures, self._num_answers, "answer")

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
        "request": {"prompt": prompt, **as_typed(options)},
        "text": result.text,
        "choices": [choice_document(choice) for choice in result.choices],
        "failures": [failure.as_dict() for failure in result.failures],
        "finish_reason": result.finish_reason,
        "usage": {
            "prompt_tokens": result.usage.prompt_tokens,
            "completion_tokens": result.usage.completion_tokens,
            "cached_tokens": result.usage.cached_tokens,
            "proposed_tokens": result.usage.proposed_tokens,
            "accepted_tokens": result.usage.accepted_tokens,
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
