"""Pictures made larger: what is beyond their edges is painted by the inpainting pipeline of the same models."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy
from numpy.typing import NDArray
from PIL import Image

from kamado.errors import GenerationFailed, InvalidRequest
from kamado.media.pictures import MAX_PIXELS
from kamado.picture_requests import PictureOptions

STRENGTH = 1.0
"""Beyond the edges there is nothing to keep."""
VARIATION_STRENGTH = 0.4
_FEATHER = 16
"""A picture's shorter side has so many bands."""
_WHITE = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Outpainting:
    """One request's: what is given to the pipeline, and what is kept of the picture."""

    options: PictureOptions
    """With the enlarged picture, its mask and its size."""
    opacity: NDArray[numpy.float32]
    """(height, width, 1): how much of what is painted shows. 1 beyond the old edges, 0 in the old picture, but for a
    band along them in which it falls."""

    def joined(self, painted: NDArray[numpy.float32]) -> NDArray[numpy.float32]:
        """The old picture within what was painted: (height, width, 3) in [0, 1]. Raises GenerationFailed for a painted
        picture of another size."""
        if painted.shape[:2] != self.opacity.shape[:2]:
            sizes = [f"{shape[1]} x {shape[0]}" for shape in (painted.shape, self.opacity.shape)]
            raise GenerationFailed(f"the model made a picture of {sizes[0]} instead of {sizes[1]}")
        old = numpy.asarray(self.options.image, dtype=numpy.float32) / numpy.float32(_WHITE)
        return painted * self.opacity + old * (numpy.float32(1) - self.opacity)


def outpainting(asked: PictureOptions) -> Outpainting | None:
    """What was asked for, if anything. Raises InvalidRequest."""
    if asked.outpaint is None:
        return None
    if not isinstance(asked.image, Image.Image):
        raise InvalidRequest("outpaint makes a picture larger; give it as image")
    for name in ("mask", "width", "height"):
        if getattr(asked, name) is not None:
            raise InvalidRequest(f"outpaint says what is painted and how large it gets; leave {name} out")
    sides = asked.outpaint
    old = numpy.asarray(asked.image.convert("RGB"))
    rows, columns = ((sides.get(one, 0), sides.get(other, 0)) for one, other in (("top", "bottom"), ("left", "right")))
    height, width = old.shape[0] + sum(rows), old.shape[1] + sum(columns)
    if width * height > MAX_PIXELS:
        raise InvalidRequest(
            f"outpaint would make a picture of {width} x {height}; at most {MAX_PIXELS} pixels are made"
        )
    # Pipelines look at what is under the mask: the colours at the edges are a better start than black.
    canvas = numpy.pad(old, (rows, columns, (0, 0)), mode="edge")
    band = sides.get("feather", min(old.shape[:2]) // _FEATHER)
    down, across = _falling(old.shape[0], *rows, band), _falling(old.shape[1], *columns, band)
    opacity = numpy.maximum(down[:, None], across[None, :])
    return Outpainting(
        options=replace(
            asked,
            image=Image.fromarray(canvas),
            mask=Image.fromarray((opacity > 0).astype(numpy.uint8) * _WHITE),
            width=width,
            height=height,
        ),
        opacity=opacity[..., None].astype(numpy.float32),
    )


def with_defaults(options: PictureOptions, parameters: Any) -> PictureOptions:
    """What a request with a picture leaves unsaid, for a pipeline whose call takes `parameters`: outpainting starts
    from noise; a picture without a prompt is varied."""
    if options.image is None or "strength" not in parameters:
        return options
    if options.outpaint is not None and options.strength is None:
        options = replace(options, strength=STRENGTH)
    has_prompt = options.prompt is not None or any(name.endswith("prompt_embeds") for name in options.extra)
    if has_prompt or options.mask is not None or "prompt" not in parameters:
        return options
    return replace(options, prompt="", strength=options.strength or VARIATION_STRENGTH)


def _falling(length: int, before: int, after: int, band: int) -> NDArray[numpy.float64]:
    """(before + length + after): 1 outside, and falling to 0 inside over `band` pixels from each side that grows."""
    inside = numpy.zeros(length)
    ramp = 1 - (numpy.arange(band) + 0.5) / max(band, 1)
    for grows, part in ((before, inside), (after, inside[::-1])):
        if grows:
            count = min(band, length)
            part[:count] = numpy.maximum(part[:count], ramp[:count])
    return numpy.pad(inside, (before, after), constant_values=1.0)
