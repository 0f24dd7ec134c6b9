"""Short silent videos as GIF and WebP animations, which Pillow does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any, BinaryIO

from PIL import Image, ImageSequence, UnidentifiedImageError

from ..errors import InvalidRequest, KamadoError
from .embed import metadata
from .frames import check_frame, collected
from .tags import tagged

if TYPE_CHECKING:
    from numpy.typing import NDArray

_USUAL_MS = 100
"""What browsers make of a frame that says it lasts no time at all."""
_SHORTEST_GIF_MS = 20
"""A GIF counts hundredths of a second, and players take 1 of them for 10."""


def save_animation(
    frames: NDArray[Any], fps: float, file: BinaryIO, suffix: str, recipe: Mapping[str, Any] | None
) -> None:
    """Write frames uint8 `[frames, height, width, 3]` as an endless animation. A GIF has at most 256 colours a frame,
    at most 50 frames a second, and its recipe in the comment; frames that are alike may become one that lasts longer.
    Raises InvalidRequest."""
    pictures = [Image.fromarray(frame) for frame in frames]
    how: dict[str, Any] = {"save_all": True, "append_images": pictures[1:], "loop": 0}
    if suffix == ".gif":
        how |= {"duration": _durations(len(pictures), fps, 10, _SHORTEST_GIF_MS), "optimize": False}
        how |= {} if recipe is None else {"comment": tagged(recipe).encode()}
    else:
        how |= {"duration": _durations(len(pictures), fps, 1, 1), "quality": 90, "method": 4}
        how |= {} if recipe is None else metadata(recipe, "WEBP")
    try:
        pictures[0].save(file, suffix[1:].upper(), **how)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        height, width = frames.shape[1:3]
        raise InvalidRequest(f"an animation of {width} x {height} cannot be written as {suffix}: {error}") from error


def open_animation(file: BinaryIO, name: str, max_frames: int | None) -> tuple[NDArray[Any], float]:
    """(frames, frames a second) of a GIF or WebP file: uint8 `[frames, height, width, 3]`, over white. One that
    lasts several times as long as the shortest is there as often. A picture that does not move is a video of one frame.
    Raises InvalidRequest."""
    lasts: list[float] = []
    try:
        with Image.open(file, formats=("GIF", "WEBP")) as image:
            check_frame(image.width, image.height, name)
            lasts.extend(islice(_durations_of(image), max_frames))
            frames = collected(_frames(image, lasts), name, max_frames)
    except KamadoError:
        raise
    except UnidentifiedImageError as error:
        raise InvalidRequest(f"{name} is no GIF or WebP animation") from error
    except Exception as error:  # whatever decoders make of damaged files
        raise InvalidRequest(f"{name} is damaged, or no animation: {type(error).__name__}: {error}"[:240]) from error
    return frames, 1000 * sum(_times(lasts)) / sum(lasts)


def _durations_of(image: Image.Image) -> Iterator[float]:
    """Milliseconds of each frame."""
    for _ in ImageSequence.Iterator(image):
        image.load()  # Pillow tells how long a frame of WebP lasts when it is decoded
        yield float(image.info.get("duration") or _USUAL_MS)


def _times(lasts: list[float]) -> list[int]:
    """How often each frame is there."""
    shortest = min(lasts)
    return [max(1, round(each / shortest)) for each in lasts]


def _frames(image: Image.Image, lasts: list[float]) -> Iterator[NDArray[Any]]:
    import numpy as np

    for frame, times in zip(ImageSequence.Iterator(image), _times(lasts), strict=False):
        ground = Image.new("RGBA", frame.size, "white")
        pixels = np.asarray(Image.alpha_composite(ground, frame.convert("RGBA")).convert("RGB"))
        yield from (pixels for _ in range(times))


def _durations(count: int, fps: float, step: int, shortest: int) -> list[int]:
    """Milliseconds of each frame, in multiples of `step`, that together come as near as can be to the right time."""
    ends = [round(1000 * number / fps / step) * step for number in range(count + 1)]
    return [max(shortest, end - begin) for begin, end in pairwise(ends)]
