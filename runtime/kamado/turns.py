"""Pictures, sounds and videos in a prompt: where they stand in a chat, and opening them.

A turn's content is a text or a list of parts, as transformers' chat templates and OpenAI's chats write them:

    {"type": "text", "text": "..."}
    {"type": "image", "image": PIL image | path | bytes | data URL | array}
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}
    {"type": "audio", "audio": path | bytes | (samples, rate)}
    {"type": "input_audio", "input_audio": {"data": base64, "format": "wav"}}
    {"type": "video", "video": path | bytes | frames | (frames, rate)}
    {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,..."}}

Nothing is ever fetched from a network.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import InvalidRequest

KINDS = ("image", "audio", "video")
"""What a prompt may hold beside text, and the options that put it there."""
MAX_ITEMS = 256
"""Of one request."""
_URL_TYPES = {"image_url": "image", "video_url": "video", "audio_url": "audio"}
_ALSO_CALLED = ("url", "path", "base64")
"""Names under which transformers' chats have the source of a part."""


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One picture, sound or video of a prompt, not opened yet."""

    kind: str
    """One of KINDS."""
    source: Any = field(repr=False)


def split_turns(turns: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[Item]]:
    """The turns with parts that only say where something stands (`{"type": "image"}`), and the things themselves, in
    order. Raises InvalidRequest for parts of an unknown form."""
    items: list[Item] = []
    plain: list[dict[str, Any]] = []
    for number, turn in enumerate(turns):
        content = turn.get("content")
        if isinstance(content, (list, tuple)):
            parts = [_split_part(part, f"messages[{number}].content[{at}]") for at, part in enumerate(content)]
            items += [item for _, item in parts if item is not None]
            plain.append({**turn, "content": [part for part, _ in parts]})
        else:
            plain.append(dict(turn))
    if len(items) > MAX_ITEMS:
        raise InvalidRequest(
            f"the request holds {len(items)} pictures, sounds and videos; at most {MAX_ITEMS} are read"
        )
    return plain, items


def joined_texts(
    turns: Sequence[Mapping[str, Any]], mark: Callable[[str], str] = lambda kind: ""
) -> list[dict[str, Any]]:
    """Turns with each content as one text; `mark` gives what stands there for a part of another kind."""

    def text(part: Mapping[str, Any]) -> str:
        return str(part["text"]) if part["type"] == "text" else mark(part["type"])

    return [
        {**turn, "content": "".join(map(text, turn["content"]))} if isinstance(turn["content"], list) else dict(turn)
        for turn in turns
    ]


def as_list(name: str, value: Any) -> tuple[Any, ...]:
    """The option `image`, `audio` or `video` as several sources: one stands alone, or in a list. A tuple `(samples,
    rate)` is one sound; an array is one thing. Raises InvalidRequest."""
    found = tuple(value) if isinstance(value, list) else (value,)
    if not found or any(each is None for each in found):
        raise InvalidRequest(f"{name} must be one source or a list of some, not {value!r:.80}")
    return found


def relative_to(folder: Path, source: Any) -> Any:
    """A source, or a list of some, with relative paths taken from `folder`."""
    if isinstance(source, list):
        return [relative_to(folder, each) for each in source]
    return str((folder / source).absolute()) if is_path(source) else source


def is_path(source: Any) -> bool:
    """Whether a source is a text that names a file: no data URL, and no address, which is refused when it is opened."""
    return isinstance(source, str) and "://" not in source[:16] and source[:5].lower() != "data:"


def turns_relative_to(folder: Path, turns: Any) -> Any:
    """Chat turns with the relative paths of their parts taken from `folder`; other shapes are left to be judged."""

    def placed(part: Any) -> Any:
        if not isinstance(part, Mapping):
            return part
        names = [name for name in (*KINDS, "url", "path") if name in part]
        return {**part, **{name: relative_to(folder, part[name]) for name in names}}

    def turn(each: Any) -> Any:
        if not isinstance(each, Mapping) or not isinstance(each.get("content"), (list, tuple)):
            return each
        return {**each, "content": [placed(part) for part in each["content"]]}

    return [turn(each) for each in turns] if isinstance(turns, list) else turns


def _split_part(part: Any, where: str) -> tuple[dict[str, Any], Item | None]:
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
        raise InvalidRequest(f'{where} must be a part like {{"type": "text", "text": ...}}, not {part!r:.80}')
    kind = part["type"]
    if kind in ("text", "input_text", "output_text"):
        if not isinstance(part.get("text"), str):
            raise InvalidRequest(f"{where} is a text part without a text")
        return {"type": "text", "text": part["text"]}, None
    source = _source(part, kind, where)
    named = _URL_TYPES.get(kind, "audio" if kind == "input_audio" else kind)
    return {"type": named}, Item(named, source)


def _source(part: Mapping[str, Any], kind: str, where: str) -> Any:
    if kind in _URL_TYPES:
        value = part.get(kind)
        value = value.get("url") if isinstance(value, Mapping) else value
        if not isinstance(value, str):
            raise InvalidRequest(f'{where} must have {{"{kind}": {{"url": "data:..."}}}}')
        _refuse_address(value)
        return value
    if kind == "input_audio":
        value = part.get("input_audio")
        if not isinstance(value, Mapping) or not isinstance(value.get("data"), str):
            raise InvalidRequest(f'{where} must have {{"input_audio": {{"data": base64, "format": "wav"}}}}')
        return _decoded(value["data"], where)
    if kind not in KINDS:
        raise InvalidRequest(f"{where} has the type {kind!r:.40}; there are text, {', '.join(KINDS)}")
    found = [part[name] for name in (kind, *_ALSO_CALLED) if part.get(name) is not None]
    if len(found) != 1:
        raise InvalidRequest(f'{where} must say which {kind}: {{"type": "{kind}", "{kind}": ...}}')
    _refuse_address(found[0])
    return _decoded(found[0], where) if part.get("base64") is not None else found[0]


def _refuse_address(source: Any) -> None:
    if isinstance(source, str) and "://" in source[:16]:
        raise InvalidRequest(f"{source:.120} is an address, and nothing is ever fetched; save it and give its path")


def _decoded(text: Any, where: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError, AttributeError) as error:
        raise InvalidRequest(f"{where} holds no valid base64: {error}") from error
