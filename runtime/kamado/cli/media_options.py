"""The generation options of models that make sounds, videos and other media."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from .common import Command, apply_options

_FILE = click.Path(path_type=Path)
_SEVERAL = ("audio", "video")
MEDIA_FLAGS = ("frames", "fps", "seconds", "voice", "language", "task", "notes", *_SEVERAL)
"""Options of media that have a flag; others are given with --option."""
INPUT_FLAGS = ("image", "audio", "video")
"""Options that are files, which models of every kind may take."""
_OPTIONS = [
    click.option("--frames", type=int, metavar="N", help="Frames of a video."),
    click.option("--fps", type=float, metavar="X", help="Frames a second.  [the model's own]"),
    click.option("--seconds", type=float, metavar="S", help="How long a sound or a video is."),
    click.option("--voice", metavar="NAME_OR_FILE", help="Who speaks: one of the model's voices, or a recording."),
    click.option("--language", metavar="CODE", help="Spoken or written: en, de, ...  [found out, or the model's own]"),
    click.option("--task", metavar="NAME", help="Of a model that can do several: transcribe, translate, ..."),
    click.option("--notes", type=_FILE, metavar="FILE", help="Input notes: a MIDI file."),
    click.option("--audio", type=_FILE, multiple=True, metavar="FILE", help="Input sound. Repeatable."),
    click.option("--video", type=_FILE, multiple=True, metavar="FILE", help="Input video. Repeatable."),
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """The generation options that were typed, by the kind of model that they are for."""

    text: Mapping[str, Any] = field(default_factory=dict)
    picture: Mapping[str, Any] = field(default_factory=dict)
    media: Mapping[str, Any] = field(default_factory=dict)


def media_options(command: Command) -> Command:
    """Adds the options; stands behind those of pictures, and of texts where a command has them, and calls with `given:
    Given` of all. Input files are paths, several are a list."""

    @functools.wraps(command)
    def wrapper(*args: Any, picture: dict[str, Any], text: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        values = {name: kwargs.pop(name) for name in MEDIA_FLAGS}
        media: dict[str, Any] = {name: value for name, value in values.items() if value not in (None, ())}
        for name in _SEVERAL:
            if name in media:
                media[name] = media[name][0] if len(media[name]) == 1 else list(media[name])
        return command(*args, given=Given(text=text or {}, picture=picture, media=media), **kwargs)

    return apply_options(wrapper, _OPTIONS, "Sound, video and other media")  # type: ignore[return-value]
