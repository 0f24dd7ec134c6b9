"""Batches of texts: what a line asks for, and the line of results.jsonl for its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import InvalidRequest
from ..requests import TEXT_OPTION_NAMES
from ..results import Choice, Result
from ..turns import KINDS, relative_to, turns_relative_to
from .openai_lines import is_openai_line, options_of_openai_line

MIN_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON does not have."""


class TextAnswers:
    """See kamado.batch.runner.Answers."""

    identity: Mapping[str, Any] = {"makes": "text"}

    def __init__(self, inputs: Path = Path()) -> None:
        """Relative paths of pictures, sounds and videos start from `inputs`."""
        self._inputs = inputs

    def options(self, document: Mapping[str, Any]) -> Mapping[str, Any]:
        """See Answers."""
        options = self._asked(document)
        if "messages" in options:
            options["messages"] = turns_relative_to(self._inputs, options["messages"])
        for kind in KINDS:
            if kind in options:
                options[kind] = relative_to(self._inputs, options[kind])
        return options

    def _asked(self, document: Mapping[str, Any]) -> dict[str, Any]:
        if is_openai_line(document):
            return options_of_openai_line(document)
        options = {key: value for key, value in document.items() if key != "id"}
        if unknown := sorted(options.keys() - TEXT_OPTION_NAMES):
            raise InvalidRequest(f"unknown option: {', '.join(unknown)[:200]}")
        return options

    def seed(self, number: int) -> int:
        """See Answers."""
        return number

    def prepare(self, is_new: bool) -> None:
        """See Answers."""

    def keep(self, line_id: str | int, result: Result) -> dict[str, Any]:
        """See Answers."""
        return ok_result(line_id, result)

    def failed(self, line_id: str | int, message: str) -> dict[str, Any]:
        """See Answers."""
        return {"id": line_id, "status": "failed", "text": None, "error": message, "usage": None, "recipe": None}


def ok_result(line_id: str | int, result: Result) -> dict[str, Any]:
    """The line of results.jsonl for an answer. What depends on chance (timings, cache hits, request ids) is left out,
    so that an interrupted batch and an undisturbed one give the same file."""
    document: dict[str, Any] = {
        "id": line_id,
        "status": "ok",
        "text": result.text,
        "finish_reason": result.finish_reason,
        "error": None,
        "usage": {
            "prompt_tokens": result.usage.prompt_tokens,
            "completion_tokens": result.usage.completion_tokens,
            "total_tokens": result.usage.total_tokens,
        },
        "recipe": dict(result.recipe),
    }
    if result.num_asked > 1 or result.logprobs is not None:
        document["choices"] = [choice_document(choice) for choice in result.choices]
    return document


def choice_document(choice: Choice) -> dict[str, Any]:
    """One of several answers, as JSON."""
    document = asdict(choice)
    if choice.logprobs is None:
        del document["logprobs"]
    else:
        document["logprobs"] = [
            {**_logprob(token.chosen), "top": [_logprob(other) for other in token.top]} for token in choice.logprobs
        ]
    return document


def _logprob(token: Any) -> dict[str, Any]:
    return {"token_id": token.token_id, "text": token.text, "logprob": max(token.logprob, MIN_LOGPROB)}
