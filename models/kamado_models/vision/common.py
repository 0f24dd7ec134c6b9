"""What all models that look at one picture have in common: header data. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kamado.checkpoint.types import Checkpoint
from kamado.options import Check, Options, anything

from ..library.kinds import Part, architecture_of, num_parameters

_USUAL_PIXELS = 518 * 518
"""Of a picture as such models see it, where nothing says otherwise."""
_NUMBERS_PER_PIXEL = 160
"""Of temporary tensors, about: the widest maps of decoders have half of the picture's sides, and 256 channels."""


def picture_options(what: str, checks: Mapping[str, Check]) -> Options:
    """Options of a model that looks at one picture."""
    return Options(what=what, checks={"image": anything, **checks}, inputs={"image": "image"}, needs=("image",))


def described(checkpoint: Checkpoint) -> dict[str, Any]:
    """Facts that all have."""
    return {"architecture": architecture_of(checkpoint), "parameters": num_parameters(checkpoint.tensors)}


def network(checkpoint: Checkpoint, sides: Sequence[int] = ()) -> dict[str, Part]:
    """The one component, which sees pictures of `sides`, if that is known."""
    pixels = sides[0] * sides[-1] if sides else _USUAL_PIXELS
    return {
        "network": Part(
            tensors=checkpoint.tensors,
            activation_bytes=lambda number: number * _NUMBERS_PER_PIXEL * pixels,
            # Channels are left out of positions; a patch of 16 x 16 pixels is one.
            entries_per_position=64,
        )
    }
