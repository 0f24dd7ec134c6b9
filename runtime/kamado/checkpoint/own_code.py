"""Code that a checkpoint brings along: by which name it is allowed, and in which files its classes lie.

Nothing here imports or runs it. Families do, after `check_permission` has said that they may.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidRequest, KamadoError, UnsafeCheckpoint, UnsupportedCheckpoint
from .reference import HubReference, PathReference, parse_reference
from .types import Checkpoint

_CLASS = re.compile(r"(?P<module>[A-Za-z_][\w-]*)\.(?P<name>[A-Za-z_]\w*)", re.ASCII)
_MAX_WISHES = 2
"""So many of the places that ask for code are named in a message."""


@dataclass(frozen=True, slots=True)
class OwnClass:
    """Where a class of a checkpoint's own lies."""

    file: str
    """Beside `config.json`: `modeling_x.py`."""
    name: str

    def __str__(self) -> str:
        return f"{self.file.removesuffix('.py')}.{self.name}"


def wishes(checkpoint: Checkpoint) -> list[str]:
    """The places in the checkpoint that ask for code of its own, as `file: key = value`; empty where none does."""
    # Of a single file, the metadata is what its author wrote into it.
    in_folder = checkpoint.layout in ("transformers", "diffusers", "component")
    return list(checkpoint.metadata.get("wants_code", ())) if in_folder else []


def allowing_names(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The names by which the checkpoint's code can be allowed: the reference as it was typed; of a repository also
    without its revision, of a folder also its full path."""
    typed = checkpoint.reference
    try:
        parsed = parse_reference(typed)
    except KamadoError:  # inspected by path, under a name that is no reference
        return (typed,)
    if isinstance(parsed, HubReference):
        return tuple(dict.fromkeys((typed, parsed.repository)))
    if isinstance(parsed, PathReference):
        return tuple(dict.fromkeys((typed, os.path.realpath(parsed.path))))
    return (typed,)


def how_to_allow(checkpoint: Checkpoint) -> str:
    """The option that allows the checkpoint's code, as it is typed."""
    return f"--allow-code {shlex.quote(checkpoint.reference)}"


def allowed_name(allow_code: object) -> str | None:
    """What a caller gave as `allow_code`, as a name. Raises InvalidRequest for anything else: a plain True would allow
    whatever is loaded."""
    if allow_code is None:
        return None
    if not isinstance(allow_code, str | Path) or not str(allow_code):
        raise InvalidRequest(f"allow_code takes the model's name, like 'org/name' or a folder, not {allow_code!r:.60}")
    return str(allow_code)


def check_permission(checkpoint: Checkpoint, allow_code: str | None) -> bool:
    """Whether the checkpoint wants its own code run, and may. `allow_code` is the name that was allowed.

    Raises UnsafeCheckpoint where it wants to and that name is another or None."""
    wants = wishes(checkpoint)
    if not wants:
        # A permission is no order. It may stay in a script when a later revision needs no code any more.
        return False
    if allow_code is not None and _plain(allow_code) in map(_plain, allowing_names(checkpoint)):
        return True
    listed = ", ".join(wants[:_MAX_WISHES]) + (", ..." if len(wants) > _MAX_WISHES else "")
    other = "" if allow_code is None else f", and {allow_code!r} is not its name"
    raise UnsafeCheckpoint(
        f"{checkpoint.reference} wants its own code run ({listed}){other}; nothing of it was run.\n"
        f"If you trust it: {how_to_allow(checkpoint)} (in Python allow_code={checkpoint.reference!r}). "
        "The code then runs with all your rights."
    )


def _plain(name: str) -> str:
    return name.rstrip("/") or name  # shells complete a folder's name with a slash


def names_class(config: Mapping[str, Any], kind: str) -> bool:
    """Whether a `config.json` gives a class of the checkpoint's own for `kind` (`AutoConfig`, ...)."""
    auto_map = config.get("auto_map")
    return isinstance(auto_map, Mapping) and bool(auto_map.get(kind))


def own_class(checkpoint: Checkpoint, kind: str) -> OwnClass | None:
    """Where the class lies that `config.json` gives for `kind` in its `auto_map`; None where it gives none.

    Raises UnsafeCheckpoint for code of another repository or outside the folder, UnsupportedCheckpoint where the file
    is not there."""
    if not names_class(checkpoint.config, kind):
        return None
    value = checkpoint.config["auto_map"][kind]
    reference = checkpoint.reference
    if isinstance(value, str) and "--" in value:
        raise UnsafeCheckpoint(
            f"{reference}: its {kind} is code of another repository ({value!r:.120}), which is never run; "
            "put that code into a folder together with the checkpoint, and allow that"
        )
    found = _CLASS.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise UnsafeCheckpoint(
            f"{reference}: its {kind} is {value!r:.120}, not a class in a file beside config.json; it is not run"
        )
    own = OwnClass(f"{found['module']}.py", found["name"])
    if own.file not in checkpoint.code:
        raise UnsupportedCheckpoint(
            f"{reference}: its code is incomplete: {own.file} is not there; put it beside config.json "
            "(Python packages never bring code along)"
        )
    return own


def code_is_whole(checkpoint: Checkpoint) -> bool:
    """Whether every file is there that `config.json` gives a class in. Code of other repositories does not count."""
    auto_map = checkpoint.config.get("auto_map")
    values = auto_map.values() if isinstance(auto_map, Mapping) else ()
    named = [_CLASS.fullmatch(value) for value in values if isinstance(value, str)]
    return all(f"{found['module']}.py" in checkpoint.code for found in named if found is not None)
