"""What a command says, and where: answers on stdout, everything else on stderr, bars only to a terminal."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

# Everything that could move the cursor, recolour or retitle a terminal; newline and tab stay.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """The text with control characters replaced, so that model output and file names cannot drive a terminal."""
    return _CONTROL.sub("\ufffd", text.replace("\r\n", "\n"))


def shorten(text: str, size: int = 26) -> str:
    """The text, or its two ends."""
    return text if len(text) <= size else f"{text[: size // 3]}\u2026{text[-(size - size // 3 - 1) :]}"


class Update(Protocol):
    """How far a long step has come."""

    def __call__(self, done: int, total: int | None = None, detail: str = "") -> None:
        """`done` of `total` units (None: as before); `detail` is shown behind the bar."""


class Output:
    """The three channels of one command: the answer, notes about the work, details for the curious."""

    def __init__(
        self,
        *,
        is_json: bool = False,
        quiet: bool = False,
        verbose: bool = False,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
    ) -> None:
        self.is_json = is_json
        self.quiet = quiet
        self.verbose = verbose
        self._stdout = stdout or sys.stdout
        self._stderr = stderr or sys.stderr

    @property
    def is_terminal(self) -> bool:
        """Whether somebody reads stdout as it comes."""
        return self._stdout.isatty()

    @property
    def shows_progress(self) -> bool:
        """Whether bars and other passing notes have a reader: stderr is a terminal, and -q was not given."""
        return self._stderr.isatty() and not self.quiet

    def line(self, text: str = "") -> None:
        """One line for people, on stdout; nothing under --json and -q."""
        if not (self.is_json or self.quiet):
            self.text(text + "\n")

    def text(self, text: str) -> None:
        """Part of the answer itself, on stdout, at once and as it is; nothing under --json."""
        if not self.is_json:
            self._stdout.write(printable(text) if self.is_terminal else text)
            self._stdout.flush()

    def json(self, document: Any) -> None:
        """One JSON document on one line of stdout; nothing without --json."""
        if self.is_json:
            is_utf8 = (getattr(self._stdout, "encoding", None) or "utf-8").lower().replace("-", "") == "utf8"
            self._stdout.write(dump_json(document, ascii_only=not is_utf8) + "\n")
            self._stdout.flush()

    def note(self, text: str) -> None:
        """One line about the work, on stderr; nothing under -q."""
        if not self.quiet:
            self._say(text)

    def passing(self, text: str) -> None:
        """One line that matters only to somebody who is watching: on stderr if that is a terminal."""
        if self.shows_progress:
            self._say(text)

    def detail(self, text: str) -> None:
        """One line on stderr, only with -v."""
        if self.verbose:
            self._say(text)

    def error(self, text: str) -> None:
        """One line about what went wrong, on stderr, also under -q."""
        self._say(f"kamado: {text}")

    def _say(self, text: str) -> None:
        self._stderr.write(printable(text) + "\n")
        self._stderr.flush()

    @contextmanager
    def progress(self, total: int | None, label: str, *, unit: str = "bytes") -> Iterator[Update]:
        """A bar on stderr while the body runs: `with out.progress(size, "pull") as update: update(done)`.

        `unit` is `"bytes"` or the plural of what is counted. Without a terminal, `update` does nothing.
        """
        if not self.shows_progress:
            yield _no_update
            return
        bar = _bar(self._stderr, unit)
        task = bar.add_task(shorten(printable(label)), total=total, detail="")

        def update(done: int, total: int | None = None, detail: str = "") -> None:
            changes: dict[str, Any] = {} if total is None else {"total": total}
            bar.update(task, completed=done, detail=printable(detail), **changes)

        with bar:
            yield update


def _no_update(done: int, total: int | None = None, detail: str = "") -> None:
    """Nobody is watching."""


def _bar(stream: TextIO, unit: str) -> Any:
    """A rich progress bar that leaves nothing behind. rich is imported here: it costs 55 ms."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.table import Column

    def fixed() -> Column:
        return Column(no_wrap=True)

    label = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))
    counts: list[ProgressColumn] = [MofNCompleteColumn(table_column=fixed()), TextColumn(unit, table_column=fixed())]
    if unit == "bytes":
        counts = [DownloadColumn(True, table_column=fixed()), TransferSpeedColumn(table_column=fixed())]
    left = TimeRemainingColumn(table_column=fixed())
    detail = TextColumn("{task.fields[detail]}", markup=False, table_column=fixed())
    bar = BarColumn(bar_width=16, table_column=fixed())
    return Progress(label, bar, *counts, left, detail, console=Console(file=stream), transient=True)


def dump_json(document: Any, *, ascii_only: bool = False) -> str:
    """JSON on one line. Numbers that JSON does not have (NaN, infinity) are a ValueError, never bad JSON."""
    text = json.dumps(document, ensure_ascii=ascii_only, allow_nan=False, default=_plain)
    # A lone surrogate cannot be written as UTF-8; escaped it can.
    return re.sub("[\ud800-\udfff]", lambda match: f"\\u{ord(match.group()):04x}", text)


def _plain(value: Any) -> Any:
    """What json does not know: other mappings, sets, paths."""
    if hasattr(value, "keys"):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return str(value)
