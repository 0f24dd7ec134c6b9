"""The local store: finished models, and the half-finished ones that a later pull goes on with.

    KAMADO_HOME/
      entries/ID/manifest.json     written with the files, before ID gets its name: what is in entries is whole
      entries/ID/files/...
      partial/ID/...               work in progress, resumable
      partial/trash-*              being deleted
      locks/ID.lock                who is working on ID
      digests.json                 see digest.py

An entry appears by one rename on one disk, after every file in it was verified and flushed. So a kill at any moment
leaves either the whole entry or work in progress, never something in between.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import InvalidRequest, KamadoError, ModelNotFound, UnsafeCheckpoint, UnsupportedCheckpoint
from ..files import flush, write_json
from .digest import hash_file
from .home import default_home as default_home
from .paths import below, check_name
from .reference import HubReference, PypiReference
from .strict_json import read_json_object

MANIFEST = "manifest.json"
DEFAULT_BRANCH = "main"
TOKENIZERS = "hub-tokenizers"
"""Source of entries that hold the tokenizers of a hub's repository, and none of its weights. They are not models."""
_FORMAT = 1
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """One file of a finished entry."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One finished model of the store."""

    id: str
    folder: Path
    source: str
    """`hub`, `pypi`, or `TOKENIZERS`."""
    name: str
    """Repository or package."""
    requested: tuple[str, ...]
    """The branches, tags or versions that led here. Empty once a newer pull took them over."""
    revision: str
    """The commit or version that came."""
    target: str
    """What loads: `.` for the folder of files, else the one file's name."""
    created_s: float
    """Seconds since 1970."""
    files: Mapping[str, StoredFile]

    @property
    def reference(self) -> str:
        if self.source == "pypi":
            return str(PypiReference(self.name, self.revision))
        revision = (*self.requested, self.revision)[0]
        reference = str(HubReference(self.name, None if revision == DEFAULT_BRANCH else revision))
        return f"{reference} (tokenizers)" if self.source == TOKENIZERS else reference

    @property
    def path(self) -> Path:
        """The checkpoint: a folder or a file."""
        return self.folder / "files" if self.target == "." else self.folder / "files" / self.target

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files.values())

    def answers(self, wanted: HubReference | PypiReference) -> bool:
        """Whether this entry is what `wanted` names."""
        if isinstance(wanted, PypiReference):
            return self.source == "pypi" and self.name == wanted.package and wanted.version in (None, self.revision)
        if self.source != "hub" or self.name.lower() != wanted.repository.lower():
            return False
        return (wanted.revision or DEFAULT_BRANCH) in (*self.requested, self.revision)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with a stored file."""

    file: str
    problem: str


class Store:
    """The local store below one home folder. Opening it writes nothing."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.entries_folder = home / "entries"
        self.partial_folder = home / "partial"
        self.locks_folder = home / "locks"

    @classmethod
    def open(cls, home: Path | None = None) -> Store:
        """The store at `home`, or at the default place. Raises InvalidRequest if something else is there."""
        home = home or default_home()
        if home.exists() and not home.is_dir():
            raise InvalidRequest(f"{home} is not a folder; set KAMADO_HOME to one for the models")
        return cls(home)

    def entries(self) -> list[Entry]:
        """All finished models, newest first. Folders without a sound manifest are left out."""
        found: list[Entry] = []
        try:
            folders = sorted(self.entries_folder.iterdir())
        except OSError:
            return found
        for folder in folders:
            with contextlib.suppress(KamadoError):
                found.append(read_entry(folder))
        return sorted(found, key=lambda entry: -entry.created_s)

    def find(self, wanted: HubReference | PypiReference) -> Entry | None:
        """The newest finished model that `wanted` names and whose files are all there in the right size, or None."""
        answers = (entry for entry in self.entries() if entry.answers(wanted))
        return next((entry for entry in answers if not faults_at_a_glance(entry)), None)

    def entry_of(self, path: Path) -> Entry | None:
        """The finished model that `path` belongs to, or None."""
        try:
            folder = path.resolve().relative_to(self.entries_folder.resolve()).parts[0]
            return read_entry(self.entries_folder / folder)
        except (ValueError, IndexError, OSError, KamadoError):
            return None

    def remove(self, entry: Entry) -> None:
        """Delete `entry`. It disappears at once; a kill in between leaves only rubbish, which the next pull clears."""
        with translated_os_errors(self.home), self.locked(entry.id):
            self.partial_folder.mkdir(parents=True, exist_ok=True)
            trash = self.partial_folder / f"trash-{uuid.uuid4().hex}"
            with contextlib.suppress(FileNotFoundError):
                entry.folder.rename(trash)
            shutil.rmtree(trash, ignore_errors=True)

    def unfinished(self) -> dict[str, int]:
        """Bytes of work in progress, by the id of what is, or was, being pulled."""
        folders = [path for path in self.partial_folder.glob("*") if path.is_dir()]
        return {path.name: sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) for path in folders}

    def remove_unfinished(self) -> int:
        """Delete the work in progress that nobody is working on. Returns the bytes that were freed."""
        import filelock

        freed = 0
        with translated_os_errors(self.home):
            for name, size in self.unfinished().items():
                with contextlib.suppress(filelock.Timeout), self.locked(name, wait=False):
                    shutil.rmtree(self.partial_folder / name)
                    freed += size
        return freed

    def clear_trash(self) -> None:
        """Finish deletions that were killed."""
        for trash in self.partial_folder.glob("trash-*"):
            shutil.rmtree(trash, ignore_errors=True)

    @contextlib.contextmanager
    def locked(self, entry_id: str, *, waiting: Callable[[], None] | None = None, wait: bool = True) -> Iterator[None]:
        """Hold the lock of `entry_id` among all processes. The system frees it when a process dies. If another process
        holds it, `waiting` is called once; without `wait`, filelock.Timeout is raised. At the end a folder of work in
        progress without any file goes, and the lock's file."""
        import filelock

        self.locks_folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.locks_folder / f"{check_name(entry_id)}.lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            if not wait:
                raise
            if waiting is not None:
                waiting()
            lock.acquire()
        try:
            yield
        finally:
            work = self.partial_folder / entry_id
            if not any(path.is_file() for path in work.rglob("*")):
                shutil.rmtree(work, ignore_errors=True)
            # Whoever waits has this file open or opens a new one: filelock begins anew if what it locked has no name.
            with contextlib.suppress(OSError):
                os.unlink(lock.lock_file)
            lock.release()

    def partial(self, entry_id: str) -> Path:
        """The folder for work in progress on `entry_id`, made if it is not there."""
        folder = self.partial_folder / check_name(entry_id)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def finish(self, stage: Path, entry: Entry) -> Entry:
        """Make `stage`, which holds `files/`, verified, the finished `entry`: flush, write the manifest, rename."""
        for name in entry.files:
            flush(below(stage / "files", name))
        write_json(stage / MANIFEST, _manifest(entry))
        _flush_folders(stage)
        self.entries_folder.mkdir(parents=True, exist_ok=True)
        if entry.folder.exists():
            entry.folder.rename(self.partial_folder / f"trash-{uuid.uuid4().hex}")
        stage.rename(entry.folder)
        flush(self.entries_folder)
        shutil.rmtree(self.partial_folder / entry.id, ignore_errors=True)
        self.clear_trash()
        self._take_over(entry)
        return entry

    def adopt(self, entry: Entry, wanted: str) -> Entry:
        """Note that the branch, tag or version `wanted` leads to this finished `entry` now."""
        if wanted not in (*entry.requested, entry.revision):
            entry = replace(entry, requested=(wanted, *entry.requested))
            write_json(entry.folder / MANIFEST, _manifest(entry))
        self._take_over(entry)
        return entry

    def _take_over(self, entry: Entry) -> None:
        """A branch leads to one commit: take it from the entry that it led to before."""
        for other in self.entries():
            same = (other.source, other.name) == (entry.source, entry.name) and other.id != entry.id
            kept = tuple(name for name in other.requested if name not in entry.requested)
            if same and kept != other.requested:
                write_json(other.folder / MANIFEST, _manifest(replace(other, requested=kept)))


def entry_id(source: str, name: str, revision: str) -> str:
    """A folder name for a model: readable, portable, and different for names that differ only in case."""
    exact = f"{source}:{name}@{revision}"
    readable = re.sub(r"[^a-z0-9._]+", "-", f"{source}-{name}-{revision[:12]}".lower()).strip("-.")[:100]
    return f"{readable}-{hashlib.sha256(exact.encode()).hexdigest()[:8]}"


def read_entry(folder: Path) -> Entry:
    """The manifest of a finished model. Raises UnsupportedCheckpoint or UnsafeCheckpoint if it is not sound."""
    path = folder / MANIFEST
    data = read_json_object(path)
    try:
        files = {
            check_name(name, where=str(path)): StoredFile(sha256=value["sha256"], size=value["size"])
            for name, value in data["files"].items()
        }
        entry = Entry(
            id=folder.name, folder=folder, source=data["source"], name=data["name"], requested=tuple(data["requested"]),
            revision=data["revision"], target=data["target"], created_s=float(data["created_s"]), files=files,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnsupportedCheckpoint(f"{path} is damaged ({error}); remove the model and pull it again") from error
    sound = all(
        isinstance(text, str) for text in (entry.source, entry.name, entry.revision, entry.target, *entry.requested)
    ) and all(
        isinstance(file.size, int) and isinstance(file.sha256, str) and _SHA256.fullmatch(file.sha256)
        for file in files.values()
    )
    if data.get("format") != _FORMAT or not sound or (entry.target != "." and entry.target not in files):
        raise UnsupportedCheckpoint(f"{path} is damaged or of another version; remove the model and pull it again")
    return entry


def faults_at_a_glance(entry: Entry) -> list[Fault]:
    """Files that are missing or have the wrong size. Reads no file."""
    faults: list[Fault] = []
    for name, stored in entry.files.items():
        try:
            size = os.stat(below(entry.folder / "files", name)).st_size
        except OSError:
            faults.append(Fault(name, "is missing"))
            continue
        except UnsafeCheckpoint:
            faults.append(Fault(name, "is a link that leaves the store"))
            continue
        if size != stored.size:
            faults.append(Fault(name, f"has {size} bytes instead of {stored.size}"))
    return faults


def verify(entry: Entry, *, progress: Callable[[int, int], None] | None = None) -> list[Fault]:
    """Read every file of `entry` again: what is missing, cut or changed. Empty if it is as it was pulled."""
    faults = faults_at_a_glance(entry)
    bad = {fault.file for fault in faults}
    done = 0
    for name, stored in entry.files.items():
        if name not in bad:
            base = done

            def report(part: int, base: int = base) -> None:
                if progress is not None:
                    progress(base + part, entry.total_bytes)

            try:
                if hash_file(below(entry.folder / "files", name), progress=report) != stored.sha256:
                    faults.append(Fault(name, "was changed"))
            except OSError as error:
                faults.append(Fault(name, f"cannot be read: {error.strerror or error}"))
        done += stored.size
    return faults


@contextlib.contextmanager
def translated_os_errors(home: Path) -> Iterator[None]:
    """Turn a full disk or a store that cannot be written into a KamadoError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise KamadoError(
                f"the disk of {home} is full; free some space (kamado list, kamado rm) or set KAMADO_HOME elsewhere"
            ) from error
        raise KamadoError(f"the store {home} cannot be used: {error}; set KAMADO_HOME to a place that can") from error


def require_space(folder: Path, needed_bytes: int) -> None:
    """Raise OSError (ENOSPC) now rather than after the first gigabytes."""
    if shutil.disk_usage(folder).free < needed_bytes:
        raise OSError(errno.ENOSPC, f"{needed_bytes} bytes are needed", str(folder))


def make_entry(
    store: Store, source: str, name: str, *, requested: tuple[str, ...], revision: str, target: str,
    files: Mapping[str, StoredFile],
) -> Entry:  # fmt: skip
    """The entry that `Store.finish` will make real."""
    new_id = entry_id(source, name, revision)
    return Entry(
        id=new_id, folder=store.entries_folder / new_id, source=source, name=name, requested=requested,
        revision=revision, target=target, created_s=time.time(), files=dict(files),
    )  # fmt: skip


def find_by_id(store: Store, text: str) -> Entry:
    """The entry whose id is `text`. Raises ModelNotFound."""
    found = next((entry for entry in store.entries() if entry.id == text), None)
    if found is None:
        raise ModelNotFound(f"{text!r} is not in the store; kamado list shows what is")
    return found


def _manifest(entry: Entry) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "source": entry.source,
        "name": entry.name,
        "requested": list(entry.requested),
        "revision": entry.revision,
        "target": entry.target,
        "created_s": entry.created_s,
        "files": {name: {"sha256": file.sha256, "size": file.size} for name, file in entry.files.items()},
    }


def _flush_folders(top: Path) -> None:
    for folder, _, _ in os.walk(top):
        flush(Path(folder))
