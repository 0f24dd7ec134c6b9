"""Where a prompt comes from: the command line, piped stdin, or both."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO

from ..errors import InvalidRequest
from .output import Output

MAX_STDIN_BYTES = 64 << 20
_PATIENCE_S = 2.0


def read_prompt(argument: str | None, *, raw: bool, out: Output) -> str:
    """The prompt: the argument, or stdin, or the argument, a blank line and stdin (as a document).

    `raw` keeps the line end that stdin usually ends with. Raises InvalidRequest if there is none, or if it is not text.
    """
    if argument is not None:
        check_text("PROMPT", argument)
    piped = ""
    stream = getattr(sys.stdin, "buffer", None)
    if stream is not None and (argument is None or _is_file_or_pipe(stream)):
        piped = _read_text(stream, out, patient=argument is None)
        if not raw:
            piped = piped.removesuffix("\n").removesuffix("\r")
    parts = [part for part in (argument, piped) if part]
    prompt = "\n\n".join(parts)
    if not (prompt if raw else prompt.strip()):
        raise InvalidRequest("the prompt is empty; give one as an argument or through stdin")
    return prompt


def read_before_cursor(argument: str | None, out: Output) -> str:
    """The text before a cursor, to its last space: the argument, else stdin. Raises InvalidRequest if it is no text."""
    if argument is not None:
        check_text("PROMPT", argument)
        return argument
    stream = getattr(sys.stdin, "buffer", None)
    return "" if stream is None else _read_text(stream, out, patient=True)


def read_picture_prompt(argument: str | None, out: Output) -> str | None:
    """The prompt of a picture: the argument, else piped stdin without the line ends at its end. None if there is
    neither: some models need none. Raises InvalidRequest if it is not text."""
    if argument is not None:
        check_text("PROMPT", argument)
        return argument
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None or not _is_file_or_pipe(stream):
        return None
    return _read_text(stream, out, patient=False).rstrip("\r\n") or None


def check_once(argument: str | None, options: Mapping[str, Any]) -> None:
    """Raise InvalidRequest for a prompt that is an argument and an option of the model's own, too."""
    if argument is not None and "prompt" in options:
        raise InvalidRequest("the prompt was given twice: as an argument and with --option; leave one out")


def check_text(name: str, text: str) -> None:
    """Raise InvalidRequest unless the argument is text: Python has lone surrogates for bytes that are not UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{name} is not valid UTF-8 (character {error.start + 1}); convert it first") from None


def _is_file_or_pipe(stream: BinaryIO) -> bool:
    """Whether stdin was redirected. Beside an argument, terminals, sockets and devices are left alone."""
    try:
        mode = os.fstat(stream.fileno()).st_mode
    except (OSError, ValueError):
        return not stream.isatty()
    return stat.S_ISREG(mode) or stat.S_ISFIFO(mode)


def _read_text(stream: BinaryIO, out: Output, *, patient: bool) -> str:
    if stream.isatty():
        out.passing("type the prompt; Ctrl-D on a line of its own ends it")
    elif not patient and not _has_data(stream):
        out.note("waiting for a prompt on stdin; redirect it from /dev/null if there is none")
    data = stream.read(MAX_STDIN_BYTES + 1)
    if len(data) > MAX_STDIN_BYTES:
        raise InvalidRequest(f"the prompt on stdin is longer than {MAX_STDIN_BYTES >> 20} MiB; give less")
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        where = f"byte 0x{data[error.start]:02x} at offset {error.start}"
        raise InvalidRequest(f"the prompt on stdin is not valid UTF-8: {where}; convert it first") from None


def _has_data(stream: BinaryIO) -> bool:
    """Whether something, if only the end, comes soon."""
    if sys.platform == "win32":
        return True
    import select

    try:
        return bool(select.select([stream], [], [], _PATIENCE_S)[0])
    except (OSError, ValueError):
        return True
