"""The catalogs of known checkpoints: short names, and for each the sources that are tried in turn.

A catalog is the file `catalog.toml` in a package that the entry point group `kamado.catalogs` names. Kamado itself
ships none, so anybody can add one:

    [models."name:size"]
    description = "..."
    default_for = "text"            # optional: what it is the default of

    [models."name:size".defaults]   # optional: generation options that suit it
    steps = 25

    [[models."name:size".sources]]
    reference = "org/name"          # on the hub

    [[models."name:size".sources]]
    folder = "samples/name"         # in the catalog's own package

    [[models."name:size".sources]]
    reference = "pypi:package==1.0"
    sha256 = "..."                  # of the wheel, optional
    size = 123                      # of the wheel in bytes, optional
    tag = "cp311-none-linux_x86_64" # of the wheel, where pip's choice for this machine would be another one, optional
    file = "model.param"            # what loads, where that is one of several in it, optional
    [models."name:size".sources.files]
    "model.gguf" = "..."            # sha256 of files in it, optional
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..errors import KamadoError, ModelNotFound
from .paths import below, check_name
from .reference import CatalogReference, HubReference, PathReference, PypiReference, parse_reference

GROUP = "kamado.catalogs"
FILE = "catalog.toml"
MAX_CATALOG_BYTES = 4 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TAG = re.compile(r"[a-z]{2}[0-9]{1,4}-[a-z0-9_]{1,40}-[a-z0-9_]{1,80}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One place where a model can be had."""

    reference: HubReference | PypiReference | PathReference
    """A path is a folder of the catalog's own package: it is always here."""
    sha256: str | None
    """Of the wheel."""
    size: int | None
    """Of the wheel, in bytes."""
    files: Mapping[str, str]
    """SHA-256 of files in it, by name."""
    file: str | None = None
    """What of it loads; None: what its entry says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogModel:
    """One entry of a catalog."""

    name: str
    description: str
    default_for: str | None
    sources: tuple[Source, ...]
    """In the order in which they are tried."""
    defaults: Mapping[str, Any]
    """Generation options that suit it, where a request does not give them."""


def models() -> Mapping[str, CatalogModel]:
    """All models of all installed catalogs, by name. A name that two catalogs have is that of the first by entry point.

    Raises KamadoError if a catalog cannot be read.
    """
    return _models()


def find(name: str) -> CatalogModel:
    """The model of this name. Raises ModelNotFound, with the names that come close."""
    known = models()
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=3)
    if close:
        hint = f"did you mean {' or '.join(close)}?"
    elif known:
        hint = f"known are {', '.join(sorted(known)[:8])}; or give org/name, a folder or a file"
    else:
        hint = f"no catalog is installed (entry point group {GROUP})"
    raise ModelNotFound(f"no model is called {name!r}: {hint}")


def default_text_model() -> str:
    """The name of the catalog's default text model. Raises ModelNotFound if no catalog has one."""
    for model in models().values():
        if model.default_for == "text":
            return model.name
    raise ModelNotFound(f"no installed catalog has a default text model (entry point group {GROUP}); name a model")


def parse_catalog(text: str, *, where: str, root: Path | None = None) -> dict[str, CatalogModel]:
    """The models of one catalog file; `where` names it in errors, `root` is the folder of its package. Raises
    KamadoError."""
    try:
        data = tomllib.loads(text)
        unknown = set(data) - {"models"}
        if unknown:
            raise ValueError(f"unknown key {sorted(unknown)[0]!r}")
        return {name: _model(name, value, root) for name, value in data.get("models", {}).items()}
    except (ValueError, TypeError, KeyError, AttributeError, KamadoError) as error:
        raise KamadoError(f"the catalog {where} is damaged: {error}; install its package again") from error


@cache
def _models() -> Mapping[str, CatalogModel]:
    found: dict[str, CatalogModel] = {}
    for point in sorted(metadata.entry_points(group=GROUP), key=lambda point: point.name):
        package = point.value.partition(":")[0].strip()
        try:
            folder = resources.files(package)
            text = folder.joinpath(FILE).read_text(encoding="utf-8")
        except (OSError, ImportError, UnicodeDecodeError) as error:
            raise KamadoError(
                f"the catalog of {package} cannot be read: {error}; install that package again"
            ) from error
        if len(text) > MAX_CATALOG_BYTES:
            raise KamadoError(f"the catalog of {package} is larger than {MAX_CATALOG_BYTES} bytes")
        for name, model in parse_catalog(text, where=f"of {package}", root=Path(str(folder))).items():
            found.setdefault(name, model)
    return MappingProxyType(found)


def _model(name: str, value: Mapping[str, Any], root: Path | None) -> CatalogModel:
    if not isinstance(parse_reference(name, look=lambda path: None), CatalogReference):
        raise ValueError(f"{name!r} is not a name for a catalog")
    _known(value, {"description", "default_for", "defaults", "sources"}, name)
    sources = tuple(_source(source, name, root) for source in value["sources"])
    if not sources:
        raise ValueError(f"{name!r} has no sources")
    return CatalogModel(
        name=name,
        description=str(value.get("description", "")),
        default_for=value.get("default_for"),
        sources=sources,
        defaults=dict(value.get("defaults", {})),
    )


def _source(value: Mapping[str, Any], name: str, root: Path | None) -> Source:
    if "folder" in value:
        _known(value, {"folder"}, name)
        if root is None:
            raise ValueError(f"{name!r} is in a folder of a package, and this catalog is in none")
        return Source(reference=PathReference(below(root, value["folder"]), "folder"), sha256=None, size=None, files={})
    _known(value, {"reference", "sha256", "size", "tag", "file", "files"}, name)
    reference = parse_reference(value["reference"], look=lambda path: None)
    if not isinstance(reference, HubReference | PypiReference):
        raise ValueError(f"the source {value['reference']!r} of {name!r} is neither org/name nor pypi:package")
    hashes = [*value.get("files", {}).values(), *([value["sha256"]] if "sha256" in value else [])]
    if not all(isinstance(item, str) and _SHA256.fullmatch(item) for item in hashes):
        raise ValueError(f"a sha256 of {name!r} is not 64 hexadecimal digits")
    size = value.get("size")
    if size is not None and (type(size) is not int or size < 0):
        raise ValueError(f"the size of {name!r} is not a number of bytes")
    if "tag" in value:
        if not isinstance(reference, PypiReference) or not _TAG.fullmatch(value["tag"]) or "sha256" not in value:
            raise ValueError(f"the tag of {name!r} is not PYTHON-ABI-PLATFORM of a wheel whose sha256 is given")
        reference = replace(reference, tag=value["tag"])
    return Source(
        reference=reference,
        sha256=value.get("sha256"),
        size=size,
        files=dict(value.get("files", {})),
        file=check_name(value["file"]) if "file" in value else None,
    )


def _known(value: Mapping[str, Any], names: set[str], what: str) -> None:
    unknown = set(value) - names
    if unknown:
        raise ValueError(f"unknown key {sorted(unknown)[0]!r} in {what!r}")
