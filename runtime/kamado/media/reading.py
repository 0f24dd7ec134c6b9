"""Outputs back from the files that Kamado wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from ..errors import InvalidRequest
from ..outputs import Output, Picture
from .opening import opened_file, shown
from .recipes import MAX_FILE_BYTES, kind_of

_KINDS = {"sound": "audio", "tracks": "video", "score": "score", "mesh": "mesh", "vectors": "embedding"}
_LOSSLESS = {
    # what a file of the kind must begin with to hold the output as it was made
    "audio": (b"RIFF", b"RF64", b"fLaC"),
    "mesh": (b"glTF", b"ply"),
    "score": (b"MThd",),
    "embedding": (b"",),
}


def kind_of_file(path: Path) -> str:
    """What is in a file (see `outputs.KINDS`), by its content: a WebP or GIF file that moves is a video; `document` is
    JSON or WebVTT; what begins like no other kind is a mesh (OBJ). Raises InvalidRequest for no such file."""
    with opened_file(path, "files", MAX_FILE_BYTES) as file:
        kind = kind_of(file.read(16))
    if kind == "picture":
        return "video" if _moves(path) else "image"
    return "document" if kind == "transcript" else _KINDS.get(kind or "", "mesh")


def open_output(path: Path, kind: str, *, only_begin: bool = False) -> Output:
    """The output in a file, which holds one of this kind. `only_begin`: of a video the first frame is enough, without
    sound. Raises InvalidRequest."""
    if kind == "audio":
        from .sounds import open_sound

        return open_sound(path)
    if kind == "video":
        from .videos import open_video

        return open_video(path, 1, sound=False) if only_begin else open_video(path)
    if kind == "mesh":
        from .meshes import open_mesh

        return open_mesh(path)
    if kind == "score":
        from .notes import open_score

        return open_score(path)
    if kind == "embedding":
        from .vectors import read_embedding

        return read_embedding(path)
    from .pictures import open_stored

    return Picture(image=open_stored(path))


def read_document(path: Path) -> Any:
    """What a JSON or WebVTT file says, without the recipe. Raises InvalidRequest."""
    with opened_file(path, "documents", MAX_FILE_BYTES) as file:
        text = file.read().decode("utf-8", "replace")
    if not text.startswith("{"):
        return [block for block in text.split("\n\n") if not block.startswith("NOTE ")]
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{shown(path)} is damaged: {str(error)[:120]}") from error
    return {name: value for name, value in document.items() if name != "recipe"}


def keeps_output(path: Path, kind: str) -> bool:
    """Whether the file, of a kind other than pictures, holds what was made without loss."""
    with opened_file(path, "files", MAX_FILE_BYTES) as file:
        return kind == "document" or file.read(16).startswith(_LOSSLESS.get(kind, ()))


def _moves(path: Path) -> bool:
    try:
        with Image.open(path, formats=("GIF", "WEBP")) as image:
            return image.format == "GIF" or getattr(image, "n_frames", 1) > 1
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError):
        return False
