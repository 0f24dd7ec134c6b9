"""SHA-256 of files, with a small cache, for recipes and for the store."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ..errors import KamadoError, UnsupportedCheckpoint
from ..files import replacing
from .types import Checkpoint

MAX_CACHED = 4096
_CHUNK_BYTES = 4 << 20
_CACHE = "digests.json"


def hash_file(path: Path, *, progress: Callable[[int], None] | None = None) -> str:
    """SHA-256 of the file as 64 hexadecimal digits. `progress` gets the bytes read so far. Raises OSError."""
    digest = hashlib.sha256()
    done = 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress(done)
    return digest.hexdigest()


def file_digest(path: Path, *, home: Path | None = None) -> str:
    """SHA-256 of one file, as `file_digests` tells it."""
    return file_digests([path], home=home)[path]


def file_digests(
    paths: Iterable[Path], *, home: Path | None = None, progress: Callable[[int], None] | None = None
) -> dict[Path, str]:
    """SHA-256 of the files, by path, from the cache of the store at `home` where path, size, time of change and inode
    are the same. The cache is read once, and written once if need be.

    `progress` gets the bytes read so far of the file that is read, and may stop it by raising InterruptedError, which
    is passed on. A store that cannot be written costs only the cache. Raises UnsupportedCheckpoint if a file cannot be
    read.
    """
    home = home or digests_home()
    known = _read(home / _CACHE)
    digests, new = {}, {}
    try:
        for path in paths:
            key = _key(path)
            digests[path] = known.get(key) or hash_file(path, progress=progress)
            if key not in known and key == _key(path):
                new[key] = digests[path]
    except InterruptedError:
        raise
    except OSError as error:
        raise UnsupportedCheckpoint(f"{path} cannot be read: {error.strerror or error}") from error
    finally:  # what was hashed before Ctrl-C came, too
        if new:
            _add(home, new)
    return digests


def known_digests(paths: Iterable[Path], *, home: Path | None = None) -> dict[str, str] | None:
    """SHA-256 of the files as `file_digests` would tell it without reading one, by path; None if it would have to."""
    known = _read((home or digests_home()) / _CACHE)
    try:
        return {str(path): known[_key(path)] for path in paths}
    except (OSError, KeyError):
        return None


def checkpoint_digests(checkpoint: Checkpoint, *, home: Path | None = None) -> dict[str, str]:
    """SHA-256 of every file of `checkpoint`, by its name relative to the root."""
    files = {entry.file for entry in checkpoint.tensors.values()}
    files |= {*checkpoint.files.values(), *checkpoint.code.values()}
    folder = checkpoint.root if checkpoint.root.is_dir() else checkpoint.root.parent
    digests = file_digests(sorted(files), home=home)
    return {path.relative_to(folder).as_posix(): digest for path, digest in digests.items()}


def digests_home() -> Path:
    """The store whose cache is used if none is named."""
    from .home import default_home

    return default_home()


def _key(path: Path) -> str:
    status = os.stat(path)
    return f"{os.path.realpath(path)}|{status.st_size}|{status.st_mtime_ns}|{status.st_ino}"


def _read(cache: Path) -> Mapping[str, str]:
    try:
        status = os.stat(cache)
    except OSError:
        return {}
    return _parsed(cache, status.st_size, status.st_mtime_ns, status.st_ino)


@functools.lru_cache(maxsize=2)  # a recipe asks for each component
def _parsed(cache: Path, _size: int, _changed_ns: int, _inode: int) -> Mapping[str, str]:
    from .strict_json import read_json_object

    try:
        known = read_json_object(cache)
    except KamadoError:
        return {}
    return {key: value for key, value in known.items() if isinstance(value, str) and len(value) == 64}


def _add(home: Path, new: Mapping[str, str]) -> None:
    """Keep the newest. Of several writers, also in other processes, each one's addition stays."""
    from .store import Store

    # filelock raises NotImplementedError where the file system has no locks.
    with contextlib.suppress(OSError, NotImplementedError), Store(home).locked("digests"):
        # The first one is the newest, on disk too: in order of names, the last ones would be lost to every new one.
        newest = dict(list({**new, **_read(home / _CACHE)}.items())[:MAX_CACHED])
        with replacing(home / _CACHE) as file:
            file.write(json.dumps(newest, separators=(",\n", ": ")).encode())
