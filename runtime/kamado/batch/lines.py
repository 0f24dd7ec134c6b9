"""Input lines of a batch: reading them, and what each one asks for.

A line is `{"id", "prompt" | ..., ...any generation option...}` or an OpenAI batch line (`custom_id`, `method`, `url`,
`body`). Lines are numbered from 1, blank ones included.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ..checkpoint.strict_json import DuplicateKeyError, unique_pairs
from ..errors import InvalidRequest
from .openai_lines import is_openai_line

MAX_LINE_BYTES = 16 << 20
"""A longer line fails alone, without being held in memory."""
MAX_ID_CHARACTERS = 1000
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class InputLine:
    """One line that is not blank, as it lies in the file."""

    number: int
    digest: str
    """Of its bytes without the line end."""
    data: bytes | None
    """None: longer than MAX_LINE_BYTES."""


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """What a line asks for."""

    id: str | int
    options: Mapping[str, Any]


class InputFile:
    """The lines of a file, and the hash of all that was read."""

    def __init__(self, path: Path, *, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self.path = path
        self._max_line_bytes = max_line_bytes
        self._whole = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Of the bytes read so far; of the whole file once `lines` is exhausted."""
        return self._whole.hexdigest()

    def lines(self) -> Iterator[InputLine]:
        """Every line that is not blank. Raises InvalidRequest if the file cannot be read."""
        try:
            with self.path.open("rb") as file:
                number = 0
                while first := file.readline(self._max_line_bytes + 3):
                    number += 1
                    digest, data = self._finish_line(file, first, is_first=number == 1)
                    if data is None or data.strip():
                        yield InputLine(number, digest, data)
        except OSError as error:
            raise InvalidRequest(f"cannot read {self.path}: {error.strerror or error}") from error

    def _finish_line(self, file: Any, piece: bytes, *, is_first: bool) -> tuple[str, bytes | None]:
        """Digest and bytes of the line that starts with `piece`; the rest of a line that is too long is passed over."""
        self._whole.update(piece)
        if is_first:
            piece = piece.removeprefix(_BOM)
        data = piece.removesuffix(b"\n").removesuffix(b"\r")
        if len(data) <= self._max_line_bytes:
            return hashlib.sha256(data).hexdigest()[:16], data
        line = hashlib.sha256(piece)
        while not piece.endswith(b"\n") and (piece := file.readline(1 << 20)):
            line.update(piece)
            self._whole.update(piece)
        return line.hexdigest()[:16], None


def parse_line(line: InputLine, options_of: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> BatchRequest:
    """What the line asks for; `options_of` finds the options in its document. Raises InvalidRequest, which carries the
    line's id as `line_id` where it has one."""
    if line.data is None:
        raise InvalidRequest(f"the line is longer than {MAX_LINE_BYTES >> 20} MiB; give long inputs in several lines")
    document = _parse_object(line.data)
    name = "custom_id" if is_openai_line(document) else "id"
    line_id = _check_id(name, document.get(name), default=f"line-{line.number}")
    try:
        options = options_of(document)
    except InvalidRequest as error:
        raise LineError(str(error), line_id) from None
    return BatchRequest(line_id, options)


class LineError(InvalidRequest):
    """A line whose id is known, but that cannot be run."""

    def __init__(self, message: str, line_id: str | int) -> None:
        super().__init__(message)
        self.line_id = line_id


def _parse_object(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=unique_pairs, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the line is not UTF-8 (byte {error.start + 1})") from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"the line is not JSON: {error.msg} at character {error.pos + 1}") from None
    except DuplicateKeyError as error:
        raise InvalidRequest(str(error)) from None
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the line is not usable JSON: {str(error)[:100]}") from None
    if b"\\ud" in data.lower() and not _is_text(document):
        raise InvalidRequest("the line has half of a surrogate pair (\\ud800 to \\udfff), which is no character")
    if not isinstance(document, dict):
        raise InvalidRequest(f"the line must be a JSON object, not {type(document).__name__}")
    return document


def _is_text(document: Any) -> bool:
    try:
        json.dumps(document, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _check_id(name: str, value: Any, *, default: str) -> str | int:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (str, int)) or len(str(value)) > MAX_ID_CHARACTERS:
        raise InvalidRequest(f"{name} must be a text of at most {MAX_ID_CHARACTERS} characters or a whole number")
    return value
