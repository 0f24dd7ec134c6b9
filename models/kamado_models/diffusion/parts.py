"""Components from elsewhere in the places of a pipeline's own. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kamado.checkpoint.digest import checkpoint_digests
from kamado.checkpoint.parts import published_part
from kamado.checkpoint.reference import published_reference
from kamado.checkpoint.types import Checkpoint, TensorEntry
from kamado.errors import UnsupportedCheckpoint
from kamado.weights.quantized.stored.methods import understood

from .original.assemble import ORIGINAL, SCHEDULER, as_pipeline
from .original.kinds import recognised


def assembled(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint as if its parts lay in its own folder: index, configurations and tensors are those of the parts.
    A single file comes in the layout of a folder.

    `assembled` of the result is the same again. Raises UnsupportedCheckpoint for a part of unknown class, and for a
    single file that lacks parts."""
    if checkpoint.layout == "safetensors":
        checkpoint = as_pipeline(checkpoint)
    if not checkpoint.parts:
        return checkpoint
    index: dict[str, Any] = dict(checkpoint.config)
    components: dict[str, Mapping[str, Any]] = dict(checkpoint.metadata["components"])
    tensors: dict[str, TensorEntry] = {
        key: entry for key, entry in checkpoint.tensors.items() if key.partition("/")[0] not in checkpoint.parts
    }
    metadata = dict(checkpoint.metadata)
    wants_code = list(metadata.pop("wants_code", ()))
    original = set(metadata.pop(ORIGINAL, ()))
    for name, part in checkpoint.parts.items():
        original.discard(name)
        before = components.pop(name, None)
        if name == SCHEDULER:
            metadata.pop(SCHEDULER, None)
        if part is None:
            index[name] = [None, None]
            continue
        if part.layout == "safetensors":
            # A bare file takes the place of a model of the same configuration.
            if before is None:
                raise UnsupportedCheckpoint(
                    f"{part.reference} cannot be the {name}: it has no config.json; name a folder that has one"
                )
            components[name] = before
            original.add(name)
        else:
            index[name] = _class_of(part, name, index.get(name))
            wants_code += part.metadata.get("wants_code", ())
            if part.config:
                components[name] = part.config
        tensors |= {f"{name}/{key}": entry for key, entry in _tensors_of(part, name).items()}
    return replace(
        checkpoint,
        config=index,
        metadata={
            **metadata,
            "components": components,
            **({"wants_code": wants_code} if wants_code else {}),
            **({ORIGINAL: tuple(sorted(original))} if original else {}),
        },
        tensors=tensors,
        files={key: path for key, path in checkpoint.files.items() if key.partition("/")[0] not in checkpoint.parts},
    )


def component_tensors(checkpoint: Checkpoint, name: str) -> dict[str, TensorEntry]:
    """The tensors of one component, by the names that it has for them: quantized weights as such.

    Raises UnsupportedCheckpoint for weights that are quantized in a way that is not known."""
    inside = f"{name}/"
    own = {key.removeprefix(inside): entry for key, entry in checkpoint.tensors.items() if key.startswith(inside)}
    config = checkpoint.metadata["components"].get(name) or {}
    return understood(own, config, f"{checkpoint.reference}: its {name}")


def home_of(checkpoint: Checkpoint, name: str) -> Path:
    """The folder with the files of a component."""
    part = checkpoint.parts.get(name)
    if part is not None:
        return part.root
    return (checkpoint.base or checkpoint).root / name


def recipe_files(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a recipe says of the files of a checkpoint that is `assembled`: SHA-256 by name, its own and the parts'.
    Paths are left out: a recipe is given away with its picture."""
    base = checkpoint.base
    theirs = (
        {} if base is None else {key: each for key, each in checkpoint.tensors.items() if base.tensors.get(key) == each}
    )
    own = {
        key: entry
        for key, entry in checkpoint.tensors.items()
        if key.partition("/")[0] not in checkpoint.parts and key not in theirs
    }
    found: dict[str, Any] = {
        "model": {
            "reference": published_reference(checkpoint.reference),
            "revision": checkpoint.revision,
            "files": checkpoint_digests(replace(checkpoint, tensors=own)),
        }
    }
    if base is not None:
        used = {name for name in checkpoint.config if name not in checkpoint.parts}
        files = {key: path for key, path in base.files.items() if key.partition("/")[0] in used}
        # One that was named is loaded again for a replay; the tokenizers of a known kind are found again by themselves.
        found["base" if base.config else "tokenizers"] = {
            "reference": published_reference(base.reference),
            "revision": base.revision,
            "files": checkpoint_digests(replace(base, tensors=theirs, files=files)),
        }
    if checkpoint.parts:
        found["components"] = {name: part and _recipe_part(part) for name, part in checkpoint.parts.items()}
    return found


def _recipe_part(part: Checkpoint) -> dict[str, Any]:
    return {
        "reference": published_part(part.reference),
        "revision": part.revision,
        "files": checkpoint_digests(part),
    }


def _tensors_of(part: Checkpoint, name: str) -> Mapping[str, TensorEntry]:
    """Of a file that holds a whole model, those of the one component."""
    whole = recognised(part.tensors) if part.layout == "safetensors" else None
    return whole.tensors.get(name, part.tensors) if whole is not None else part.tensors


def _class_of(part: Checkpoint, name: str, before: object) -> list[str]:
    """[library, class] of a part. A tokenizer that does not say it is of the class that it replaces."""
    told = part.metadata.get("class", before)
    if isinstance(told, list) and len(told) == 2 and all(isinstance(item, str) for item in told):
        return told
    raise UnsupportedCheckpoint(f"{part.reference}: it does not say which class it is, so it cannot be the {name}")
