"""`{name}` in the options of a step: what an input or an earlier step puts there. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..errors import InvalidRequest
from ..outputs import Audio, Embedding, Mesh, Score, Scores, Video
from ..results import Result

_REFERENCE = re.compile(r"\{\{|\}\}|\{([A-Za-z_][A-Za-z0-9_]*)(?:\.([a-z]+))?\}")
FIELDS = ("text", "image", "images", "audio", "video", "mesh", "embedding", "scores")
"""What of a step's result can be asked for by name."""


def names_in(value: Any) -> Iterator[tuple[str, str | None]]:
    """(name, field) of each reference in an option, at any depth."""
    if isinstance(value, str):
        yield from ((match[1], match[2]) for match in _REFERENCE.finditer(value) if match[1])
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from names_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from names_in(item)


def filled(value: Any, look_up: Callable[[str], Any]) -> Any:
    """The option with what its references stand for. One that is nothing but a reference becomes the thing itself: a
    picture, a sound, an input of any type; within a longer text, texts are put in. `{{` and `}}` are braces.
    `look_up(name)`: an input, or the Result of a step. Raises InvalidRequest for a result that has no such thing."""
    if isinstance(value, str):
        whole = _REFERENCE.fullmatch(value)
        if whole is not None and whole[1]:
            return _thing(whole[1], whole[2], look_up(whole[1]))
        return _REFERENCE.sub(lambda match: _piece(match, look_up), value)
    if isinstance(value, Mapping):
        return {key: filled(item, look_up) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [filled(item, look_up) for item in value]
    return value


def _piece(match: re.Match[str], look_up: Callable[[str], Any]) -> str:
    name, field = match[1], match[2]
    if not name:
        return match[0][0]
    found = _thing(name, field or ("text" if isinstance(look_up(name), Result) else None), look_up(name))
    return found if isinstance(found, str) else str(found)


def _thing(name: str, field: str | None, source: Any) -> Any:
    if not isinstance(source, Result):
        if field is not None:
            raise InvalidRequest(f"{{{name}.{field}}}: {name} is an input, which has no parts; write {{{name}}}")
        return source
    found = _field(source, field) if field is not None else _main(source)
    if found is None:
        raise InvalidRequest(f"{{{name}{'.' + field if field else ''}}}: the step {name} made no {field or 'output'}")
    return found


def _main(result: Result) -> Any:
    """What a step is about."""
    if result.images:
        return result.images[0]
    first = next(iter(result.outputs), None)
    if isinstance(first, (Audio, Video, Mesh, Score)):
        return first
    if isinstance(first, Embedding):
        return result.embedding
    if isinstance(first, Scores):
        return first.items[0].value if first.items else None
    return result.text.strip() or None


def _field(result: Result, field: str) -> Any:
    match field:
        case "text":
            return result.text.strip() or (result.scores[0].value if result.scores else None)
        case "image":
            return result.images[0] if result.images else None
        case "images":
            return list(result.images) or None
        case "audio":
            return next((each for each in result.outputs if isinstance(each, Audio)), None) or next(
                (each.audio for each in result.outputs if isinstance(each, Video)), None
            )
        case "video":
            return next((each for each in result.outputs if isinstance(each, Video)), None)
        case "scores":
            return [item.value for item in result.scores] or None
        case _:
            return getattr(result, field)
