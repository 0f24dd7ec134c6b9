"""What older pipelines of diffusers expect of models that transformers has changed since."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

_PLAIN_FEATURES = ("MusicLDMPipeline",)
"""Pipelines that take what CLAP says of a text for a tensor; since transformers 5 it is an object that holds one."""


def as_expected(kind: Any, models: Mapping[str, nn.Module]) -> None:
    """Change the stand-ins that a pipeline of class `kind` is made with. Nothing else sees it."""
    if kind.__name__ not in _PLAIN_FEATURES:
        return
    encoder: Any = models.get("text_encoder")
    whole = getattr(encoder, "get_text_features", None)
    if whole is None:
        return

    def features(*args: Any, **kwargs: Any) -> Any:
        found = whole(*args, **kwargs)
        return getattr(found, "pooler_output", found)

    encoder.get_text_features = features
