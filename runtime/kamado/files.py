"""Files that are there whole or not at all."""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

_SUFFIX = ".part"


def _prefix(path: Path) -> str:
    return f".{path.name[:40]}."


def remove_leftovers(path: Path) -> None:
    """Remove what `replacing(path)` left behind when it was killed. Nobody may be writing `path` now."""
    for leftover in path.parent.iterdir():
        if leftover.name.startswith(_prefix(path)) and leftover.name.endswith(_SUFFIX):
            leftover.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, that takes the place of `path` when the body ends well, and vanishes when it does not. Links
    are followed; what is no ordinary file (a device, a pipe) is written to as it is."""
    path = path.resolve()
    if path.exists() and not path.is_file():
        with path.open("wb") as special:
            yield special
        return
    descriptor, temporary = tempfile.mkstemp(prefix=_prefix(path), suffix=_SUFFIX, dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
        os.chmod(temporary, _usual_mode(path))
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    flush(path.parent)


@contextmanager
def claimed(path: Path) -> Iterator[Path]:
    """A path for a new file: `path`, or, where a file has that name, `name-2.png`, `name-3.png`, ...

    The name is taken at once, with an empty file, so that nobody's is overwritten; that vanishes if the body raises."""
    names = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2))
    claim = path
    while not _create(claim):
        claim = next(names)
    try:
        yield claim
    except BaseException:
        claim.unlink(missing_ok=True)
        raise


def _create(path: Path) -> bool:
    """Make an empty file. False if something has that name already."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError:
        return False
    return True


def write_json(path: Path, value: Any) -> None:
    """Have `path` hold `value`, keys in order, as a whole or not at all."""
    with replacing(path) as file:
        file.write(json.dumps(value, indent=1, sort_keys=True).encode())


def _usual_mode(path: Path) -> int:
    """The permissions that the file has, or that a new one gets from most people's umask (which cannot be read without
    changing it for the whole process)."""
    try:
        return path.stat().st_mode & 0o777
    except FileNotFoundError:
        return 0o644


def flush(path: Path) -> None:
    """Make a file's content, or the names in a folder, survive a power cut (folders where the system can do that)."""
    if os.name != "posix" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
