"""Components from elsewhere in the places of a pipeline's own. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kamado.checkpoint.digest import checkpoint_digests
from kamado.checkpoint.types import Checkpoint, TensorEntry
from kamado.errors import UnsupportedCheckpoint


def assembled(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint as if its parts lay in its own folder: index, configurations and tensors are those of the parts.

    `assembled` of the result is the same again. Raises UnsupportedCheckpoint for a part of unknown class."""
    if not checkpoint.parts:
        return checkpoint
    index: dict[str, Any] = dict(checkpoint.config)
    components: dict[str, Mapping[str, Any]] = dict(checkpoint.metadata["components"])
    tensors: dict[str, TensorEntry] = {
        key: entry for key, entry in checkpoint.tensors.items() if key.partition("/")[0] not in checkpoint.parts
    }
    wants_code = list(checkpoint.metadata.get("wants_code", ()))
    for name, part in checkpoint.parts.items():
        components.pop(name, None)
        if part is None:
            index[name] = [None, None]
            continue
        index[name] = _class_of(part, name, index.get(name))
        if part.config:
            components[name] = part.config
        tensors |= {f"{name}/{key}": entry for key, entry in part.tensors.items()}
        wants_code += part.metadata.get("wants_code", ())
    return replace(
        checkpoint,
        config=index,
        metadata={"components": components, **({"wants_code": wants_code} if wants_code else {})},
        tensors=tensors,
        files={key: path for key, path in checkpoint.files.items() if key.partition("/")[0] not in checkpoint.parts},
    )


def home_of(checkpoint: Checkpoint, name: str) -> Path:
    """The folder with the files of a component."""
    part = checkpoint.parts.get(name)
    return part.root if part is not None else checkpoint.root / name


def recipe_files(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a recipe says of the files of a checkpoint that is `assembled`: SHA-256 by name, its own and the parts'."""
    own = {key: entry for key, entry in checkpoint.tensors.items() if key.partition("/")[0] not in checkpoint.parts}
    found: dict[str, Any] = {
        "model": {
            "reference": checkpoint.reference,
            "revision": checkpoint.revision,
            "files": checkpoint_digests(replace(checkpoint, tensors=own)),
        }
    }
    if checkpoint.parts:
        found["components"] = {
            name: part and {"reference": part.reference, "revision": part.revision, "files": checkpoint_digests(part)}
            for name, part in checkpoint.parts.items()
        }
    return found


def _class_of(part: Checkpoint, name: str, before: object) -> list[str]:
    """[library, class] of a part. A tokenizer that does not say it is of the class that it replaces."""
    told = part.metadata.get("class", before) if part.layout == "component" else None
    if isinstance(told, list) and len(told) == 2 and all(isinstance(item, str) for item in told):
        return told
    raise UnsupportedCheckpoint(f"{part.reference}: it does not say which class it is, so it cannot be the {name}")
