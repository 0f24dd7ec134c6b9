"""What pipelines return, as values of `kamado.outputs`: one outcome for each kind of the table `pipelines.toml`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy
from numpy.typing import NDArray
from torch import nn

from kamado.errors import GenerationFailed
from kamado.media.guards import blank_reason, silent_reason
from kamado.media.maps import deep_picture
from kamado.media.pictures import pictures_from_float
from kamado.outputs import Audio, Mesh, Output, Picture, Video

from .extents import Extent
from .guards import advice
from .table import makes


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What outputs of a request are to be played with."""

    fps: float = 0.0
    """Frames a second, of a video."""
    sample_rate: int = 0
    """Samples a second, of a sound."""


class Outcome(Protocol):
    """What becomes of a pipeline's output."""

    output_type: str | None
    """What the pipeline is asked for; None: what it returns unasked."""
    word: str
    """For one of them, in messages."""

    def made(self, returned: Any, rates: Rates) -> Output:
        """The value of what a pipeline returned. Raises Useless."""

    def extent(self, output: Any) -> Extent:
        """How large a value is."""


class Useless(Exception):
    """What came out is certainly not what anybody asked for; the text says why."""


class Pictures:
    """One picture."""

    output_type: str | None = "np"
    word = "picture"

    def made(self, returned: Any, rates: Rates) -> Picture:
        """See Outcome."""
        pictures = numpy.asarray(_first(returned, "images", "image"), dtype=numpy.float32)
        (pixels,) = pictures.reshape(-1, *pictures.shape[-3:])
        _refuse(blank_reason(pixels))
        return picture_of(pixels)

    def extent(self, output: Any) -> Extent:
        """See Outcome."""
        return Extent(*output.image.size)


class Videos:
    """One video, of some models with sound."""

    output_type: str | None = "np"
    word = "video"

    def made(self, returned: Any, rates: Rates) -> Video:
        """See Outcome."""
        frames = _frames(_first(returned, "frames", "video", "images"))
        _refuse(blank_reason(frames))
        sound = getattr(returned, "audio", None)
        return Video(
            frames=numpy.stack([_eight_bits(frame) for frame in frames]),
            fps=rates.fps,
            audio=None if sound is None else _sound(_samples(sound), rates),
        )

    def extent(self, output: Any) -> Extent:
        """See Outcome."""
        frames, height, width = output.frames.shape[:3]
        return Extent(width, height, frames)


class Sounds:
    """One sound."""

    output_type: str | None = "np"
    word = "sound"

    def made(self, returned: Any, rates: Rates) -> Audio:
        """See Outcome."""
        samples = _samples(_first(returned, "audios", "audio"))
        _refuse(silent_reason(samples))
        return _sound(samples, rates)

    def extent(self, output: Any) -> Extent:
        """See Outcome."""
        return Extent(seconds=output.duration_s)


class Meshes:
    """One mesh, with the colours of its vertices where the model has them."""

    output_type: str | None = "mesh"
    word = "mesh"

    def made(self, returned: Any, rates: Rates) -> Mesh:
        """See Outcome."""
        (found,) = _first(returned, "images")
        vertices, faces = (tensor.detach().cpu().numpy() for tensor in (found.verts, found.faces))
        if not len(faces):
            raise Useless("it has no surface")
        if _signed_volume(vertices, faces) < 0:
            faces = faces[:, ::-1]
        channels = getattr(found, "vertex_channels", None)
        return Mesh(
            vertices=vertices.astype(numpy.float32),
            faces=numpy.ascontiguousarray(faces, dtype=numpy.int64),
            colors=None if not channels else _vertex_colors(channels),
        )

    def extent(self, output: Any) -> Extent:
        """See Outcome."""
        return Extent()


class Maps:
    """What is where in a picture: depth in [0, 1], normals in [-1, 1], or several intrinsic pictures in [0, 1]."""

    output_type: str | None = "np"
    word = "map"

    def made(self, returned: Any, rates: Rates) -> Picture:
        """See Outcome."""
        values = numpy.asarray(_first(returned, "prediction"), dtype=numpy.float32)
        if not numpy.isfinite(values).all():
            raise Useless("it holds NaN or infinity")
        if values.shape[-1] == 1:
            (depth,) = values
            return Picture(image=deep_picture(depth[..., 0]), pixels=depth)
        are_normals = type(returned).__name__ == "MarigoldNormalsOutput"
        return picture_of(numpy.concatenate([(each + 1) / 2 if are_normals else each for each in values], axis=1))

    def extent(self, output: Any) -> Extent:
        """See Outcome."""
        return Extent(*output.image.size)


OUTCOMES: Mapping[str, Outcome] = {
    "image": Pictures(),
    "video": Videos(),
    "audio": Sounds(),
    "mesh": Meshes(),
    "map": Maps(),
}
"""By what a pipeline makes; see table.RUN."""


def outcome_of(kind: Any) -> Outcome:
    """What becomes of what pipelines of class `kind` return."""
    return OUTCOMES[makes(kind.__name__)]


def judged(outcome: Outcome, returned: Any, rates: Rates, models: Iterable[nn.Module]) -> Output:
    """The value of what a pipeline returned; `models` made it. Raises GenerationFailed for what is none."""
    flagged = getattr(returned, "nsfw_content_detected", None)
    if flagged and any(flagged):
        raise GenerationFailed(
            f"the model's own safety checker took the {outcome.word} away; try another prompt or seed"
        )
    try:
        return outcome.made(returned, rates)
    except Useless as error:
        raise GenerationFailed(f"the model made no {outcome.word} ({error}); {advice(models)}") from error


def picture_of(pixels: NDArray[numpy.float32]) -> Picture:
    """float32 (height, width, channels) in [0, 1] as a picture."""
    (image,) = pictures_from_float(pixels[None])
    return Picture(image=image, pixels=pixels)


def _refuse(reason: str | None) -> None:
    if reason is not None:
        raise Useless(reason)


def _first(returned: Any, *names: str) -> Any:
    """The first of these fields that is there."""
    return next(value for name in names if (value := getattr(returned, name, None)) is not None)


def _frames(found: Any) -> NDArray[numpy.float32]:
    """(frames, height, width, 3) in [0, 1], of the one video."""
    if hasattr(found, "detach"):
        found = found.detach().float().cpu()
    frames = numpy.asarray(found)
    if frames.dtype == numpy.uint8:
        frames = frames.astype(numpy.float32) / 255
    if frames.ndim == 5:
        (frames,) = frames
    if frames.ndim != 4 or frames.shape[-1] != 3:
        raise Useless(f"what came out has the form {list(frames.shape)}")
    return frames


def _eight_bits(frame: NDArray[Any]) -> NDArray[numpy.uint8]:
    """Rounded as pictures are. One frame at a time: a whole video in float32 is large."""
    wide: NDArray[numpy.float32] = frame.astype(numpy.float32, copy=False).clip(0, 1) * 255
    return wide.round().astype(numpy.uint8)


def _signed_volume(vertices: NDArray[Any], faces: NDArray[Any]) -> float:
    """Of a closed mesh: negative where its faces run clockwise as seen from outside."""
    corners = vertices.astype(numpy.float64)[faces]
    return float((corners[:, 0] * numpy.cross(corners[:, 1], corners[:, 2])).sum() / 6)


def _vertex_colors(channels: Mapping[str, Any]) -> NDArray[numpy.uint8]:
    """Red, green and blue in [0, 1] as opaque colours, rounded as diffusers' `export_to_ply` does."""
    columns = [channels[name].detach().float().cpu().numpy() for name in "RGB"]
    colors = (numpy.stack(columns, axis=1).clip(0, 1) * 255).round().astype(numpy.uint8)
    return numpy.concatenate([colors, numpy.full((len(colors), 1), 255, numpy.uint8)], axis=1)


def _samples(found: Any) -> NDArray[numpy.float32]:
    """(channels, samples) of the one sound."""
    if hasattr(found, "detach"):
        found = found.detach().float().cpu()
    samples = numpy.asarray(found, dtype=numpy.float32)
    # It is (1, samples), or (1, channels, samples).
    return samples.reshape(math.prod(samples.shape[:-1]), samples.shape[-1])


def _sound(samples: NDArray[numpy.float32], rates: Rates) -> Audio:
    if not numpy.isfinite(samples).all():
        raise Useless("its sound holds NaN or infinity")
    return Audio(samples=samples.clip(-1, 1), sample_rate=rates.sample_rate)
