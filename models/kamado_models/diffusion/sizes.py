"""Which sizes of pictures and videos a model can make, and how long its sounds can be."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from kamado.errors import InvalidRequest
from kamado.memory.plan import Plan
from kamado.picture_requests import PictureOptions
from kamado.units import format_bytes

from .extents import Extent
from .learning import activation_bytes
from .related import argument_of, call_parameters
from .table import makes
from .tiling import tile_side

_SPACE = ("vae_scale_factor_spatial", "vae_spatial_compression_ratio", "vae_spatial_scale_factor")
_TIME = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio", "vae_temporal_scale_factor")
"""What pipelines of videos call the pixels and the frames of a latent."""
_UNET_MULTIPLE = 8
"""Pipelines with a UNet ask for this whatever their autoencoder is."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of one model, in pixels."""

    usual: Extent
    """Its sides are where the request names only the other."""
    multiple: int
    """Both sides must be whole multiples of this."""
    tile: int | None = None
    """Side of a tile, for requests that want tiling."""
    stride: int = 1
    """A video has a multiple of this many frames, and one more."""

    def completed(self, options: PictureOptions) -> PictureOptions:
        """The options with both sides or none. Pipelines drop a side that comes alone."""
        if (options.width is None) == (options.height is None):
            return options
        return replace(options, width=options.width or self.usual.width, height=options.height or self.usual.height)

    def like_picture(self, options: PictureOptions) -> PictureOptions:
        """The options with the size of the picture that is to be changed, where they name none: pipelines would stretch
        it to the size that the model was trained for."""
        if options.width is not None or options.height is not None or not hasattr(options.image, "size"):
            return options
        width, height = (max(side // self.multiple, 1) * self.multiple for side in options.image.size)
        return replace(options, width=width, height=height)

    def like_area(self, options: PictureOptions) -> tuple[PictureOptions, str | None]:
        """The options with the usual number of pixels and the shape of the picture or video that is given, where they
        name no size: pipelines of videos would stretch it. And a note about it."""
        given = getattr(options.image, "size", None)
        if given is None and options.video is not None:
            given = options.video.frames.shape[2:0:-1]
        if given is None or options.width is not None or options.height is not None:
            return options, None
        area = min(self.usual.width * self.usual.height, given[0] * given[1])
        width, height = (
            max(round(math.sqrt(area * side / other) / self.multiple), 1) * self.multiple
            for side, other in (given, reversed(given))
        )
        return replace(options, width=width, height=height), f"the video is {width} x {height}, shaped like its input"

    def whole_frames(self, options: PictureOptions) -> tuple[PictureOptions, str | None]:
        """The options with a number of frames that the model can make, and a note if that is another one."""
        if options.frames is None or (options.frames - 1) % self.stride == 0:
            return options, None
        frames = max(round((options.frames - 1) / self.stride), 0) * self.stride + 1
        several = "frame" if frames == 1 else "frames"
        note = f"the video has {frames} {several}, not {options.frames}: this model makes {self.stride}k + 1"
        return replace(options, frames=frames), note

    def extent(self, options: PictureOptions) -> Extent:
        """How large what is asked for is, as far as it can be told."""
        if self.usual.seconds:
            return Extent(seconds=options.seconds or self.usual.seconds)
        width, height = options.width or self.usual.width, options.height or self.usual.height
        frames = options.frames or (self.usual.frames if options.video is None else len(options.video.frames))
        return Extent(width, height, frames)

    def check(self, options: PictureOptions, checkpoint: Any, plan: Plan) -> None:
        """Raises InvalidRequest, which names the nearest sizes that can be made."""
        for name, side in (("width", options.width), ("height", options.height)):
            if side is not None and side % self.multiple:
                below = side // self.multiple * self.multiple
                nearest = [str(near) for near in (below, below + self.multiple) if near]
                raise InvalidRequest(
                    f"{name} {side}: this model makes multiples of {self.multiple} pixels; "
                    f"the nearest are {' and '.join(nearest)}"
                )
        extent = self.extent(options)
        if len(extent.key) == 2 and (options.width is None or options.height is None):
            return
        free = max(plan.available_bytes - plan.held_weight_bytes, plan.activation_bytes)
        needed = activation_bytes(checkpoint, plan, extent, tile=self.tile if options.tiling else None)
        if needed > free:
            in_tiles = activation_bytes(checkpoint, plan, extent, tile=self.tile)
            helps = f", {format_bytes(in_tiles)} with tiling=True" if in_tiles < needed else ""
            raise InvalidRequest(
                f"{extent} needs about {format_bytes(needed)} beside the model{helps}, and "
                f"{format_bytes(max(free, 0))} may be used; ask for a smaller one, or allow more (--memory)"
            )


def check_mask(options: PictureOptions) -> None:
    """Raises InvalidRequest for a mask that does not lie on its picture; pipelines would stretch it."""
    picture, mask = getattr(options.image, "size", None), getattr(options.mask, "size", None)
    if picture is not None and mask is not None and picture != mask:
        raise InvalidRequest(
            f"the mask has {mask[0]} x {mask[1]} pixels and the picture {picture[0]} x {picture[1]}; "
            "give a mask of the picture's size"
        )


def sizes_of(pipeline: Any, usual: Extent) -> Sizes:
    """The sizes that a pipeline of the model takes."""
    factors = [
        getattr(pipeline, "vae_scale_factor", 1),
        *(
            getattr(getattr(processor, "config", None), "vae_scale_factor", 1)
            for processor in (getattr(pipeline, "image_processor", None), getattr(pipeline, "video_processor", None))
        ),
    ]
    multiple = max((factor for factor in factors if isinstance(factor, int)), default=1)
    if hasattr(pipeline, "unet") and multiple > 1:
        multiple = max(multiple, _UNET_MULTIPLE)
    if makes(type(pipeline).__name__) != "video":
        return Sizes(usual, multiple, tile_side(pipeline))
    pixels = next((found for name in _SPACE if type(found := getattr(pipeline, name, None)) is int), multiple)
    patch = getattr(getattr(getattr(pipeline, "transformer", None), "config", None), "patch_size", 1)
    patch = patch[-1] if isinstance(patch, (list, tuple)) and patch else patch
    multiple = max(multiple, pixels * patch if type(patch) is int else pixels)
    return Sizes(usual, multiple, tile_side(pipeline), _stride(pipeline))


def _stride(pipeline: Any) -> int:
    """Frames of a latent, where the first frame has one of its own."""
    frames = next((found for name in _TIME if type(found := getattr(pipeline, name, None)) is int), 1)
    # CogVideoX decodes latents by twos, and one or three at first; of an even number it makes other frames.
    vae = getattr(pipeline, "vae", None)
    if type(vae).__name__ == "AutoencoderKLCogVideoX":
        frames *= vae.num_latent_frames_batch_size  # type: ignore[union-attr]
    kind: Any = type(pipeline)  # mypy doubts that classes hash
    parameters = call_parameters(kind)
    name = argument_of("frames", parameters)
    default = parameters[name].default if name is not None else None
    return frames if not isinstance(default, int) or (default - 1) % frames == 0 else 1
