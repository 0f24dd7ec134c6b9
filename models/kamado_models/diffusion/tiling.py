"""Encoding and decoding in tiles: the memory of an autoencoder no longer grows with the picture.

diffusers' autoencoders do it themselves, overlap the tiles and blend them. A picture that fits in one tile is the same
with it and without it; a larger one differs a little, since no tile sees beyond its edges.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kamado.errors import InvalidRequest

from .pipelines import PipelineFactory
from .table import runs_alone

_AUTOENCODERS = ("vae", "movq", "vqvae")


def tile(pipeline: Any) -> None:
    """Switch a request's pipeline over."""
    for autoencoder in _tiled(vars(pipeline)):
        autoencoder.enable_tiling()


def check_tiling(kind: Any, factory: PipelineFactory) -> None:
    """Raise InvalidRequest where a pipeline of class `kind` cannot work in tiles."""
    if not _tiled(factory.models):
        raise InvalidRequest(f"{factory.reference} has no autoencoder that works in tiles; leave tiling out")
    if runs_alone(kind.__name__):
        raise InvalidRequest(f"{kind.__name__} uses its models in ways of its own; leave tiling out")


def tile_side(pipeline: Any) -> int | None:
    """Pixels of the side of a tile, of the component with the largest ones; None where there are none."""
    sides = [
        side
        for autoencoder in _tiled(vars(pipeline))
        for name in ("tile_sample_min_size", "tile_sample_min_height", "tile_sample_min_width")
        if isinstance(side := getattr(autoencoder, name, None), int)
    ]
    return max(sides, default=None)


def _tiled(parts: Mapping[str, Any]) -> list[Any]:
    found = (parts.get(name) for name in _AUTOENCODERS)
    return [part for part in found if hasattr(part, "use_tiling") and hasattr(part, "enable_tiling")]
