"""The one function that turns a name found in a file or a reference into a path below a root."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

from ..errors import UnsafeCheckpoint

MAX_NAME_BYTES = 1024
MAX_DEPTH = 16
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def check_name(name: object, *, where: str = "a file") -> str:
    """Return `name` if it is a plain relative name (`a.json`, `unet/config.json`), else raise UnsafeCheckpoint.

    Refused: anything but a string, empty, longer than 1024 bytes or 16 parts, absolute, `.` and `..` parts, empty
    parts, backslashes, control characters (NUL among them), lone surrogates, drive letters and other colons, device
    names of Windows, a leading `~`, parts that end in a dot or a space. `where` says in the message who named it.
    """
    reason = _objection(name)
    if reason is not None:
        shown = repr(name)
        raise UnsafeCheckpoint(
            f"{where} names {shown if len(shown) <= 120 else shown[:117] + '...'}, {reason}; "
            "only plain names inside the checkpoint's folder are followed"
        )
    assert isinstance(name, str)
    return name


def below(root: Path, name: object, *, where: str = "a file") -> Path:
    """`root / name`, after `check_name` and after following symbolic links. Raises UnsafeCheckpoint.

    The path need not exist. Links must end inside `root`; the one exception is a snapshot folder of a local hub cache
    (`models--*/snapshots/REV`), whose files are links to the `blobs` folder beside `snapshots`.
    """
    path = root / PurePosixPath(check_name(name, where=where))
    real_root = Path(os.path.realpath(root))
    real = Path(os.path.realpath(path))
    if real == real_root or not any(real.is_relative_to(base) for base in _allowed_bases(real_root)):
        raise UnsafeCheckpoint(f"{where} names {name!r}, a link that leaves {root}; copy the file into the folder")
    return path


def _allowed_bases(real_root: Path) -> tuple[Path, ...]:
    snapshots, repository = real_root.parent, real_root.parent.parent
    if snapshots.name == "snapshots" and repository.name.startswith("models--"):
        return (real_root, repository / "blobs")
    return (real_root,)


def _objection(name: object) -> str | None:
    if not isinstance(name, str):
        return "which is not a string"
    try:
        size = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        return "which is not valid Unicode"
    if not 0 < size <= MAX_NAME_BYTES:
        return "which is empty or too long"
    if any(ord(char) < 32 or ord(char) == 127 for char in name):
        return "which has control characters"
    if "\\" in name or ":" in name:
        return "which has a backslash, a colon or a drive letter"
    if name.startswith(("/", "~")):
        return "which is not relative"
    return _objection_to_parts(name.split("/"))


def _objection_to_parts(parts: list[str]) -> str | None:
    if len(parts) > MAX_DEPTH:
        return "which is nested too deeply"
    for part in parts:
        if part in ("", ".", ".."):
            return "which has empty, '.' or '..' parts"
        if part[-1] in ". " or _RESERVED.fullmatch(part):
            return "which is not a portable file name"
    return None
