"""OpenAI batch lines: `{"custom_id", "method", "url", "body"}` for chat completions and completions.

Field names and meanings: OpenAI's API reference, "Batch", "Chat completions" and "Completions". A field that would
change the answer and that Kamado cannot honour is an error, never ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import InvalidRequest
from ..turns import split_turns

_CHAT_URL = "/v1/chat/completions"
_TEXT_URL = "/v1/completions"
_LINE_KEYS = frozenset({"custom_id", "method", "url", "body"})

# Fields that mean the same under the same name, Kamado's own sampling options among them.
_SAME = frozenset(
    {"temperature", "top_p", "n", "stop", "seed", "presence_penalty", "frequency_penalty", "logit_bias", "max_tokens"}
    | {"top_k", "min_p", "typical_p", "repetition_penalty", "ignore_eos"}
)
# Fields that say who asks and how it is billed and kept; they do not touch the answer. The model is the command's.
_NO_EFFECT = frozenset(
    {
        "model",
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
    }
)
# Fields that are fine as long as they ask for what happens anyway.
_ONLY_VALUES: Mapping[str, Callable[[Any], bool]] = {
    "stream": lambda value: value is False,
    "response_format": lambda value: value == {"type": "text"},
    "modalities": lambda value: value == ["text"],
    "echo": lambda value: value is False,
    "best_of": lambda value: value == 1 and value is not True,
    "tools": lambda value: value == [],
    "tool_choice": lambda value: value == "none",
    "parallel_tool_calls": lambda value: isinstance(value, bool),
}
_COMPLETION_TOKENS = 16
"""What /v1/completions makes when max_tokens is missing."""


def is_openai_line(document: Mapping[str, Any]) -> bool:
    """Whether the line is meant as an OpenAI batch line."""
    return "body" in document or "custom_id" in document


def options_of_openai_line(document: Mapping[str, Any]) -> dict[str, Any]:
    """Kamado's options for the line. Raises InvalidRequest."""
    if unknown := sorted(document.keys() - _LINE_KEYS):
        raise InvalidRequest(
            f"an OpenAI batch line has custom_id, method, url and body, not {', '.join(unknown)[:200]}"
        )
    if document.get("method", "POST") != "POST":
        raise InvalidRequest(f"method must be POST, not {document['method']!r:.40}")
    body = document.get("body")
    if not isinstance(body, dict):
        raise InvalidRequest("body must be an object: the request as it would be sent to the url")
    given = {name: value for name, value in body.items() if value is not None}
    url = document.get("url")
    if url == _CHAT_URL:
        return _chat_options(given)
    if url == _TEXT_URL:
        return _completion_options(given)
    raise InvalidRequest(f"url must be {_CHAT_URL} or {_TEXT_URL}, not {url!r:.80}")


def _chat_options(given: dict[str, Any]) -> dict[str, Any]:
    options = _common_options(given, {"messages", "max_completion_tokens", "logprobs", "top_logprobs"})
    if "messages" not in given:
        raise InvalidRequest("body has no messages")
    options["messages"] = _plain_messages(given["messages"])
    if "max_completion_tokens" in given:
        options["max_tokens"] = given["max_completion_tokens"]
    wanted = given.get("logprobs", False)
    if not isinstance(wanted, bool):
        raise InvalidRequest(f"logprobs must be true or false, not {wanted!r:.40}")
    if wanted:
        options["logprobs"] = given.get("top_logprobs", 0)
    elif "top_logprobs" in given:
        raise InvalidRequest("top_logprobs needs logprobs: true")
    return options


def _completion_options(given: dict[str, Any]) -> dict[str, Any]:
    options = _common_options(given, {"prompt", "logprobs", "suffix"})
    prompt = given.get("prompt")
    if isinstance(prompt, str):
        options["prompt"] = prompt
    elif isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        options["prompt_tokens"] = prompt
    else:
        raise InvalidRequest("prompt must be one text or one list of token ids; give several prompts in several lines")
    if "logprobs" in given:
        options["logprobs"] = given["logprobs"]
    if given.get("suffix", "") != "":
        options["suffix"] = given["suffix"]
    options.setdefault("max_tokens", _COMPLETION_TOKENS)
    return options | {"chat": False} if "prompt" in options else options


def _common_options(given: Mapping[str, Any], own: set[str]) -> dict[str, Any]:
    for name, is_usual in _ONLY_VALUES.items():
        if name in given and not is_usual(given[name]):
            raise InvalidRequest(f"{name} = {given[name]!r:.80} cannot be honoured; leave {name} out")
    if unknown := sorted(given.keys() - own - _SAME - _NO_EFFECT - _ONLY_VALUES.keys()):
        raise InvalidRequest(f"body has fields that cannot be honoured: {', '.join(unknown)[:200]}")
    return {name: value for name, value in given.items() if name in _SAME}


def _plain_messages(messages: Any) -> Any:
    """Messages with contents given as lists of text parts joined; whether a model takes other parts is for it to say.
    Raises InvalidRequest for what is no part."""
    if not isinstance(messages, list):
        return messages
    return [_plain_message(turn) if isinstance(turn, dict) else turn for turn in messages]


def _plain_message(turn: Mapping[str, Any]) -> dict[str, Any]:
    content = turn.get("content")
    if not isinstance(content, list):
        return dict(turn)
    texts = [part["text"] for part in content if _is_text(part)]
    if len(texts) == len(content):
        return {**turn, "content": "".join(texts)}
    split_turns([turn])
    return dict(turn)


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
