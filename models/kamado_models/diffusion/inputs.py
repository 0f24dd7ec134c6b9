"""Input pictures as a pipeline can use them: their colours, their number, their size, and how much of them is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from PIL import Image

from kamado.errors import InvalidRequest
from kamado.media.pictures import flattened
from kamado.picture_requests import MAX_STEPS, PictureOptions

from .extents import Extent
from .table import makes

_MODES = {1: "L", 4: "RGBA"}
"""By the channels that an autoencoder reads; RGB for all others."""
_OWN_TIME = ("timesteps", "sigmas", "denoising_start", "denoising_end")
"""Options that say otherwise than `strength` where a picture's denoising starts and ends."""


def plain_inputs(options: PictureOptions, components: Mapping[str, Any]) -> PictureOptions:
    """The options with pictures in the mode that the models read: RGB over white for most, masks in shades of grey.

    diffusers takes four channels for latents, and one channel for a mistake."""
    config = getattr(components.get("vae"), "config", None)
    channels = getattr(config, "input_channels", None) or getattr(config, "in_channels", None)
    mode = _MODES.get(channels, "RGB") if isinstance(channels, int) else "RGB"
    changed = replace(
        options,
        image=_each(options.image, mode),
        # What is transparent in a mask was not painted: it is kept.
        mask=_each(options.mask, "L", "black"),
        control=_each(options.control, "RGB"),
        last_image=_each(options.last_image, "RGB"),
    )
    shown = options.extra.get("ip_adapter_image")
    if shown is None:
        return changed
    return replace(changed, extra={**options.extra, "ip_adapter_image": _each(shown, "RGB")})


def single_input(options: PictureOptions, kind: Any, parameters: Mapping[str, Any]) -> PictureOptions:
    """The options with a picture in place of a list of one, where the pipeline class `kind` changes a picture. Its call
    takes `parameters`. Others, which look at pictures, may take several. Raises InvalidRequest."""
    if not isinstance(options.image, list) or not _changes_one(kind, parameters):
        return options
    if len(options.image) != 1:
        raise InvalidRequest(
            f"image: {kind.__name__} takes 1 picture, not {len(options.image)}; make a request of each"
        )
    mask = options.mask
    return replace(options, image=options.image[0], mask=mask[0] if isinstance(mask, list) and len(mask) == 1 else mask)


def check_inputs(options: PictureOptions, least: int) -> None:
    """Raises InvalidRequest for pictures with a side of less than `least` pixels, of which no latents can be made."""
    for name in ("image", "control", "last_image"):
        pictures = getattr(options, name)
        for picture in pictures if isinstance(pictures, list) else [pictures]:
            size = getattr(picture, "size", None)
            if isinstance(size, tuple) and min(size) < least:
                raise InvalidRequest(
                    f"{name} is {size[0]} x {size[1]} pixels; this model takes pictures of at least {least} x {least}"
                )


def check_strength(options: PictureOptions, parameters: Mapping[str, Any]) -> None:
    """Raises InvalidRequest for a strength without a picture, and for one that leaves no step to do. `parameters` are
    those of the pipeline's call."""
    if options.strength is not None and options.image is None and "strength" not in parameters:
        raise InvalidRequest("strength says how much of a picture is replaced; it needs a picture (image)")
    if (options.image is None and options.video is None) or not {
        "strength",
        "num_inference_steps",
    } <= parameters.keys():
        return
    # Samplers of consistency models spread all steps over the share; LTX's conditions have another name for it.
    if {"original_inference_steps", "denoise_strength"} & parameters.keys() or any(
        name in options.extra for name in _OWN_TIME
    ):
        return
    steps = options.steps or parameters["num_inference_steps"].default
    strength = parameters["strength"].default if options.strength is None else options.strength
    if not (isinstance(steps, int) and isinstance(strength, (int, float))) or int(steps * strength) >= 1:
        return
    raise InvalidRequest(
        f"no step would be done: strength is the share of the steps that are, and {steps} x {strength:g} is less than "
        f"one; ask for {_enough(steps, strength)}"
    )


def fitted(options: PictureOptions) -> tuple[PictureOptions, str | None]:
    """For a pipeline whose pictures have the size of the input picture: the options with that picture, and its mask,
    resized to the size that was asked for, which is left out; and a note about it, if there is one to make."""
    size = (options.width, options.height)
    if not isinstance(options.image, Image.Image) or options.width is None or options.height is None:
        return options, None
    plain = replace(options, width=None, height=None)
    if options.image.size == size:
        return plain, None
    note = f"the input picture was resized from {_said(options.image.size)} to {_said(size)}"
    return replace(plain, image=_resized(options.image, size), mask=_resized(options.mask, size)), note


def size_notes(asked: PictureOptions, first: PictureOptions, made: Extent, parameters: Mapping[str, Any]) -> list[str]:
    """What to say of the size of what was made, where it is another than the request or its inputs let expect. `first`
    are the options as the pipeline had them."""
    notes = []
    if made.frames == 1 and not made.seconds:
        notes = [size_note(asked, (made.width, made.height), parameters)]
    given = None if asked.video is None else len(asked.video.frames)
    if first.frames is not None and made.frames != first.frames and made.width:
        notes.append(f"the video has {made.frames} frames: {first.frames} is no number that this model makes")
    elif first.frames is None and given is not None and made.frames not in (1, given):
        notes.append(f"the video has {made.frames} frames: the input's {given} is no number that this model makes")
    return [note for note in notes if note is not None]


def size_note(asked: PictureOptions, made: tuple[int, int], parameters: Mapping[str, Any]) -> str | None:
    """What to say of a picture of the size `made`, where the input picture has another and nobody asked for that."""
    given = getattr(asked.image if asked.image is not None else asked.control, "size", None)
    keeps = "strength" in parameters or asked.control is not None
    if given is None or given == made or not keeps or (asked.width, asked.height) != (None, None):
        return None
    if asked.outpaint is not None or asked.hires is not None:
        return None
    return f"the picture is {_said(made)}: the input picture's {_said(given)} is no size that this model makes"


def _changes_one(kind: Any, parameters: Mapping[str, Any]) -> bool:
    made_of: set[str] = set(kind._get_signature_keys(kind)[0])
    if makes(kind.__name__) == "video":
        return True
    return "strength" in parameters or ("unet" in made_of and "adapter" not in made_of)


def _each(pictures: Any, mode: str, ground: str = "white") -> Any:
    if isinstance(pictures, list):
        return [flattened(picture, mode, ground) for picture in pictures]
    return None if pictures is None else flattened(pictures, mode, ground)


def _resized(picture: Any, size: Any) -> Any:
    return picture.resize(size, Image.Resampling.LANCZOS) if isinstance(picture, Image.Image) else picture


def _said(size: Any) -> str:
    return f"{size[0]} x {size[1]}"


def _enough(steps: int, strength: float) -> str:
    """The least strength for so many steps, and the least steps for that strength."""
    least = math.ceil(10_000 / steps) / 10_000
    needed = math.ceil(1 / strength)
    needed += int(needed * strength) < 1  # rounded down
    several = f"; or for at least {needed} steps (steps={needed})" if needed <= MAX_STEPS else ""
    return f"a strength of at least {least:g}{several}"
