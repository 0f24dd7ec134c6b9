"""Whether a checkpoint's files are still those that were inspected: header data is of no use with others."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..errors import ModelNotFound, UnsupportedCheckpoint
from .types import Checkpoint

Mark = tuple[int, int, int]


def marks(checkpoint: Checkpoint) -> Mapping[Path, Mark | None]:
    """Size, time of change and number of each of its files, and of its parts' files; None for one that is not there."""
    return {path: _mark(path) for path in sorted(set(_files(checkpoint)))}


def check_unchanged(reference: str, before: Mapping[Path, Mark | None]) -> None:
    """Compare with what `marks` said. Raises ModelNotFound for a file that is gone, UnsupportedCheckpoint for
    another one."""
    for path, mark in before.items():
        now = _mark(path)
        if now == mark:
            continue
        if now is None:
            raise ModelNotFound(
                f"{reference} cannot be brought back into memory: its file {path} is gone; put it back, or unload the "
                "model"
            )
        raise UnsupportedCheckpoint(
            f"{reference} cannot be brought back into memory: its file {path} was changed; unload the model, and load "
            "it again"
        )


def _files(checkpoint: Checkpoint) -> Iterator[Path]:
    yield from (entry.file for entry in checkpoint.tensors.values())
    yield from checkpoint.files.values()
    yield from checkpoint.code.values()
    for part in (checkpoint.base, *checkpoint.parts.values()):
        if part is not None:
            yield from _files(part)


def _mark(path: Path) -> Mark | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino
