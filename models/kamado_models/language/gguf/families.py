"""Which GGUF architectures are known, and the configuration of a file. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kamado.checkpoint.types import Checkpoint
from kamado.errors import UnsupportedCheckpoint

from .architecture import Architecture
from .classic import CLASSIC
from .gemma import GEMMA
from .llama_like import LLAMA_LIKE
from .mixtures import MIXTURES
from .source import GgufSource

ARCHITECTURES: Mapping[str, Architecture] = {**LLAMA_LIKE, **GEMMA, **CLASSIC, **MIXTURES}
"""By GGUF's name."""


def find_architecture(source: GgufSource) -> Architecture:
    """Raises UnsupportedCheckpoint, which names the architectures that are known."""
    found = ARCHITECTURES.get(source.architecture)
    if found is None:
        raise UnsupportedCheckpoint(
            f"{source.file} holds a model of architecture {source.architecture!r}, which cannot be loaded from GGUF; "
            f"known are {', '.join(sorted(ARCHITECTURES))}"
        )
    return found


def config_from_gguf(checkpoint: Checkpoint) -> dict[str, Any]:
    """The model's `config.json`, as transformers would have it: `model_type`, `architectures`, sizes, RoPE, token ids.

    Values that GGUF does not keep and that do not change results are left to transformers' defaults. Imports no torch
    and reads no weights (but for RoPE factors of a few hundred bytes). Raises UnsupportedCheckpoint for an
    architecture that is unknown, or values that are missing or impossible.
    """
    source = GgufSource(checkpoint)
    return find_architecture(source).config(source)
