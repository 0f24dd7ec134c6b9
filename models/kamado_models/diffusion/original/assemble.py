"""A single file as a pipeline: its own parts, those of a base, and configurations. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kamado.checkpoint.types import Checkpoint, TensorEntry
from kamado.errors import UnsupportedCheckpoint

from .kinds import Found, is_known, recognised

ORIGINAL = "original"
"""In the metadata of an assembled checkpoint: names of the parts whose tensors may have their authors' names."""
SCHEDULER = "scheduler"
"""In the metadata too: entries of the scheduler's configuration, over those of its file where there is one."""
_CHANNELS = ("in_channels", "out_channels")
"""In which the variants of a kind differ: a base may be another one."""


def is_original(checkpoint: Checkpoint) -> bool:
    """Whether it is a single file of a kind that is known here."""
    return checkpoint.layout == "safetensors" and is_known(checkpoint.tensors)


def described(checkpoint: Checkpoint) -> dict[str, Any]:
    """Facts of a single file, for `kamado show`. Raises UnsupportedCheckpoint."""
    found = _found(checkpoint)
    return {"architecture": found.pipeline, "kind": found.kind.title, "components": sorted(found.tensors)}


def as_pipeline(checkpoint: Checkpoint) -> Checkpoint:
    """The single file in the layout of a pipeline's folder; its `parts` are not put in yet.

    Raises UnsupportedCheckpoint for a base of another kind, and for parts that are neither in the file nor anywhere
    else."""
    found = _found(checkpoint)
    base = checkpoint.base
    if base is not None and base.config:
        _check_base(checkpoint, base, found)
    index: dict[str, Any] = {"_class_name": _pipeline(base, found), **_settings(base, found)}
    components: dict[str, Mapping[str, Any]] = {}
    tensors: dict[str, TensorEntry] = {}
    own: list[str] = []
    missing: list[str] = []
    for name, part in found.kind.parts.items():
        index[name] = list(part.kind)
        if name in found.tensors:
            own.append(name)
            tensors |= {f"{name}/{key}": entry for key, entry in found.tensors[name].items()}
            components[name] = _config(base, found, name)
        elif name in checkpoint.parts:
            components[name] = _config(base, found, name)
        elif base is not None and name in base.metadata["components"]:
            components[name] = base.metadata["components"][name]
            tensors |= {key: entry for key, entry in base.tensors.items() if key.startswith(f"{name}/")}
        elif part.optional:
            index[name] = [None, None]
        else:
            missing.append(name)
    if missing:
        raise UnsupportedCheckpoint(
            f"{checkpoint.reference} ({found.kind.title}) holds no {', '.join(missing)}; name a pipeline that has the "
            f"rest (base={found.base!r}, --base), or each of them (components, --component)"
        )
    tools = _tools(base, found, index)
    metadata: dict[str, Any] = {"components": components, ORIGINAL: tuple(own)}
    metadata[SCHEDULER] = _scheduler(checkpoint, found)
    if base is not None and (wants_code := base.metadata.get("wants_code")):
        metadata["wants_code"] = wants_code
    return replace(
        checkpoint, layout="diffusers", config={**index, **tools}, metadata=metadata, tensors=tensors, files={}
    )


def tokenizers_wanted(checkpoint: Checkpoint) -> tuple[tuple[str, ...], str]:
    """The tokenizers that neither the parts nor the base of a single file supply, and the repository that has them."""
    found = _found(checkpoint)
    if checkpoint.base is not None:
        return (), ""
    left_out = {name for name, part in found.kind.parts.items() if part.optional and name not in found.tensors}
    wanted = (
        name
        for name in found.kind.tokenizers
        if name not in checkpoint.parts
        and (_reader(name) not in left_out or checkpoint.parts.get(_reader(name)) is not None)
    )
    return tuple(wanted), found.base


def _found(checkpoint: Checkpoint) -> Found:
    found = recognised(checkpoint.tensors)
    assert found is not None, "the family claims only what is known"
    return found


def _reader(tokenizer: str) -> str:
    return tokenizer.replace("tokenizer", "text_encoder")


def _check_base(checkpoint: Checkpoint, base: Checkpoint, found: Found) -> None:
    kind = found.kind
    name = base.config.get("_class_name")
    for key, part in kind.parts.items():
        entry = base.config.get(key)
        absent = entry in (None, [None, None]) and (part.optional or key in checkpoint.parts or key in found.tensors)
        if entry != list(part.kind) and (not absent or key == kind.denoiser):
            raise UnsupportedCheckpoint(
                f"{base.reference} ({name}) cannot be the base of {checkpoint.reference}, which is {kind.title}: "
                f"its {key} would have to be a {part.kind[1]}"
            )
    config = base.metadata["components"][kind.denoiser]
    for key, value in found.told.items():
        if key in config and _plain(config[key]) != _plain(value):
            raise UnsupportedCheckpoint(
                f"{base.reference} ({name}) cannot be the base of {checkpoint.reference}: the {key} of its "
                f"{kind.denoiser} is {config[key]}, that of the file {value}"
            )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def _same_channels(base: Checkpoint, found: Found) -> bool:
    return bool(base.metadata["components"][found.kind.denoiser].get("in_channels", 4) == found.channels)


def _pipeline(base: Checkpoint | None, found: Found) -> str:
    """The base's class, where it is for models that read as much: the class for texts and the one for masks differ."""
    if base is None or not base.config or not _same_channels(base, found):
        return found.pipeline
    return str(base.config["_class_name"])


def _settings(base: Checkpoint | None, found: Found) -> dict[str, Any]:
    if base is None or not base.config:
        return dict(found.kind.settings)
    plain = (bool, int, float, str)
    return {
        key: value
        for key, value in base.config.items()
        if not key.startswith("_") and isinstance(value, plain) and key != "requires_safety_checker"
    }


def _config(base: Checkpoint | None, found: Found, name: str) -> dict[str, Any]:
    """The configuration of a part: the base's, else what is known of the kind and told by the file."""
    is_denoiser = name == found.kind.denoiser
    if base is not None and (theirs := base.metadata["components"].get(name)):
        channels = {key: value for key, value in found.sizes.items() if key in _CHANNELS}
        return {**theirs, **channels} if is_denoiser else dict(theirs)
    config = dict(found.kind.parts[name].config)
    return {**config, **found.told, **found.sizes} if is_denoiser else config


def _scheduler(checkpoint: Checkpoint, found: Found) -> dict[str, Any]:
    base, told = checkpoint.base, checkpoint.metadata.get("modelspec.prediction_type")
    shipped = {} if base is not None and base.config.get("scheduler") else found.kind.scheduler
    predicts = {"v": "v_prediction", "epsilon": "epsilon"}.get(told if isinstance(told, str) else "")
    if "v_pred" in checkpoint.tensors:  # how files say it that have no such metadata
        predicts = "v_prediction"
    changes: dict[str, Any] = {"prediction_type": predicts} if predicts and found.kind.denoiser == "unet" else {}
    if "ztsnr" in checkpoint.tensors:
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return {**{key: value for key, value in shipped.items() if key != "_class_name"}, **changes}


def _tools(base: Checkpoint | None, found: Found, index: Mapping[str, Any]) -> dict[str, list[str | None]]:
    """Entries of the index for what has no weights."""
    told = base.config if base is not None else {}
    tools: dict[str, list[str | None]] = {"scheduler": ["diffusers", found.kind.scheduler["_class_name"]]}
    for name, kind in found.kind.tokenizers.items():
        absent = index.get(_reader(name)) == [None, None]
        tools[name] = [None, None] if absent else ["transformers", kind]
    for name in tools:
        if told.get(name) and tools[name] != [None, None]:
            tools[name] = list(told[name])
    return tools
