"""What a recipe holds can be asked again."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from kamado.requests import resolve_text_options
from kamado_models.language.model import _plain


@pytest.mark.parametrize(
    "asked",
    [
        {"prompt": "a", "seed": 0},
        {"prompt": "a", "seed": 5, "chat": False, "n": 2, "stop": "x"},
        {"messages": [{"role": "user", "content": "a"}], "seed": 3, "logit_bias": {"7": 2.0}},
        {"prompt_tokens": [4, 0], "seed": 1, "ignore_eos": True, "logprobs": 0},
        {"prompt": "", "seed": 1, "suffix": "b", "stop_at": "block"},
        {"prompt": "a", "seed": 1, "files": {"a.py": "b"}, "repository": "r", "filename": "c.py"},
    ],
)
def test_it_resolves_to_the_same_request(asked: dict[str, Any]) -> None:
    resolved = resolve_text_options(asked, chat_default=True)
    again = resolve_text_options(_plain(asdict(resolved)), chat_default=True)
    assert again.seed == asked["seed"]
    # What is taken as it is has no use for the chat template.
    assert asdict(again) == asdict(resolved)
