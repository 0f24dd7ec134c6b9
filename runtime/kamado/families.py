"""The installed model families, found through the entry point group `kamado.families`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from .checkpoint.types import Checkpoint
from .contracts import Family
from .errors import InvalidRequest, UnsupportedCheckpoint


@cache
def families() -> tuple[Family, ...]:
    """All installed families, in the order in which they are asked: by entry point name, those that claim last behind
    the others. Importing one loads no torch."""
    points = sorted(entry_points(group="kamado.families"), key=lambda point: point.name)
    return tuple(sorted((point.load() for point in points), key=lambda family: family.claims_last))


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


def component_names(checkpoint: Checkpoint) -> Collection[str]:
    """The components that a model which is no pipeline takes from other checkpoints (`--component`): a vocoder, say.
    Raises UnsupportedCheckpoint."""
    if checkpoint.layout != "transformers":
        return ()
    asked = getattr(find(checkpoint), "components", None)
    return () if asked is None else tuple(asked(checkpoint))


def check_used(checkpoint: Checkpoint, family: Family, settings: Mapping[str, Any]) -> None:
    """Raise InvalidRequest for a way of running that the model does not have."""
    for name in ("speculation", "compile"):
        if name in unused_settings(family) and settings.get(name, "auto") != "auto":
            made = " and ".join(family.makes(checkpoint))
            raise InvalidRequest(
                f"{name} (--{name}) changes nothing for {checkpoint.reference}, which makes {made}; leave it out"
            )


def unused_settings(family: Family) -> Collection[str]:
    """The settings (see `kamado.settings`) that have no meaning for the family's models. A family says so in
    `unused`, where there are some."""
    return tuple(getattr(family, "unused", ()))
