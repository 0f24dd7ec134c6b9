"""Prompts of models that speak, as their chat templates write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kamado.checkpoint.strict_json import read_bounded
from kamado.checkpoint.types import Checkpoint
from kamado.errors import InvalidRequest, UnsupportedCheckpoint

from ..language.chat_template import ChatTemplate

_FILE = "chat_template.jinja"


class Writer:
    """Writes the prompts of one model."""

    def __init__(self, checkpoint: Checkpoint, tokenizer: Any, mark: str) -> None:
        """`mark`: what stands for a voice. Raises UnsupportedCheckpoint where there is no template."""
        file = checkpoint.files.get(_FILE)
        if file is None:
            raise UnsupportedCheckpoint(f"{checkpoint.reference} has no {_FILE}, which writes its prompts")
        self._reference = checkpoint.reference
        self._template = ChatTemplate(read_bounded(file).decode(errors="replace"))
        self._variables = {**tokenizer.special_tokens_map, "add_generation_prompt": False}
        self._mark = mark

    def written(self, turns: Sequence[tuple[str, str]], voiced: Sequence[str] = ()) -> str:
        """The prompt. `turns`: who speaks, and what; `voiced`: those of them for whom a voice is given. Raises
        UnsupportedCheckpoint for a template that has no place for voices."""
        messages, left = [], list(voiced)
        for role, said in turns:
            content = [{"type": "text", "text": said}]
            if role in left:
                left.remove(role)
                content.insert(0, {"type": "audio"})
            messages.append({"role": role, "content": content})
        found = self._template.render(messages, self._variables)
        if found.count(self._mark) != len(voiced):
            raise UnsupportedCheckpoint(
                f"{self._reference}: its chat template has {found.count(self._mark)} places for voices where "
                f"{len(voiced)} are given: {found!r:.80}"
            )
        return found


def check_marks(asked: Mapping[str, Any], names: Sequence[str], marks: Sequence[str]) -> None:
    """Raise InvalidRequest for texts, of those options, in which something stands that stands for sound."""
    for name in names:
        held = next((mark for mark in marks if mark in asked.get(name, "")), None)
        if held is not None:
            raise InvalidRequest(f"{name} has {held} in it, which stands for sound: leave it out")
