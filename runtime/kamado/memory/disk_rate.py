"""How fast a disk reads a file from begin to end, and whether it was the disk that was read."""

from __future__ import annotations

import mmap
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .rates import DiskRead

LARGEST_BYTES = 256 << 20
"""Of a file, what is read at most."""
_CHUNK = 4 << 20
_ALIGNMENT = 4096
_LONGEST_S = 3.0
_WRITTEN_BYTES = 64 << 20


def disk_rate(home: Path) -> tuple[float, DiskRead] | None:
    """(bytes a second, how it was read) of the disk that holds `home`; None where nothing there can be read.

    The largest file below `home` is read if it is large enough; else one is written there, and removed again."""
    try:
        with _file(home) as path:
            return _rate(path)
    except OSError:
        return None


@contextmanager
def _file(home: Path) -> Iterator[Path]:
    sizes = {}
    for folder, _, names in os.walk(home):
        for name in names:
            path = Path(folder, name)
            with suppress(OSError):
                if path.is_file() and not path.is_symlink():
                    sizes[path] = path.stat().st_size
    largest = max(sizes, key=lambda path: sizes[path], default=None)
    if largest is not None and sizes[largest] >= _WRITTEN_BYTES:
        yield largest
        return
    home.mkdir(parents=True, exist_ok=True)
    temporary = home / f".rate-{secrets.token_hex(8)}.part"
    try:
        with temporary.open("xb") as file:
            for _ in range(_WRITTEN_BYTES // _CHUNK):
                file.write(os.urandom(_CHUNK))  # disks that compress must not be flattered
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _rate(path: Path) -> tuple[float, DiskRead]:
    direct = getattr(os, "O_DIRECT", 0)
    if direct:
        with suppress(OSError):  # file systems in memory, and some of networks, have no such thing
            return _read(path, os.O_RDONLY | direct), "direct"
    is_dropped = _drop_cached(path)
    return _read(path, os.O_RDONLY), "dropped" if is_dropped else "cached"


def _read(path: Path, flags: int) -> float:
    """Raises OSError, also for a file that is too short."""
    descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
    try:
        whole = min(os.fstat(descriptor).st_size, LARGEST_BYTES) // _ALIGNMENT * _ALIGNMENT
        done = 0
        begin = time.perf_counter()
        with mmap.mmap(-1, _CHUNK) as memory:  # aligned to pages, as direct reading wants it
            while done < whole and time.perf_counter() - begin < _LONGEST_S:
                count = _read_some(descriptor, memory, done)
                if not count:
                    break
                done += count
        seconds = time.perf_counter() - begin
    finally:
        os.close(descriptor)
    if not done:
        raise OSError(f"nothing could be read of {path}")
    return done / max(seconds, 1e-9)


def _read_some(descriptor: int, memory: mmap.mmap, offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [memory], offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    data = os.read(descriptor, _CHUNK)
    memory[: len(data)] = data
    return len(data)


def _drop_cached(path: Path) -> bool:
    """Ask the system to forget what it holds of the file. Whether it is seen to have done so."""
    if not (hasattr(os, "posix_fadvise") and hasattr(os, "preadv") and hasattr(os, "RWF_NOWAIT")):
        return False
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        size = os.fstat(descriptor).st_size
        offsets = [size * part // 4 for part in range(4)]
        return not any(_is_cached(descriptor, offset) for offset in offsets)
    finally:
        os.close(descriptor)


def _is_cached(descriptor: int, offset: int) -> bool:
    """Whether a read at once finds something there. True where that cannot be told."""
    try:
        os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
