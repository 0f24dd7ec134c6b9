"""Which sizes of pictures a model can make."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from kamado.errors import InvalidRequest
from kamado.memory.plan import Plan
from kamado.picture_requests import PictureOptions
from kamado.units import format_bytes

from .learning import activation_bytes
from .tiling import tile_side

_UNET_MULTIPLE = 8
"""Pipelines with a UNet ask for this whatever their autoencoder is."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of one model, in pixels."""

    width: int
    """Where the request names only the height."""
    height: int
    multiple: int
    """Both must be whole multiples of this."""
    tile: int | None = None
    """Side of a tile, for requests that want tiling."""

    def completed(self, options: PictureOptions) -> PictureOptions:
        """The options with both sides or none. Pipelines drop a side that comes alone."""
        if (options.width is None) == (options.height is None):
            return options
        return replace(options, width=options.width or self.width, height=options.height or self.height)

    def like_picture(self, options: PictureOptions) -> PictureOptions:
        """The options with the size of the picture that is to be changed, where they name none: pipelines would stretch
        it to the size that the model was trained for."""
        if options.width is not None or options.height is not None or not hasattr(options.image, "size"):
            return options
        width, height = (max(side // self.multiple, 1) * self.multiple for side in options.image.size)
        return replace(options, width=width, height=height)

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
        if options.width is None or options.height is None:
            return
        size = options.width, options.height
        free = max(plan.available_bytes - plan.held_weight_bytes, plan.activation_bytes)
        needed = activation_bytes(checkpoint, plan, *size, tile=self.tile if options.tiling else None)
        if needed > free:
            in_tiles = activation_bytes(checkpoint, plan, *size, tile=self.tile)
            helps = f", {format_bytes(in_tiles)} with tiling=True" if in_tiles < needed else ""
            raise InvalidRequest(
                f"a picture of {size[0]} x {size[1]} needs about {format_bytes(needed)} beside the model{helps}, and "
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


def sizes_of(pipeline: Any, default: tuple[int, int]) -> Sizes:
    """The sizes that a pipeline of the model takes; `default` is (width, height)."""
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
    return Sizes(*default, multiple, tile_side(pipeline))
