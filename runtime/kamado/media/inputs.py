"""Which pictures went into a request: the `inputs` of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

INPUTS = ("image", "mask", "control", "ip_adapter_image")
"""Options that are pictures."""


def described_inputs(pictures: Mapping[str, Any]) -> dict[str, Any]:
    """`{"image": {"sha256"}, ...}` of opened pictures (see `open_picture`) by name (see INPUTS): a recipe's `inputs`.

    Several pictures of one option are a list of such facts; None is left out. The hash is that of the upright pixels:
    a copy in another lossless format is the same input.
    """
    return {name: _described(value) for name, value in pictures.items() if value is not None}


def _described(value: Any) -> Any:
    from .pictures import picture_digest

    if isinstance(value, (list, tuple)):
        return [_described(item) for item in value]
    return {"sha256": picture_digest(value)}
