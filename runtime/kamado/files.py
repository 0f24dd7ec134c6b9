"""Files that are there whole or not at all."""

from __future__ import annotations

import itertools
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from .errors import InvalidRequest

_SUFFIX = ".part"
_NEW = os.O_CREAT | os.O_EXCL | os.O_RDWR


def _prefix(path: Path) -> str:
    return f".{path.name[:40]}."


def remove_leftovers(path: Path) -> None:
    """Remove what `replacing(path)` left behind when it was killed. Nobody may be writing `path` now."""
    name = re.compile(re.escape(_prefix(path)) + "[0-9a-f]{16}" + re.escape(_SUFFIX))
    for leftover in path.parent.iterdir():
        if name.fullmatch(leftover.name):
            leftover.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, that takes the place of `path` when the body ends well, and vanishes when it does not. Links
    are followed; what is no ordinary file (a device, a pipe) is written to as it is. The file's `name` is its path, for
    libraries that open files themselves."""
    path = path.resolve()
    if path.exists() and not path.is_file():
        with path.open("wb") as special:
            yield special
        return
    # Its name is known before it is made, so that it goes away even if Ctrl-C comes while it is being made.
    temporary = path.with_name(f"{_prefix(path)}{secrets.token_hex(8)}{_SUFFIX}")
    mode = _mode(path)
    # The kernel takes the umask off, which a program cannot read without changing it for all of its threads.
    first_mode = 0o666 if mode is None else 0o600
    try:
        with open(temporary, "wb", opener=lambda name, _: os.open(name, _NEW, first_mode)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            os.chmod(temporary, mode)
        os.replace(temporary, path)
    except OSError as error:
        if error.filename in (None, os.fspath(temporary)):  # a full disk does not know whose write failed
            error.filename = os.fspath(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    flush(path.parent)


def write_new(path: Path, write: Callable[[Path], None]) -> Path:
    """Have `write` make a file, which then gets the name `path`, or, where something has that name, `name-2.png`,
    `name-3.png`, ... Returns what it is called. Nothing is ever replaced, and nothing is left if `write` raises."""
    temporary = path.with_name(f".{secrets.token_hex(8)}{path.suffix}")
    try:
        write(temporary)
        names = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2))
        name = next(name for name in itertools.chain([path], names) if _called(temporary, name))
    finally:
        temporary.unlink(missing_ok=True)
    flush(path.parent)
    return name


def _called(file: Path, name: Path) -> bool:
    """Give the file a further name. False if something has that already."""
    try:
        os.link(file, name)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        if name.exists():
            return False
        file.rename(name)
    return True


def check_writable(folder: Path) -> None:
    """Raise InvalidRequest unless a folder can be written to, or made. Nothing stays."""
    above = (folder, *folder.absolute().parents)
    place = next(each for each in above if os.path.exists(each))
    if not place.is_dir():
        raise InvalidRequest(f"the folder {folder} cannot be made: {place} is a file; name another folder")
    if (reason := _why_no_files(place)) is not None:
        raise InvalidRequest(f"the folder {place} cannot be written to: {reason}; name another folder")


def check_place(path: Path) -> None:
    """Raise InvalidRequest unless `replacing(path)` can write, as far as that shows before. Nothing stays."""
    path = path.resolve()
    if path.exists() and not path.is_file():
        return
    if (reason := _why_no_files(path.parent)) is not None:
        raise InvalidRequest(f"the folder {path.parent} cannot be written to: {reason}; name a file elsewhere (-o)")


def _why_no_files(folder: Path) -> str | None:
    """What the system says when a file is made there; None if it can be. Permissions do not tell of `/proc`."""
    probe = folder / f".{secrets.token_hex(8)}{_SUFFIX}"
    try:
        os.close(os.open(probe, _NEW, 0o600))
    except OSError as error:
        return error.strerror or str(error)
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return None


def make_folder(folder: Path) -> None:
    """Make a folder to write to, where there is none. Raises InvalidRequest."""
    check_writable(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidRequest(f"the folder {folder} cannot be made: {error.strerror}; name another folder") from error


def write_json(path: Path, value: Any) -> None:
    """Have `path` hold `value`, keys in order, as a whole or not at all."""
    with replacing(path) as file:
        file.write(json.dumps(value, indent=1, sort_keys=True).encode())


def _mode(path: Path) -> int | None:
    """The permissions of the file; None if there is none."""
    try:
        return path.stat().st_mode & 0o777
    except FileNotFoundError:
        return None


def flush(path: Path) -> None:
    """Make a file's content, or the names in a folder, survive a power cut (folders where the system can do that)."""
    if os.name != "posix" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
