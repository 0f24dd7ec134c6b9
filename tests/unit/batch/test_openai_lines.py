"""OpenAI batch lines become Kamado's options, or an error of that line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kamado.batch.lines import InputLine, LineError, parse_line
from kamado.batch.texts import TextAnswers
from kamado.errors import InvalidRequest

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


def parse(url: str, body: Any, **line: Any) -> Any:
    document = {"custom_id": "c1", "method": "POST", "url": url, "body": body, **line}
    return parse_line(InputLine(1, "d", json.dumps(document).encode()), TextAnswers().options)


def test_chat() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    body = {"model": "any", "messages": messages, "max_completion_tokens": 5, "temperature": 0.5, "logprobs": True}
    request = parse(CHAT, body | {"top_logprobs": 2, "user": "u", "stream": False, "stop": None})
    assert request.id == "c1"
    assert request.options == {
        "messages": [{"role": "user", "content": "ab"}],
        "max_tokens": 5,
        "temperature": 0.5,
        "logprobs": 2,
    }


def test_completions() -> None:
    assert parse(TEXT, {"prompt": "p"}).options == {"prompt": "p", "chat": False, "max_tokens": 16}
    assert parse(TEXT, {"prompt": [1, 2], "max_tokens": 3}).options == {"prompt_tokens": [1, 2], "max_tokens": 3}


@pytest.mark.parametrize(
    ("url", "body", "words"),
    [
        (CHAT, {}, "no messages"),
        (CHAT, [], "body must be an object"),
        ("/v1/embeddings", {"input": "x"}, "url must be"),
        (CHAT, {"messages": [], "stream": True}, "stream"),
        (CHAT, {"messages": [], "tools": [{"type": "function"}]}, "tools"),
        (CHAT, {"messages": [], "response_format": {"type": "json_object"}}, "response_format"),
        (CHAT, {"messages": [], "top_logprobs": 2}, "needs logprobs"),
        (CHAT, {"messages": [], "logprobs": 1}, "true or false"),
        (CHAT, {"messages": [], "whatever": 1}, "whatever"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "must have"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "has the type"),
        (TEXT, {"prompt": ["a", "b"]}, "one text"),
        (TEXT, {"prompt": "a", "echo": True}, "echo"),
        (TEXT, {"prompt": "a", "best_of": 4}, "best_of"),
        (CHAT, {"messages": [], "suffix": "b"}, "suffix"),
    ],
)
def test_what_cannot_be_honoured_is_an_error(url: str, body: Any, words: str) -> None:
    with pytest.raises(LineError, match=words) as caught:
        parse(url, body)
    assert caught.value.line_id == "c1"


def test_line_keys_are_checked() -> None:
    with pytest.raises(InvalidRequest, match="not prompt"):
        parse(TEXT, {"prompt": "a"}, prompt="b")
    with pytest.raises(InvalidRequest, match="method must be POST"):
        parse(TEXT, {"prompt": "a"}, method="GET")


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_names = st.sampled_from(["custom_id", "id", "method", "url", "body", "prompt", "messages", "seed"])
_body = st.dictionaries(st.sampled_from(["messages", "prompt", "model", "logprobs", "n", "tools", "stream"]), _json)
_values = _json | st.sampled_from(["POST", CHAT, TEXT]) | _body


@given(st.dictionaries(_names, _values))
def test_any_json_object_is_a_request_or_a_typed_error(document: dict[str, Any]) -> None:
    try:
        request = parse_line(InputLine(1, "d", json.dumps(document).encode()), TextAnswers().options)
    except InvalidRequest:
        return
    assert isinstance(request.id, (str, int))
    assert all(isinstance(name, str) for name in request.options)


@given(st.binary())
def test_any_bytes_are_a_request_or_a_typed_error(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse_line(InputLine(1, "d", b"\x00" + data), TextAnswers().options)
