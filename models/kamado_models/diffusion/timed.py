"""What takes time: frames, rates, seconds, input videos and sounds, as a pipeline is told of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from kamado.checkpoint.types import Checkpoint
from kamado.errors import InvalidRequest
from kamado.picture_requests import MAX_FRAMES, PictureOptions

from .outcomes import Rates
from .refusals import not_taken
from .related import argument_of, call_parameters
from .table import makes, words
from .usual import usual_video

_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "frames": ("video",),
    "fps": ("video",),
    "seconds": ("video", "audio"),
    "last_image": ("video",),
}
"""What can be asked of models that make which kind."""
_RATES = ("sampling_rate", "output_sampling_rate", "sample_rate", "audio_sampling_rate")
_SOUNDING = ("vocoder", "vae", "audio_vae", "unet")
"""Components that know the rate of what they make; where there are several, the first of them makes the samples."""

_AS_LONG = "src_audio"
"""What ACE-Step calls a sound to change; it would write 60 seconds into the prompt whatever the sound's length."""

_DROPPING = "HunyuanVideoImageToVideoPipeline"
_DROPPED = 4
"""Frames that it leaves out."""


def check_timed(options: PictureOptions, reference: str, made: str) -> None:
    """Raises InvalidRequest for options of time that a model which makes `made` (see table.makes) has no use for."""
    for name, kinds in _OPTIONS.items():
        if getattr(options, name) is not None and made not in kinds:
            raise InvalidRequest(f"{name} cannot be used: {reference} makes {words(made)}")
    if options.frames is not None and options.seconds is not None:
        raise InvalidRequest("frames and seconds both say how long the video is; give one of them")


def check_ends(options: PictureOptions, components: Mapping[str, Any], reference: str) -> None:
    """Raises InvalidRequest for a model that must be given the first and the last picture (Wan's FLF2V, which has
    places for the tokens of both), and is given one."""
    config = getattr(components.get("transformer"), "config", None)
    if getattr(config, "pos_embed_seq_len", None) and options.image is not None and options.last_image is None:
        raise InvalidRequest(f"{reference} goes from one picture to another; give last_image too")


def rates_of(kind: Any, options: PictureOptions, components: Mapping[str, Any], checkpoint: Checkpoint) -> Rates:
    """The rates of what a pipeline of class `kind` makes of the request.

    A video's: what was asked for, that of the input video, what the pipeline is told unless asked, or what is usual for
    the model, in this order."""
    if makes(kind.__name__) not in ("video", "audio"):
        return Rates()
    rate = sample_rate(components)
    if makes(kind.__name__) == "audio":
        return Rates(sample_rate=rate)
    fps = options.fps or (None if options.video is None else options.video.fps)
    name = argument_of("fps", parameters := call_parameters(kind))
    if fps is None and name is not None and isinstance(parameters[name].default, (int, float)):
        fps = float(parameters[name].default)
    return Rates(fps=float(fps or usual_video(checkpoint).fps), sample_rate=rate)


def sample_rate(components: Mapping[str, Any]) -> int:
    """Samples a second of the sounds that a model makes; 0 where nothing says it."""
    for name in _SOUNDING:
        config = getattr(components.get(name), "config", None)
        for key in _RATES:
            found = getattr(config, key, None)
            if isinstance(found, int) and not isinstance(found, bool) and found > 0:
                return found
    return 0


def with_frames(options: PictureOptions, kind: Any, fps: float) -> PictureOptions:
    """The options with the frames of a video in place of its seconds. Raises InvalidRequest."""
    if options.seconds is None or makes(kind.__name__) != "video":
        return options
    frames = max(round(options.seconds * fps), 1)
    if frames > MAX_FRAMES:
        raise InvalidRequest(f"seconds {options.seconds:g}: {frames} frames at {fps:g} a second; at most {MAX_FRAMES}")
    return replace(options, frames=frames, seconds=None)


def plain_sound(options: PictureOptions, rate: int, components: Mapping[str, Any]) -> PictureOptions:
    """The options with the input sound at the model's rate, with as many channels as it reads."""
    if options.audio is None or not rate:
        return options
    from kamado.media.sounds import open_sound

    channels = getattr(getattr(components.get("vae"), "config", None), "audio_channels", None)
    sound = open_sound(options.audio, rate=rate, channels=channels if isinstance(channels, int) else None)
    return replace(options, audio=sound)


def timed_arguments(kind: Any, options: PictureOptions, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a pipeline's call for the options that are about time. Raises InvalidRequest."""
    arguments: dict[str, Any] = {}
    for option in ("video", "audio", "frames", "seconds"):
        value = getattr(options, option)
        if value is None:
            continue
        name = argument_of(option, parameters)
        if name is None:
            raise not_taken(kind, option, list(parameters))
        arguments[name] = value
        if option == "video":
            arguments[name] = [Image.fromarray(frame) for frame in value.frames]
        elif option == "audio":
            arguments |= _sound_arguments(kind, options, name, parameters)
    fps = options.fps or (None if options.video is None else float(options.video.fps))
    if fps is not None and (name := argument_of("fps", parameters)) is not None:
        arguments[name] = int(fps) if fps.is_integer() else fps
    return arguments


def with_spare_frames(arguments: dict[str, Any], kind: Any, components: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call that asks for more frames, where the pipeline leaves the first ones out: HunyuanVideo-I2V
    whose picture lies beside the latents."""
    config = getattr(components.get("transformer"), "config", None)
    if kind.__name__ != _DROPPING or getattr(config, "image_condition_type", None) != "latent_concat":
        return arguments
    return arguments | ({"num_frames": arguments["num_frames"] + _DROPPED} if "num_frames" in arguments else {})


def _sound_arguments(kind: Any, options: PictureOptions, name: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A sound as pipelines take it: (batch, channels, samples) where they are told its rate beside it. Raises
    InvalidRequest."""
    sound: Any = options.audio
    samples = torch.from_numpy(sound.samples)
    if "initial_audio_sampling_rate" in parameters:
        return {name: samples[None], "initial_audio_sampling_rate": sound.sample_rate}
    if name != _AS_LONG:
        return {name: samples}
    if options.seconds is not None:
        raise InvalidRequest(
            f"seconds {options.seconds:g}: what {kind.__name__} makes of a sound is as long as that; "
            "leave one of them out"
        )
    return {name: samples, "audio_duration": sound.duration_s}
