"""SHA-256 of files, with a small cache, for recipes and for the store."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable
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
    """SHA-256 of the file, from the cache of the store at `home` if path, size, time of change and inode are the same.

    A store that cannot be written costs only the cache. Raises UnsupportedCheckpoint if the file cannot be read.
    """
    from .home import default_home

    home = home or default_home()
    try:
        key = _key(path)
        known = _read(home / _CACHE)
        if key in known:
            return known[key]
        digest = hash_file(path)
        unchanged = key == _key(path)
    except OSError as error:
        raise UnsupportedCheckpoint(f"{path} cannot be read: {error.strerror or error}") from error
    if unchanged:
        _add(home, key, digest)
    return digest


def known_digests(paths: Iterable[Path], *, home: Path | None = None) -> dict[str, str] | None:
    """SHA-256 of the files as `file_digest` would tell it without reading one, by path; None if it would have to."""
    from .home import default_home

    known = _read((home or default_home()) / _CACHE)
    try:
        return {str(path): known[_key(path)] for path in paths}
    except (OSError, KeyError):
        return None


def checkpoint_digests(checkpoint: Checkpoint, *, home: Path | None = None) -> dict[str, str]:
    """SHA-256 of every file of `checkpoint`, by its name relative to the root."""
    files = {entry.file for entry in checkpoint.tensors.values()}
    files |= {*checkpoint.files.values(), *checkpoint.code.values()}
    folder = checkpoint.root if checkpoint.root.is_dir() else checkpoint.root.parent
    return {path.relative_to(folder).as_posix(): file_digest(path, home=home) for path in sorted(files)}


def _key(path: Path) -> str:
    status = os.stat(path)
    return f"{os.path.realpath(path)}|{status.st_size}|{status.st_mtime_ns}|{status.st_ino}"


def _read(cache: Path) -> dict[str, str]:
    from .strict_json import read_json_object

    try:
        known = read_json_object(cache)
    except KamadoError:
        return {}
    return {key: value for key, value in known.items() if isinstance(value, str) and len(value) == 64}


def _add(home: Path, key: str, digest: str) -> None:
    """Keep the newest. Of several writers, also in other processes, each one's addition stays."""
    from .store import Store

    # filelock raises NotImplementedError where the file system has no locks.
    with contextlib.suppress(OSError, NotImplementedError), Store(home).locked("digests"):
        # The first one is the newest, on disk too: in order of names, the last ones would be lost to every new one.
        newest = dict(list({key: digest, **_read(home / _CACHE)}.items())[:MAX_CACHED])
        with replacing(home / _CACHE) as file:
            file.write(json.dumps(newest, indent=1).encode())
