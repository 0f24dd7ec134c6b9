"""Where prepared weights lie, and which of them stay. No torch.

    KAMADO_HOME/
      prepared/ID.safetensors      one model, or one component; ID is a hash of all that it was made of. The time of its
                                   last change is that of its last use

A file appears by a rename, whole. Those that were not used for longest make room for new ones.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ...checkpoint.home import default_home
from ...checkpoint.store import Store
from ...errors import InvalidRequest
from ...files import remove_leftovers, replacing
from ...units import parse_bytes

LIMIT = "KAMADO_PREPARED_LIMIT"
"""The environment variable that says how much may be kept; 0: nothing."""
DEFAULT_LIMIT = 32 << 30
_SUFFIX = ".safetensors"
_LEFTOVER_S = 24 * 3600.0
_FREE_SHARE = 20
_FREE_BYTES = 4 << 30
"""One of so many parts of the disk stays free, or so much, whichever is less."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """One file."""

    path: Path
    nbytes: int
    used_s: float
    """Seconds since 1970."""


def limit_bytes() -> int:
    """As LIMIT says. Raises InvalidRequest."""
    told = os.environ.get(LIMIT)
    if not told:
        return DEFAULT_LIMIT
    if told.strip() == "0":
        return 0
    try:
        return parse_bytes(told)
    except InvalidRequest as error:
        raise InvalidRequest(f"{LIMIT}: {error}") from None


def prepared_home() -> Path:
    """The home whose prepared weights this process uses."""
    return default_home()


def room_bytes(folder: Path) -> int:
    """How much the disk of `folder` has room for; less than 0 if more ought to be free than is."""
    disk = shutil.disk_usage(folder)
    return disk.free - min(disk.total // _FREE_SHARE, _FREE_BYTES)


class PreparedFolder:
    """The prepared weights of one home. Opening it writes nothing. Several processes may use it at once."""

    def __init__(self, home: Path | None = None) -> None:
        self._home = home or prepared_home()
        self.folder = self._home / "prepared"

    def path(self, key: Mapping[str, Any]) -> Path:
        """Where what was made of `key` lies, if it does."""
        told = json.dumps(key, sort_keys=True, separators=(",", ":"), default=str)
        return self.folder / (hashlib.sha256(told.encode()).hexdigest()[:40] + _SUFFIX)

    def entries(self) -> list[Prepared]:
        """What there is, least recently used first."""
        found = []
        with suppress(OSError):
            for path in self.folder.glob(f"[!.]*{_SUFFIX}"):
                with suppress(OSError):
                    status = path.stat()
                    found.append(Prepared(path, status.st_size, status.st_mtime))
        return sorted(found, key=lambda entry: entry.used_s)

    def note_use(self, path: Path) -> None:
        """It was used now. A folder that cannot be written stays as it is."""
        with suppress(OSError):
            os.utime(path, (time.time(),) * 2)

    def remove(self, path: Path) -> None:
        """Delete one, if it can be. Who has it mapped keeps it."""
        with suppress(OSError):
            path.unlink()

    def clear(self) -> int:
        """Delete all. Returns the bytes. Raises OSError."""
        freed = 0
        for entry in self.entries():
            entry.path.unlink(missing_ok=True)
            freed += entry.nbytes
        self._remove_leftovers(0)
        return freed

    def _remove_leftovers(self, least_age_s: float) -> None:
        """Delete what processes that were killed have left half-written, and nobody has written to for so long."""
        for path in self.folder.glob(".*.part"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime >= least_age_s:
                    path.unlink()

    @contextmanager
    def writing(self, path: Path, nbytes: int) -> Iterator[BinaryIO | None]:
        """A file that takes the name `path` when the body ends well. None: it is there already, another process is
        writing it, or there is no room. Raises OSError."""
        import filelock

        with suppress(filelock.Timeout), Store(self._home).locked(f"prepared-{path.stem}", wait=False):
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path)
            self._remove_leftovers(_LEFTOVER_S)
            if path.exists() or not self._make_room(nbytes):
                yield None
            else:
                with replacing(path) as file:
                    yield file
            return
        yield None

    def _make_room(self, nbytes: int) -> bool:
        """As the limit and the disk allow. False: nothing was removed."""
        limit, entries = limit_bytes(), self.entries()
        held = sum(entry.nbytes for entry in entries)
        needed = max(held + nbytes - limit, nbytes - room_bytes(self.folder))
        if nbytes > limit or needed > held:
            return False
        for entry in entries:
            if needed <= 0:
                break
            self.remove(entry.path)
            needed -= entry.nbytes
        return True
