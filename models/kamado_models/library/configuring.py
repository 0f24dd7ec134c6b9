"""Configurations of transformers' classes, and components that are cut out of one model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from kamado.checkpoint.types import Checkpoint
from kamado.errors import UnsupportedCheckpoint

from .kinds import Part

_MOST_LAYERS = 1000
"""Of any part of a model."""


def config_of(checkpoint: Checkpoint, config_class: Any) -> Any:
    """The checkpoint's configuration as an object of transformers. Raises UnsupportedCheckpoint for what the class does
    not take, or more layers than could be built in a reasonable time."""
    from ..language.materialize import library_call

    _check_layers(checkpoint, checkpoint.config)
    try:
        with library_call():
            return config_class.from_dict(dict(checkpoint.config))
    except Exception as error:  # whatever a class makes of absurd values
        raise _unreadable(checkpoint, "config.json", error) from error


def class_of(checkpoint: Checkpoint, name: str) -> Any:
    """A class of transformers. Raises UnsupportedCheckpoint where the one that is installed does not have it yet."""
    import transformers

    found = getattr(transformers, name, None)
    if found is None:
        raise UnsupportedCheckpoint(
            f"{checkpoint.reference} needs a newer transformers than {transformers.__version__}, which has no {name}: "
            "pip install -U transformers"
        )
    return found


def _check_layers(checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
    for name, value in config.items():
        if isinstance(value, Mapping):
            _check_layers(checkpoint, value)
        elif name.endswith("layers") and isinstance(value, int) and value > _MOST_LAYERS:
            raise UnsupportedCheckpoint(
                f"{checkpoint.reference}: config.json has {name} {value}; no such model has that"
            )


def generation_config_of(checkpoint: Checkpoint, model: Any) -> None:
    """Give a model the generation settings that lie beside it, if any. Raises UnsupportedCheckpoint."""
    from transformers import GenerationConfig

    file = checkpoint.files.get("generation_config.json")
    if file is None:
        return
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        model.generation_config = GenerationConfig.from_dict(values)
    except Exception as error:  # as above
        raise _unreadable(checkpoint, "generation_config.json", error) from error


def divided(
    checkpoint: Checkpoint,
    rest: str,
    prefixes: Mapping[str, tuple[str, ...]],
    activations: Mapping[str, Callable[[int], int]],
    *,
    stays: Callable[[str], bool] = lambda name: False,
) -> dict[str, Part]:
    """The tensors of one model by component: `prefixes` are those of each component's tensors, all others belong to
    `rest`. `activations` and `stays`: see Part, for each."""
    chosen: dict[str, dict[str, Any]] = {rest: {}, **{name: {} for name in prefixes}}
    for key, entry in checkpoint.tensors.items():
        name = next((name for name, starts in prefixes.items() if key.startswith(starts)), rest)
        chosen[name][key] = entry
    return {
        name: Part(tensors=tensors, activation_bytes=activations[name], stays=stays) for name, tensors in chosen.items()
    }


def is_codebook(name: str) -> bool:
    """Whether a tensor of a codec is kept as a buffer."""
    return ".codebook." in name


def number_in(config: Mapping[str, Any], name: str, usual: int) -> int:
    """A whole number of a configuration that is data from elsewhere; `usual` where there is none in range."""
    value = config.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 40 else usual


def section_of(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The configuration of a part, within that of the whole; empty where there is none."""
    value = config.get(name)
    return value if isinstance(value, Mapping) else {}


def _unreadable(checkpoint: Checkpoint, file: str, error: Exception) -> UnsupportedCheckpoint:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return UnsupportedCheckpoint(f"{checkpoint.reference}: {file} cannot be used: {first}")
