"""What LTX's condition pipeline takes for the inputs of a request: pictures and videos, and the frames they are for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from PIL import Image

from kamado.errors import InvalidRequest
from kamado.picture_requests import PictureOptions

from .related import call_parameters

_CLASS = "LTXConditionPipeline"
_INPUTS = ("image", "video", "last_image")


def takes_conditions(kind: Any) -> bool:
    """Whether pipelines of class `kind` take inputs as conditions of frames, and `strength` for how closely those are
    kept."""
    return str(kind.__name__) == _CLASS


def with_length(options: PictureOptions, kind: Any) -> PictureOptions:
    """The options with the pipeline's usual number of frames, where a video is a condition and nobody said how long
    the new one shall be: other pipelines make as many frames as the input has, this one goes on from them."""
    if not takes_conditions(kind) or options.video is None or options.frames is not None:
        return options
    return replace(options, frames=_default(kind, "num_frames"))


def with_conditions(kind: Any, options: PictureOptions, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call with the inputs of a request as conditions: `image` or `video` from the first frame on,
    or from `frame_index`, and `last_image` for the last one, kept as closely as `strength` says. Raises
    InvalidRequest."""
    if not takes_conditions(kind):
        return dict(arguments)
    given = {name: getattr(options, name) for name in _INPUTS if getattr(options, name) is not None}
    if not given:
        for name in ("strength", "frame_index"):
            if name in arguments:
                raise InvalidRequest(f"{name} is about an input; give image, video or last_image too")
        return dict(arguments)
    if "conditions" in arguments:
        raise InvalidRequest(f"conditions says what {', '.join(given)} would; give one of them")
    if "image" in given and "video" in given:
        raise InvalidRequest("image and video would both be what the new video begins with; give one of them")
    from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition

    frames = arguments.get("num_frames", _default(kind, "num_frames"))
    first = _frame_index(arguments, frames)
    strength = arguments.get("strength", _default(kind, "strength"))
    conditions = []
    if "image" in given:
        conditions.append(LTXVideoCondition(image=given["image"], frame_index=first, strength=strength))
    if "video" in given:
        shown = [Image.fromarray(frame) for frame in given["video"].frames]
        conditions.append(LTXVideoCondition(video=shown, frame_index=first, strength=strength))
    if "last_image" in given:
        conditions.append(LTXVideoCondition(image=given["last_image"], frame_index=frames - 1, strength=strength))
    dropped = {*_INPUTS, "strength", "frame_index"}
    return {name: value for name, value in arguments.items() if name not in dropped} | {"conditions": conditions}


def _frame_index(arguments: Mapping[str, Any], frames: int) -> int:
    """Where `image` or `video` begins. Raises InvalidRequest."""
    found = arguments.get("frame_index", 0)
    if type(found) is not int or not 0 <= found < frames:
        raise InvalidRequest(f"frame_index must be a whole number from 0 to {frames - 1}, not {found!r:.80}")
    return found


def _default(kind: Any, name: str) -> Any:
    return call_parameters(kind)[name].default
