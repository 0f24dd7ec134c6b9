"""The installed model families, found through the entry point group `kamado.families`."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

from .checkpoint.types import Checkpoint
from .contracts import Family
from .errors import UnsupportedCheckpoint


@cache
def families() -> tuple[Family, ...]:
    """All installed families, by entry point name. Importing one loads no torch."""
    return tuple(point.load() for point in sorted(entry_points(group="kamado.families"), key=lambda point: point.name))


def find(checkpoint: Checkpoint) -> Family:
    """The family that runs this checkpoint. Raises UnsupportedCheckpoint."""
    for family in families():
        if family.claims(checkpoint):
            return family
    if checkpoint.layout == "component":
        raise UnsupportedCheckpoint(
            f"{checkpoint.reference} is one model ({checkpoint.config['_class_name']}); name the pipeline, "
            f"and give this as a component of it: --component NAME={checkpoint.reference}"
        )
    if checkpoint.layout == "safetensors":
        raise UnsupportedCheckpoint(
            f"{checkpoint.reference}: its tensors ({', '.join(list(checkpoint.tensors)[:2])}, ...) are in no known "
            "layout; a part of a pipeline goes to --component"
        )
    kind = checkpoint.config.get("model_type") or checkpoint.config.get("_class_name") or checkpoint.layout
    known = ", ".join(family.name for family in families()) or "none is installed"
    raise UnsupportedCheckpoint(
        f"{checkpoint.reference}: no family can run a {kind!r} checkpoint; families here: {known}"
    )
