"""Which pictures went into a request: the `inputs` of a recipe."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any

from ..options import Medium
from ..outputs import Audio, Score, Video

INPUTS = ("image", "mask", "control", "ip_adapter_image", "last_image")
"""Options that are pictures."""
MEDIA_INPUTS: Mapping[str, Medium] = {**dict.fromkeys(INPUTS, "image"), "video": "video", "audio": "audio"}
"""Options of pipelines (see kamado.picture_requests) that are files or what they hold: which kind each is."""


def described_inputs(pictures: Mapping[str, Any]) -> dict[str, Any]:
    """`{"image": {"sha256"}, ...}` of opened pictures (see `open_picture`) by name (see INPUTS): a recipe's `inputs`.

    Several pictures of one option are a list of such facts; None is left out. The hash is that of the upright pixels:
    a copy in another lossless format is the same input.
    """
    return {name: _described(value) for name, value in pictures.items() if value is not None}


def _described(value: Any) -> Any:
    from .pictures import picture_digest

    if isinstance(value, (list, tuple)):
        return [_described(item) for item in value]
    return {"sha256": picture_digest(value)}


def opened_media(options: Mapping[str, Any], inputs: Mapping[str, Medium]) -> dict[str, Any]:
    """The options with what they name opened: pictures as `open_picture` has them, sounds as Audio, videos as Video,
    latents as arrays, notes as a Score; several stay a tuple. `inputs`: which options are of which kind. Raises
    InvalidRequest."""
    return {
        name: _opened(value, inputs[name]) if name in inputs and value is not None else value
        for name, value in options.items()
    }


def _opened(value: Any, medium: Medium) -> Any:
    if medium == "latents":
        from .latents import open_latents

        return open_latents(value)
    if medium == "notes":
        from .notes import open_score

        return open_score(value)
    # (samples, rate) is one sound, (frames, fps) one video.
    has_rate = isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], (int, float))
    if isinstance(value, (list, tuple)) and not (has_rate and medium != "image"):
        return tuple(_opened(item, medium) for item in value)
    if medium == "image":
        from .pictures import open_picture

        return open_picture(value)
    module, function = ("sounds", "open_sound") if medium == "audio" else ("videos", "open_video")
    return getattr(import_module(f".{module}", __package__), function)(value)


def open_input(name: str, source: Any) -> Any:
    """The file of an option whose kind nobody told: pictures (INPUTS) and latents by their names, others by what is in
    them; a video is one only where the name says so, and a sound track otherwise. Raises InvalidRequest."""
    if name in INPUTS:
        return _opened(source, "image")
    if name == "latents":
        return _opened(source, "latents")
    if name.startswith("video") or isinstance(source, Video):
        return _opened(source, "video")
    if isinstance(source, Score):
        return source
    if isinstance(source, (str, PathLike)):
        from .reading import kind_of_file

        kind = kind_of_file(Path(source))
        if kind in ("image", "score"):
            return _opened(source, "image" if kind == "image" else "notes")
    return _opened(source, "audio")


def described_media(opened: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's `inputs` of what `opened_media` opened: `{"audio": {"sha256"}, ...}`."""
    return {name: _facts(value) for name, value in opened.items() if value is not None}


def _facts(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_facts(item) for item in value]
    if isinstance(value, (Audio, Video)):
        data, rate = (value.samples, value.sample_rate) if isinstance(value, Audio) else (value.frames, value.fps)
        told = f"{data.dtype} {data.shape} {rate} ".encode()
        return {"sha256": hashlib.sha256(told + data.tobytes()).hexdigest()}
    if isinstance(value, Score):
        # Numbers of Python's own, however the caller wrote them: the same notes are the same input.
        tempos = tuple((float(second), float(tempo)) for second, tempo in value.tempos)
        listed = [
            (*map(float, (note.start_s, note.duration_s)), *map(int, (note.pitch, note.velocity, note.program)),
             bool(note.is_drum))
            for note in value.notes
        ]  # fmt: skip
        return {"sha256": hashlib.sha256(repr((tempos, listed)).encode()).hexdigest()}
    if type(value).__name__ == "ndarray":
        told = f"{value.dtype} {value.shape} ".encode()
        return {"sha256": hashlib.sha256(told + value.tobytes()).hexdigest()}
    return _described(value)
