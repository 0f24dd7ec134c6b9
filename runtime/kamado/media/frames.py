"""Frames of strangers' videos: how many and how large they may be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..errors import InvalidRequest

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_FRAME_PIXELS = 1 << 25
"""Of one frame that is read: a little more than 7680 x 4320."""
MAX_VIDEO_BYTES = 1 << 32
"""Of all frames of a video that is read, three bytes a pixel: 11 minutes of 512 x 512 at 8 frames a second."""
MAX_FRAMES = 1 << 20
"""Of a video that is read, however small they are: nine hours of 30 a second."""


def check_frame(width: int, height: int, name: str) -> None:
    """Raise InvalidRequest for frames that are too large, or have no pixels."""
    if not 0 < width * height <= MAX_FRAME_PIXELS:
        raise InvalidRequest(f"{name} is {width} x {height}; frames of 1 to {MAX_FRAME_PIXELS} pixels are read")


def collected(frames: Iterator[NDArray[Any]], name: str, max_frames: int | None) -> NDArray[Any]:
    """Frames of one size as one array, within the limits. Raises InvalidRequest."""
    import numpy as np

    kept: list[NDArray[Any]] = []
    for frame in frames:
        if kept and frame.shape != kept[0].shape:
            raise InvalidRequest(f"{name} changes its size from frame to frame; only one size is read")
        kept.append(frame)
        if len(kept) * frame.size > MAX_VIDEO_BYTES or len(kept) > MAX_FRAMES:
            raise InvalidRequest(f"{name} has more than {len(kept) - 1} frames, which is all that fits; cut it")
        if len(kept) == max_frames:
            break
    if not kept:
        raise InvalidRequest(f"{name} has no frames")
    return np.stack(kept)
