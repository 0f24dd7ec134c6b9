"""A second pass: the finished picture, enlarged, is refined by the image-to-image pipeline of the same models.

Models draw best at the size that they were trained at; a larger picture made at once repeats itself. Enlarging and
painting over a part of the noise (`strength`) adds detail and keeps the composition.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from kamado.errors import InvalidRequest
from kamado.picture_requests import PictureOptions

from .pipelines import PipelineFactory, call_arguments, takes_size
from .related import call_parameters
from .sizes import Sizes

STRENGTH = 0.5
_OF_THE_FIRST = ("latents", "timesteps", "sigmas", "denoising_end", "denoising_start")
"""Options that say how the first pass goes on in time, or hold its noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refinement:
    """The second pass of a request."""

    kind: Any
    """Its pipeline class."""
    options: PictureOptions
    """All but the picture and its size."""
    scale: float
    multiple: int
    """Sides are multiples of so many pixels."""
    expected: PictureOptions
    """With the size that the picture will have, as far as it can be told."""
    steps: int
    """How many it will take, about."""
    notes: tuple[str, ...]
    """What the caller should know of it."""

    def asked(self, picture: Image.Image) -> PictureOptions:
        """The options with the first pass's picture, enlarged."""
        size = _enlarged(picture.size, self.scale, self.multiple)
        return _fitting(self.kind, self.options, picture.resize(size, Image.Resampling.LANCZOS))


def refinement(factory: PipelineFactory, options: PictureOptions, sizes: Sizes) -> Refinement | None:
    """The second pass that was asked for, if any. `options` are those of the first. Raises InvalidRequest."""
    if options.hires is None:
        for name in ("hires_strength", "hires_steps"):
            if getattr(options, name) is not None:
                raise InvalidRequest(f"{name} is for a second pass; give hires too, how many times larger it makes")
        return None
    placeholder = Image.new("RGB", (sizes.multiple, sizes.multiple))
    strength = options.hires_strength or STRENGTH
    again = replace(
        options, image=placeholder, mask=None, strength=strength, steps=options.hires_steps or options.steps
    )
    try:
        kind = factory.kind(again)
    except InvalidRequest as error:
        raise InvalidRequest(f"hires needs a model that takes pictures too, and {error}") from error
    takes = call_parameters(kind)
    if "strength" not in takes or "mask_image" in takes:
        what = "no strength" if "strength" not in takes else "a mask"
        raise InvalidRequest(f"hires cannot refine a picture with {kind.__name__}, which takes {what}")
    whole = again.steps or takes["num_inference_steps"].default
    steps = int(whole * strength)
    if steps < 1:
        raise InvalidRequest(
            f"hires would do no step: hires_strength is the share of hires_steps that is done, and {whole} x "
            f"{strength:g} is less than one; ask for more steps (hires_steps={int(1 / strength) + 1})"
        )
    extra = {name: value for name, value in options.extra.items() if name in takes and name not in _OF_THE_FIRST}
    again = replace(again, extra=extra)
    call_arguments(kind, _fitting(kind, again, placeholder))
    left_out = sorted(options.extra.keys() - extra.keys())
    base = getattr(options.image, "size", (sizes.usual.width, sizes.usual.height))
    width, height = _enlarged((options.width or base[0], options.height or base[1]), options.hires, sizes.multiple)
    return Refinement(
        kind=kind,
        options=again,
        scale=options.hires,
        multiple=sizes.multiple,
        expected=replace(again, image=None, width=width, height=height),
        steps=steps,
        notes=(f"the second pass takes no {', '.join(left_out)}",) if left_out else (),
    )


def _enlarged(size: tuple[int, int], scale: float, multiple: int) -> tuple[int, int]:
    width, height = (max(1, round(side * scale / multiple)) * multiple for side in size)
    return width, height


def _fitting(kind: Any, options: PictureOptions, picture: Image.Image) -> PictureOptions:
    """With the picture, and its size where the pipeline wants to be told."""
    width, height = picture.size if takes_size(kind) else (None, None)
    return replace(options, image=picture, width=width, height=height)
