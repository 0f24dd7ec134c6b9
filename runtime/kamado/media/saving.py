"""Any output as a file, or as text and JSON: which suffix means what."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import InvalidRequest
from ..outputs import KINDS, Embedding, Output, Picture, Scored, Scores, Transcript

_SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "image": (".png", ".webp", ".jpg", ".jpeg"),
    "audio": (".wav", ".flac", ".ogg", ".opus", ".mp3"),
    "video": (".mp4", ".webm", ".gif", ".webp"),
    "mesh": (".glb", ".ply", ".obj"),
    "score": (".mid", ".midi"),
    "transcript": (".txt", ".srt", ".vtt", ".json"),
    "embedding": (".json", ".npy", ".safetensors"),
    "scores": (".json",),
}
"""The first one is taken where nobody names a file."""
_TEXTS = frozenset({".txt", ".srt", ".vtt", ".json", ".obj", ".ply"})
_WRITERS: Mapping[str, tuple[str, str]] = {
    # module beside this one, and its function; imported when there is something to write
    "image": ("pictures", "save_picture"),
    "audio": ("sounds", "save_sound"),
    "video": ("videos", "save_video"),
    "mesh": ("meshes", "save_mesh"),
    "score": ("notes", "save_score"),
    "transcript": ("transcripts", "save_transcript"),
    "embedding": ("vectors", "save_embedding"),
}


def suffixes_of_kind(kind: str) -> tuple[str, ...]:
    """The suffixes, with their dots, that files of a kind (see KINDS) may have; the usual one first."""
    return _SUFFIXES.get(kind, ())


def media_suffixes() -> frozenset[str]:
    """Those of files that are no text."""
    return frozenset(each for suffixes in _SUFFIXES.values() for each in suffixes) - _TEXTS


def suffixes_of(output: type) -> tuple[str, ...]:
    """The same of a type of output (`Audio`, `Mesh`, ...); nothing for a type that is none."""
    return suffixes_of_kind(KINDS.get(output, ""))


def default_suffix(output: Output) -> str:
    """The usual suffix of its files."""
    return suffixes_of_kind(KINDS[type(output)])[0]


def check_libraries(kind: str, suffix: str) -> None:
    """Raise InvalidRequest, which says what to install, where a library is missing that files of such a suffix need:
    worth asking before the output is made."""
    if kind == "video" and suffix in (".mp4", ".webm"):
        from .tracks import require_pyav

        require_pyav(f"writing {suffix} files")


def save_output(output: Output, path: Path, recipe: Mapping[str, Any] | None) -> None:
    """Write an output as the suffix of `path` says, whole or not at all, with its recipe inside (see `recipes.py`); a
    file that is there is replaced.

    Raises InvalidRequest for a suffix that is none of its kind's (the error names those that are), for what the format
    cannot hold and for a library that is missing, GenerationFailed for an output that is broken (NaN, no frames), and
    OSError when the disk fails.
    """
    kind = KINDS[type(output)]
    known = suffixes_of_kind(kind)
    if path.suffix.lower() not in known:
        raise InvalidRequest(f"{path}: {kind} files end in {', '.join(known)}")
    if kind not in _WRITERS:
        _write_json(output, path, recipe)
        return
    module, function = _WRITERS[kind]
    made = output.image if isinstance(output, Picture) else output
    getattr(import_module(f".{module}", __package__), function)(made, path, recipe)


def text_of(output: Output) -> str:
    """An output as lines for people; ends with a line end."""
    if isinstance(output, Transcript):
        return output.text + "\n"
    if isinstance(output, Scores):
        return "".join(map(_score_line, output.items)) + (f"{output.text}\n" if output.text else "")
    assert isinstance(output, Embedding), "others are files"
    return "".join(" ".join(f"{value:.6g}" for value in row) + "\n" for row in output.vectors.tolist())


def document_of(output: Output) -> dict[str, Any]:
    """An output that is no file, for JSON."""
    if isinstance(output, Transcript):
        from .transcripts import transcript_document

        return transcript_document(output)
    if isinstance(output, Scores):
        return {
            "scores": [
                {"value": item.value, "score": item.score}
                | ({"index": item.index} if item.index is not None else {})
                | dict(item.details)
                for item in output.items
            ]
        } | ({"text": output.text} if output.text else {})
    assert isinstance(output, Embedding), "others are files"
    vectors = output.vectors.tolist()
    shape = {"shape": list(output.shape)} if output.shape else {}
    return ({"embedding": vectors[0]} if len(vectors) == 1 else {"embeddings": vectors}) | shape


def _score_line(item: Scored) -> str:
    """Score, number of the input where there are several, and what was scored."""
    number = "" if item.index is None else f"{item.index}\t"
    return f"{item.score:.4f}\t{number}{' '.join(item.value.split())}\n"


def _write_json(output: Output, path: Path, recipe: Mapping[str, Any] | None) -> None:
    from ..files import replacing

    document = document_of(output) | ({} if recipe is None else {"recipe": dict(recipe)})
    text = json.dumps(document, ensure_ascii=False, indent=1) + "\n"
    with replacing(path) as file:
        file.write(text.encode("utf-8", errors="replace"))
