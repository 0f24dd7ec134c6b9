"""The options of code around a cursor: what is behind it, other files, where to stop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..code_requests import STOPS_AT
from ..errors import InvalidRequest
from .prompt import MAX_STDIN_BYTES

CODE_OPTIONS = [
    click.option(
        "--suffix", metavar="FILE_OR_TEXT",
        help="Fill in between PROMPT and this: a file's text if there is such a file, else the text itself.",
    ),
    click.option(
        "--file", "context_files", multiple=True, metavar="FILE", type=click.Path(path_type=Path),
        help="Another file of the repository, for the model to know. Repeatable.",
    ),
    click.option("--repository", metavar="NAME", help="The repository's name."),
    click.option("--filename", metavar="PATH", help="Path of the file that is written."),
    click.option(
        "--stop-at", type=click.Choice(STOPS_AT), help="End where the block of code ends that the cursor is in."
    ),
]  # fmt: skip


def code_given(suffix: str | None, files: Sequence[Path]) -> dict[str, Any]:
    """The options `suffix` and `files` of what was typed. Raises InvalidRequest for files that are no texts."""
    given: dict[str, Any] = {}
    if suffix is not None:
        given["suffix"] = _read(Path(suffix), "--suffix") if _is_file(suffix) else suffix
    if files:
        given["files"] = {path.as_posix(): _read(path, "--file") for path in files}
    return given


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a path, or with a zero byte
        return False


def _read(path: Path, flag: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_STDIN_BYTES + 1)
    except OSError as error:
        raise InvalidRequest(f"{flag} {path} cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_STDIN_BYTES:
        raise InvalidRequest(f"{flag} {path} is larger than {MAX_STDIN_BYTES >> 20} MiB; give less")
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{flag} {path} is no UTF-8 text (byte {error.start + 1}); convert it first") from None
