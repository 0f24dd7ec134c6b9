"""What was said, as subtitles (SubRip, WebVTT), text, or JSON."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InvalidRequest
from ..files import replacing
from ..outputs import Segment, Transcript
from .opening import check_target, shown
from .recipe import recipe_json
from .tags import MARK, tagged, untagged

WRITE_FORMATS = (".txt", ".srt", ".vtt", ".json")
_BLANK_LINES = re.compile(r"\s*\n\s*")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u2028\u2029\x85]")
_HALVES = re.compile("[\ud800-\udfff]")
_NOTE = "NOTE "


def srt_text(segments: Sequence[Segment]) -> str:
    """SubRip: a number, `00:00:01,500 --> 00:00:03,000` and the text of each segment. Segments without text are left
    out; blank lines in a text, which would end it, too; `-->` in it is an arrow, U+2192."""
    blocks = (
        f"{number}\n{_times(segment, ',')}\n{_line_safe(segment.text)}\n"
        for number, segment in enumerate(_spoken(segments), start=1)
    )
    return "\n".join(blocks)


def vtt_text(segments: Sequence[Segment], recipe: Mapping[str, Any] | None = None) -> str:
    """WebVTT: `&`, `<` and `>` are escaped; the recipe is a NOTE, which no player shows."""
    parts = ["WEBVTT\n"]
    if recipe is not None:
        parts.append(_NOTE + tagged(recipe).replace(">", "\\u003e") + "\n")
    parts += [f"{_times(segment, '.')}\n{_escaped(segment.text)}\n" for segment in _spoken(segments)]
    return "\n".join(parts)


def timestamp(seconds: float, mark: str = ".") -> str:
    """`HH:MM:SS.mmm` with as many digits of hours as it takes; below 0 is 0. `mark` is before the milliseconds."""
    total = round(max(0.0, seconds) * 1000) if math.isfinite(seconds) else 0
    minutes, milliseconds = divmod(total, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds // 1000:02d}{mark}{milliseconds % 1000:03d}"


def transcript_document(transcript: Transcript) -> dict[str, Any]:
    """A transcript for JSON; times in seconds."""
    segments = [{"start": each.start_s, "end": each.end_s, "text": each.text} for each in transcript.segments]
    return {"text": transcript.text, "language": transcript.language, "segments": segments}


def check_transcript_path(path: str | os.PathLike[str]) -> str:
    """The suffix of a path to save a transcript to, in lower case. Raises InvalidRequest."""
    return check_target(path, WRITE_FORMATS, "transcript")


def save_transcript(transcript: Transcript, path: str | os.PathLike[str], recipe: Mapping[str, Any] | None) -> None:
    """Write `transcript` to `path`, whole or not at all, in UTF-8; a file that is there is replaced.

    .srt and .vtt need segments with times; .txt is the text alone; .json has everything. The recipe is in .vtt and
    .json; the other two have no place for it. Raises InvalidRequest for a path that cannot be written, or subtitles
    without segments.
    """
    suffix = check_transcript_path(path)
    if suffix in (".srt", ".vtt") and not transcript.segments and transcript.text.strip():
        raise InvalidRequest(
            f"the transcript has no times, which {suffix} needs; save it as .txt, or ask for timestamps"
        )
    if suffix == ".srt":
        text = srt_text(transcript.segments)
    elif suffix == ".vtt":
        text = vtt_text(transcript.segments, recipe)
    elif suffix == ".txt":
        text = transcript.text.strip() + "\n"
    else:
        document = transcript_document(transcript)
        if recipe is not None:
            document["recipe"] = json.loads(recipe_json(recipe))
        text = json.dumps(document, ensure_ascii=False, indent=1) + "\n"
    try:
        with replacing(Path(path)) as file:
            file.write(_HALVES.sub("\ufffd", text).encode())
    except (PermissionError, ValueError) as error:
        raise InvalidRequest(f"{shown(path)} cannot be written: {error}") from error


def read_transcript_recipe(text: str) -> str | None:
    """The JSON text of the recipe in a WebVTT or JSON transcript; None if there is none. Nothing of it is checked."""
    if text.startswith("{"):
        try:
            recipe = json.loads(text).get("recipe")
        except (ValueError, RecursionError):
            return None
        return json.dumps(recipe, ensure_ascii=False) if isinstance(recipe, dict) else None
    for line in text.splitlines():
        if line.startswith(_NOTE + MARK):
            return untagged(line[len(_NOTE) :])
    return None


def _spoken(segments: Sequence[Segment]) -> list[Segment]:
    return [segment for segment in segments if _one_block(segment.text)]


def _times(segment: Segment, mark: str) -> str:
    return f"{timestamp(segment.start_s, mark)} --> {timestamp(max(segment.start_s, segment.end_s), mark)}"


def _one_block(text: str) -> str:
    lines = _CONTROLS.sub(" ", text.replace("\r\n", "\n").replace("\r", "\n"))
    return _BLANK_LINES.sub("\n", lines.strip())


def _line_safe(text: str) -> str:
    return _one_block(text).replace("-->", "\u2192")


def _escaped(text: str) -> str:
    return _one_block(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
