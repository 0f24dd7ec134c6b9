"""`kamado pull`, `list`, `show`, `rm`, `verify` and `convert-pickle`: the local model store."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from ..checkpoint.types import Checkpoint
from ..errors import InvalidRequest, ModelNotFound, UnsupportedCheckpoint
from ..units import format_bytes
from .common import Output, common_options
from .loading import pull_bar

_MAX_SHOWN_FILES = 12


@click.command()
@click.argument("model")
@click.option("--update", is_flag=True, help="Look for a newer one even if it is here.")
@common_options
def pull(model: str, update: bool, out: Output) -> None:
    """Bring MODEL to this machine. Stopped at any moment and started again, it goes on where it was."""
    from ..checkpoint.resolve import resolve

    with pull_bar(out, f"pull {model}") as progress:
        path = resolve(model, update=update, progress=progress, detail=out.detail)
    out.line(str(path))
    out.json({"model": model, "path": str(path), **_entry_facts(model)})


@click.command("list")
@common_options
def list_models(out: Output) -> None:
    """List the models that are here, newest first, and those that can be pulled by a short name."""
    from ..checkpoint import catalog
    from ..checkpoint.resolve import comes_along, find_entry
    from ..checkpoint.store import Store
    from ..weights.prepared.folder import PreparedFolder

    store = Store.open()
    prepared = sum(entry.nbytes for entry in PreparedFolder(store.home).entries())
    entries = store.entries()
    short = {name: find_entry(name) for name in catalog.models()}
    names = {entry.id: [name for name, found in short.items() if found and found.id == entry.id] for entry in entries}
    rows = [
        {
            "reference": entry.reference, "names": names[entry.id], "id": entry.id, "revision": entry.revision,
            "bytes": entry.total_bytes, "pulled_s": entry.created_s, "path": str(entry.path),
        }
        for entry in entries
    ]  # fmt: skip
    total = sum(entry.total_bytes for entry in entries)
    along = [name for name in short if comes_along(name)]
    missing = [name for name, found in short.items() if found is None and name not in along]
    for entry in entries:
        name = ", ".join([*names[entry.id], entry.reference])
        when = datetime.fromtimestamp(entry.created_s).strftime("%Y-%m-%d %H:%M")
        out.line(f"{format_bytes(entry.total_bytes):>10}  {when}  {name}")
    out.line(f"{format_bytes(total):>10}  in {store.home}" if entries else f"no models in {store.home} yet")
    unfinished = sum(store.unfinished().values())
    if unfinished:
        out.line(f"{format_bytes(unfinished):>10}  of unfinished pulls: pull again, or kamado rm --unfinished")
    if prepared:
        out.line(f"{format_bytes(prepared):>10}  of prepared weights, which make loading quicker: kamado rm --prepared")
    if along:
        out.line(f"come along: {', '.join(along)}")
    if missing:
        out.line(f"can be pulled: {', '.join(missing)}")
    out.json(
        {
            "home": str(store.home),
            "models": rows,
            "total_bytes": total,
            "unfinished_bytes": unfinished,
            "prepared_bytes": prepared,
            "available": missing,
        }
    )


@click.command()
@click.argument("model")
@common_options
def show(model: str, out: Output) -> None:
    """Show what MODEL is. Downloads no weights: of a model that is not here, only what the catalog or the hub says."""
    from ..checkpoint.inspect import inspect
    from ..errors import HubUnreachable

    try:
        facts = _checkpoint_facts(inspect(model, offline=True))
    except HubUnreachable:
        facts = _remote_facts(model)
    for name, value in facts.items():
        if isinstance(value, list):
            for item in value[:_MAX_SHOWN_FILES]:
                text = f"{format_bytes(item['bytes']):>10}  {item['name']}" if isinstance(item, dict) else str(item)
                out.line(f"{name:<24} {text}")
            if len(value) > _MAX_SHOWN_FILES:
                out.line(f"{name:<24} ... and {len(value) - _MAX_SHOWN_FILES} more")
        elif value is not None:
            out.line(f"{name:<24} {_shown(name, value)}")
    out.json(facts)


def _shown(name: str, value: object) -> str:
    """One fact, for people."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(name, item)}" for key, item in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return format_bytes(value) if "bytes" in name and value else f"{value:,}".replace(",", " ")
    return str(value)


@click.command()
@click.argument("models", metavar="[MODEL...]", nargs=-1)
@click.option("--unfinished", is_flag=True, help="Remove what pulls that were stopped have left.")
@click.option("--prepared", is_flag=True, help="Remove weights that were kept to load quickly.")
@common_options
def rm(models: tuple[str, ...], unfinished: bool, prepared: bool, out: Output) -> None:
    """Remove each MODEL (a reference, or an id of `kamado list --json`) from the store. Folders of yours stay."""
    from ..checkpoint.store import Store, translated_os_errors
    from ..weights.prepared.folder import PreparedFolder

    if not models and not unfinished and not prepared:
        raise InvalidRequest("rm needs a MODEL, --unfinished or --prepared")
    store = Store.open()
    found = {entry.id: entry for entry in map(_entry, models)}
    _check_alone(models)
    freed = store.remove_unfinished() if unfinished else 0
    if unfinished:
        out.line(f"removed {format_bytes(freed)} of unfinished pulls")
    with translated_os_errors(store.home):
        cleared = PreparedFolder(store.home).clear() if prepared else 0
    if prepared:
        out.line(f"removed {format_bytes(cleared)} of prepared weights")
    removed = []
    for entry in found.values():
        store.remove(entry)
        removed.append({"reference": entry.reference, "id": entry.id, "bytes": entry.total_bytes})
        out.line(f"removed {entry.reference} ({format_bytes(entry.total_bytes)})")
    out.json({"removed": removed, "unfinished_bytes": freed, "prepared_bytes": cleared})


@click.command()
@click.argument("models", metavar="[MODEL...]", nargs=-1)
@common_options
def verify(models: tuple[str, ...], out: Output) -> None:
    """Check every file of each MODEL (default: all that are here) against the hash it was pulled with."""
    from ..checkpoint.store import Store
    from ..checkpoint.store import verify as verify_entry

    entries = [_entry(model) for model in models] or Store.open().entries()
    bad: list[str] = []
    rows = []
    for entry in entries:
        with pull_bar(out, f"verify {entry.reference}") as progress:
            faults = verify_entry(entry, progress=progress)
        rows.append({
            "reference": entry.reference, "id": entry.id, "ok": not faults,
            "faults": [{"file": fault.file, "problem": fault.problem} for fault in faults],
        })  # fmt: skip
        out.line(f"{'damaged' if faults else 'ok':<8} {entry.reference}")
        for fault in faults:
            out.line(f"         {fault.file} {fault.problem}")
        if faults:
            bad.append(entry.reference)
    out.json({"ok": not bad, "models": rows})
    if bad:
        raise UnsupportedCheckpoint(f"damaged: {', '.join(bad)}; remove with kamado rm and pull again")


@click.command("convert-pickle")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@common_options
def convert_pickle(source: Path, folder: Path, out: Output) -> None:
    """Convert the pickled weights of SOURCE, a file or a folder, to safetensors in the new FOLDER.

    A pickle can run code. It is read in a restricted process of its own; still, convert only what you trust.
    """
    from ..checkpoint.convert import convert_pickles

    out.note(f"warning: {source} is read as a pickle, in a restricted process; convert only files that you trust")
    done = convert_pickles(source, folder)
    for item in done:
        out.line(f"{item.source.name} -> {item.target}: {item.num_tensors} tensors")
        if item.dropped:
            out.note(f"left out, because they are no tensors: {', '.join(item.dropped)}")
    rows = [
        {"source": str(i.source), "target": str(i.target), "tensors": i.num_tensors, "dropped": i.dropped} for i in done
    ]
    out.json({"folder": str(folder), "files": rows})


COMMANDS: list[click.Command] = [pull, list_models, show, rm, verify, convert_pickle]


def _entry(model: str) -> Any:
    """The entry of the store that `model`, a reference or an id, names. Raises ModelNotFound, InvalidRequest."""
    from ..checkpoint.resolve import comes_along, find_entry
    from ..checkpoint.store import Store, find_by_id

    store = Store.open()
    try:
        return find_by_id(store, model)
    except ModelNotFound:
        entry = find_entry(model)
    if entry is None:
        if comes_along(model):
            raise ModelNotFound(f"{model!r} is not in the store: it came with its package, and goes with it")
        raise ModelNotFound(f"{model!r} is not in the store; kamado list shows what is")
    return entry


def _check_alone(models: Sequence[str]) -> None:
    """Raise InvalidRequest for a short name whose files came in one package with other models that are not named."""
    from ..checkpoint import catalog
    from ..checkpoint.resolve import find_entry, find_local

    entries = {name: entry for name in catalog.models() if (entry := find_entry(name)) is not None}
    paths = {name: find_local(catalog.find(name).sources) for name in entries}
    named = {paths.get(name) for name in models}
    for model in models:
        if model not in entries:
            continue
        entry = entries[model]
        others = [name for name, other in entries.items() if other.id == entry.id and paths[name] not in named]
        if others and entry.reference not in models:
            raise InvalidRequest(
                f"{model} came in one package with {' and '.join(others)}, which would go with it; "
                f"name these too, or the package: {entry.reference}"
            )


def _entry_facts(model: str) -> dict[str, Any]:
    from ..checkpoint.resolve import find_entry

    entry = find_entry(model)
    if entry is None:
        return {}
    return {"reference": entry.reference, "id": entry.id, "revision": entry.revision, "bytes": entry.total_bytes}


def _checkpoint_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    from ..checkpoint.own_code import how_to_allow, wishes
    from ..families import find
    from ..quality import FILE, read_quality

    weights = {entry.file for entry in checkpoint.tensors.values()}
    paths = sorted(weights | {*checkpoint.files.values(), *checkpoint.code.values()})
    base = checkpoint.root if checkpoint.root.is_dir() else checkpoint.root.parent
    facts: dict[str, Any] = {
        "model": checkpoint.reference,
        "path": str(checkpoint.root),
        "revision": checkpoint.revision,
        "layout": checkpoint.layout,
        "tensors": len(checkpoint.tensors),
        "parameters": checkpoint.parameters,
        "weight_bytes": checkpoint.weight_bytes,
    }
    if wants := wishes(checkpoint):
        facts |= {
            "wants_code": wants,
            "to_allow_it": f"{how_to_allow(checkpoint)}  (it then runs with all your rights)",
        }
    try:
        family = find(checkpoint)
        facts |= {"family": family.name, "tasks": ", ".join(family.tasks(checkpoint)), **family.describe(checkpoint)}
        if (takes := family.options(checkpoint)) is not None:
            facts["takes"] = ", ".join(sorted(takes.names))
    except UnsupportedCheckpoint as error:
        facts["family"] = f"none: {error}"
    if (quality := checkpoint.files.get(FILE)) is not None:
        facts["quality"] = read_quality(quality).sentence()
    facts["files"] = [{"name": path.relative_to(base).as_posix(), "bytes": path.stat().st_size} for path in paths]
    return facts


def _remote_facts(model: str) -> dict[str, Any]:
    """What can be said of a model that is not here. Raises HubUnreachable, ModelNotFound, InvalidRequest."""
    from ..checkpoint import catalog
    from ..checkpoint.fetch_hub import choose_files, look_up
    from ..checkpoint.reference import CatalogReference, HubReference, parse_reference

    parsed = parse_reference(model)
    facts: dict[str, Any] = {"model": model, "path": None, "note": f"not here; run: kamado pull {model}"}
    if isinstance(parsed, CatalogReference):
        known = catalog.find(parsed.name)
        return facts | {
            "description": known.description, "sources": [str(source.reference) for source in known.sources]
        }  # fmt: skip
    if isinstance(parsed, HubReference):
        remote = look_up(parsed)
        files = choose_files(remote)
        return facts | {
            "revision": remote.revision, "pull_bytes": sum(file.size for file in files),
            "files": [{"name": file.name, "bytes": file.size} for file in files],
        }  # fmt: skip
    raise ModelNotFound(f"{model} is not on this machine; run: kamado pull {model}")
