"""The recipe in a file of any kind, told by what is in the file and not by its name.

| file | where the recipe lies |
|---|---|
| PNG, WebP, JPEG | see `embed.py` |
| WAV | comment (`ICMT`) of the LIST/INFO chunk |
| FLAC, Ogg Vorbis, Opus, MP3 | Vorbis comment `COMMENT`; of MP3 the ID3 comment |
| MP4, WebM, GIF | comment |
| GLB | `asset.extras.kamado` |
| PLY, OBJ | lines of comment |
| MIDI | text events of the first track |
| WebVTT, JSON transcripts | a NOTE; the field `recipe` |
| safetensors (vectors) | `kamado` in the header's metadata |

`tags.py` tells what a comment looks like.
"""

from __future__ import annotations

import os
from typing import Any, BinaryIO

from ..errors import InvalidRequest
from . import pictures
from .opening import opened_file, shown
from .recipe import parse_recipe
from .tags import MAX_TAG_BYTES
from .tracks import container_format
from .vectors import is_safetensors, read_embedding_recipe

MAX_FILE_BYTES = 1 << 32
_MAX_TEXT_BYTES = 1 << 26
_PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_SOUNDS = (b"fLaC", b"OggS", b"ID3", b"FORM", b".snd", b"caff", b"RF64")


def kind_of(head: bytes) -> str | None:
    """`picture`, `sound`, `tracks`, `mesh`, `score`, `transcript`, `vectors` or None, by the first 16 bytes of a
    file. OBJ, which begins like any text, is none."""
    form = head[8:12] if head[:4] == b"RIFF" else b""
    if head.startswith(_PICTURES) or form == b"WEBP":
        return "picture"
    if container_format(head) is not None:
        return "tracks"
    if head.startswith(_SOUNDS) or form == b"WAVE" or (head[:1] == b"\xff" and head[1:2] >= b"\xe0"):
        return "sound"
    if head.startswith((b"glTF", b"ply\n", b"ply\r")):
        return "mesh"
    if head.startswith(b"MThd"):
        return "score"
    if head.startswith((b"WEBVTT", b"{")):
        return "transcript"
    return "vectors" if is_safetensors(head) else None


def read_recipe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The recipe in a file that Kamado made. What it says is a stranger's word. Raises InvalidRequest: no such file, a
    file of another kind or damaged, or one without a recipe."""
    name = shown(path)
    with opened_file(path, "files", MAX_FILE_BYTES) as file:
        kind = kind_of(file.read(16))
        file.seek(0)
        if kind != "picture":
            text = _text(kind, file, name)
            if text is None:
                raise InvalidRequest(f"{name} carries no recipe")
            return parse_recipe(text, what=f"the recipe in {name}", limit=MAX_TAG_BYTES)
    return pictures.read_recipe(path)


def _text(kind: str | None, file: BinaryIO, name: str) -> str | None:
    if kind == "sound":
        from .sounds import read_sound_recipe

        return read_sound_recipe(file, name)
    if kind == "tracks":
        from .tracks import read_tag

        return read_tag(file, name)
    if kind == "score":
        from .notes import read_score_recipe

        return read_score_recipe(file)
    if kind == "transcript":
        from .transcripts import read_transcript_recipe

        return read_transcript_recipe(file.read(_MAX_TEXT_BYTES).decode("utf-8", "replace"))
    if kind == "vectors":
        return read_embedding_recipe(file)
    from .meshes import read_mesh_recipe

    return read_mesh_recipe(file)
