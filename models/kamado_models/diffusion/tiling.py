"""Encoding and decoding in tiles: the memory of an autoencoder no longer grows with the picture.

diffusers' autoencoders do it themselves, overlap the tiles and blend them. A picture that fits in one tile is the same
with it and without it; a larger one differs a little, since no tile sees beyond its edges.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kamado.errors import InvalidRequest
from kamado.tasks.library.standin import ModelCall

from .pipelines import PipelineFactory
from .table import runs_alone

_AUTOENCODERS = ("vae", "movq", "vqvae")
_SMALLEST_TILE = 128
"""Pixels of a side. Of smaller ones the seams would show."""


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


def tiled_call(call: ModelCall) -> ModelCall | None:
    """A call of an autoencoder in tiles; where it is one already, also a few frames at a time, and then in tiles of
    half the size. None where there is no such thing, and for tiles that would be too small."""
    if call.method == "forward" or not _can_tile(call.module):
        return None
    module: Any = copy.copy(call.module)  # over the same weights; what is set on it holds for this call
    if not module.use_tiling:
        module.enable_tiling()
    elif _has_whole_time(module):
        module.use_framewise_encoding = module.use_framewise_decoding = True
    elif not _halve_tiles(module):
        return None
    return replace(call, module=module)


def _has_whole_time(module: Any) -> bool:
    """Whether it takes all frames of a video at once, and could take a few at a time (LTX)."""
    return getattr(module, "use_framewise_decoding", None) is False and hasattr(module, "tile_sample_min_num_frames")


def _halve_tiles(module: Any) -> bool:
    """Whether that was possible."""
    sizes = {
        name: value
        for name, value in vars(module).items()
        if name.startswith("tile_") and ("_min_" in name or "_stride_" in name) and isinstance(value, int)
        if "num_frames" not in name
    }
    sides = [size for name, size in sizes.items() if name.startswith("tile_sample_min")]
    if not sides or min(sides) // 2 < _SMALLEST_TILE or any(size % 2 for size in sizes.values()):
        return False
    vars(module).update({name: size // 2 for name, size in sizes.items()})
    return True


def _can_tile(part: Any) -> bool:
    return hasattr(part, "use_tiling") and hasattr(part, "enable_tiling")


def _tiled(parts: Mapping[str, Any]) -> list[Any]:
    found = (parts.get(name) for name in _AUTOENCODERS)
    return [part for part in found if _can_tile(part)]
