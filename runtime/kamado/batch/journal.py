"""The journal of a batch: what has been answered, on disk the moment it is known.

`DIR/journal.jsonl`: a header line that says which batch it is, then one line for each answered input line, in the order
in which they were answered. A line that a crash tore is cut off when the journal is opened again. A record is in the
kernel's hands as soon as `add` returns, so killing the process loses nothing; it is forced to the disk at least every
half second, so a power cut loses at most that, and those lines are answered again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..errors import InvalidRequest
from ..files import flush, replacing

SYNC_INTERVAL_S = 0.5
_VERSION = 1
_MOST_SHOWN = 4
"""Differences between two batches that an error lists."""


class Journal:
    """Append-only. Not thread safe, and not for two processes: see `BatchFolder`."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        """Open the journal of the batch that `header` describes, or start it. Raises InvalidRequest if `path` holds
        the journal of another batch, saying what differs."""
        self.path = path
        self._offsets: dict[int, tuple[int, str]] = {}
        self._descriptor = _open(path)
        self._last_sync = time.monotonic()
        try:
            self._end = self._recover({"kamado_batch": _VERSION, **header})
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._offsets)

    def has(self, number: int, digest: str) -> bool:
        """Whether the input line has been answered."""
        found = self._offsets.get(number)
        return found is not None and found[1] == digest

    def add(self, number: int, digest: str, result: Mapping[str, Any]) -> None:
        """Write down the answer to an input line. An answer that is there already is a broken invariant."""
        assert number not in self._offsets, f"line {number} has been answered already"
        record = _encode({"line": number, "digest": digest, "result": result})
        self._write(record)
        self._offsets[number] = (self._end, digest)
        self._end += len(record)
        if time.monotonic() - self._last_sync >= SYNC_INTERVAL_S:
            self.sync()

    def results(self) -> Iterator[Mapping[str, Any]]:
        """All answers, in the order of the input lines."""
        with self.path.open("rb") as file:
            for number in sorted(self._offsets):
                file.seek(self._offsets[number][0])
                yield json.loads(file.readline())["result"]

    def forget_failed(self) -> int:
        """Drop the answers whose status is not `ok`, so that those lines are run again. Returns their number."""
        kept, offsets = [], {}
        with self.path.open("rb") as file:
            end = len(file.readline())
            for number, (offset, digest) in self._offsets.items():
                file.seek(offset)
                record = file.readline()
                if json.loads(record)["result"].get("status") == "ok":
                    kept.append(offset)
                    offsets[number] = (end, digest)
                    end += len(record)
            num_dropped = len(self._offsets) - len(kept)
            if num_dropped == 0:
                return 0
            with replacing(self.path) as new:
                file.seek(0)
                new.write(file.readline())
                for offset in kept:
                    file.seek(offset)
                    new.write(file.readline())
        os.close(self._descriptor)
        self._descriptor = _open(self.path)
        self._offsets, self._end = offsets, end
        return num_dropped

    def sync(self) -> None:
        """Force what was written to the disk."""
        os.fsync(self._descriptor)
        self._last_sync = time.monotonic()

    def close(self) -> None:
        """Sync and close."""
        try:
            self.sync()
        finally:
            os.close(self._descriptor)

    def _write(self, record: bytes) -> None:
        """All of it, or none: a full disk must not leave half a record in front of the next one."""
        written = 0
        try:
            while written < len(record):
                written += os.write(self._descriptor, record[written:])
        except BaseException:
            os.ftruncate(self._descriptor, self._end)
            raise

    def _recover(self, header: Mapping[str, Any]) -> int:
        """Read what is there and cut off what a crash tore. Returns where the next record goes."""
        with self.path.open("rb") as file:
            first = file.readline()
            if not first.endswith(b"\n"):
                return self._start(first, header)
            self._compare(_decode(first), header)
            end = len(first)
            while (line := file.readline()).endswith(b"\n"):
                record = _decode(line)
                if not _is_record(record):
                    break
                self._offsets[record["line"]] = (end, record["digest"])
                end += len(line)
        os.ftruncate(self._descriptor, end)
        return end

    def _start(self, torn: bytes, header: Mapping[str, Any]) -> int:
        """Write the header, over a torn one if there is one."""
        record = _encode(header)
        if torn and not record.startswith(torn[:16]):
            raise InvalidRequest(f"{self.path} is not a batch journal; choose another folder")
        os.ftruncate(self._descriptor, 0)
        self._end = 0
        self._write(record)
        self.sync()
        flush(self.path.parent)
        return len(record)

    def _compare(self, found: Any, wanted: Mapping[str, Any]) -> None:
        if not isinstance(found, dict) or "kamado_batch" not in found:
            raise InvalidRequest(f"{self.path} is not a batch journal; choose another folder")
        # Through JSON and back, so that tuples and lists, and int and float keys, compare as they were written.
        wanted = json.loads(_encode(wanted))
        for name in sorted({*found, *wanted}):
            if found.get(name) != wanted.get(name):
                raise InvalidRequest(
                    f"{self.path.parent} holds a batch with {_difference(name, found.get(name), wanted.get(name))}; "
                    "give another folder, or --restart to throw its answers away"
                )


def _difference(name: str, was: Any, now: Any) -> str:
    """What differs between two batches, in words."""
    if not all(value is None or isinstance(value, dict) for value in (was, now)):
        return f"another {name.replace('_', ' ')} ({was!r:.80}, now {now!r:.80})"
    was, now = was or {}, now or {}

    def shown(values: Mapping[str, Any], key: str) -> str:
        return f"{values[key]!r:.80}" if key in values else "not given"

    changed = [key for key in sorted({*was, *now}) if (key in was, was.get(key)) != (key in now, now.get(key))]
    parts = [f"{key}: {shown(was, key)}, now {shown(now, key)}" for key in changed[:_MOST_SHOWN]]
    more = f"; and {len(changed) - _MOST_SHOWN} more" if len(changed) > _MOST_SHOWN else ""
    return f"other {name.replace('_', ' ')}: {'; '.join(parts)}{more}"


def journal_lines(path: Path) -> Iterator[Mapping[str, Any]]:
    """The header and the records of a journal, as far as they are whole; nothing if there is none."""
    try:
        with path.open("rb") as file:
            while isinstance(record := _decode(file.readline()), dict):
                yield record
    except FileNotFoundError:
        return


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)


def _encode(document: Mapping[str, Any]) -> bytes:
    # ASCII only, so that lone surrogates in a model's text cannot break the file
    return json.dumps(document, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def _decode(line: bytes) -> Any:
    """The JSON value of the line, or None if it is none: a torn line after a power cut may hold anything."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _is_record(record: Any) -> bool:
    return (
        isinstance(record, dict)
        and type(record.get("line")) is int
        and isinstance(record.get("digest"), str)
        and isinstance(record.get("result"), dict)
    )
