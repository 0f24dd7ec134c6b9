"""Generation options of pipelines that make pictures, videos and sounds: what was asked, checked as far as no model is
needed for it."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import InvalidRequest

MAX_PICTURES = 1024
MAX_STEPS = 10_000
MAX_SIDE = 65_536
MAX_PROMPT_CHARACTERS = 100_000
"""Of any text: recipes with the longest fit into their files, and reading it keeps others waiting for a moment only."""
MAX_FRAMES = 100_000
MAX_FPS = 1000.0
MAX_SECONDS = 86_400.0
MAX_ADAPTERS = 32
MAX_ADAPTER_WEIGHT = 1000.0
ALIASES: Mapping[str, str] = {
    "negative_prompt": "negative",
    "num_inference_steps": "steps",
    "mask_image": "mask",
    "control_image": "control",
    "controlnet_conditioning_scale": "control_scale",
    "last_frame": "last_image",
    "num_frames": "frames",
    "video_length": "frames",
    "frame_rate": "fps",
    "audio_length_in_s": "seconds",
    "audio_end_in_s": "seconds",
    "audio_duration": "seconds",
    "audio_duration_s": "seconds",
    "duration": "seconds",
    "src_audio": "audio",
    "initial_audio_waveforms": "audio",
}
"""What diffusers' pipelines call some options."""


@dataclass(frozen=True, slots=True)
class AdapterUse:
    """An adapter that a request wants: a LoRA, an embedding, an IP-Adapter."""

    reference: str
    """A `.safetensors` file, a folder, `org/name[@revision]`, `pypi:package`."""
    weight: float = 1.0
    """How much it counts. May be negative."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureOptions:
    """One request for pictures, videos or sounds. None: the model's own default."""

    prompt: str | None = None
    negative: str | None = None
    """What the picture should not show."""
    width: int | None = None
    """Pixels."""
    height: int | None = None
    """Pixels."""
    steps: int | None = None
    """Denoising steps, at least 1."""
    guidance: float | None = None
    """Classifier-free guidance (Ho and Salimans 2022), or what a guidance-distilled model takes for it. At least 0."""
    strength: float | None = None
    """How much of the input picture is replaced. (0, 1]"""
    outpaint: Mapping[str, int] | None = None
    """How many pixels `image` grows: `{"left", "right", "top", "bottom"}`, those that are given. `"feather"`: over how
    many pixels within its old edges the new ones run out; by default a sixteenth of its shorter side."""
    hires: float | None = None
    """A second pass: the finished picture is made so many times larger and refined, with the same prompt and seed."""
    hires_strength: float | None = None
    """How much of it the second pass replaces. (0, 1], by default 0.5"""
    hires_steps: int | None = None
    """Steps of the second pass, of which the share `hires_strength` is run; by default as many as `steps`."""
    step_cache: float | None = None
    """Leave out calls of the denoiser whose input has changed by less than this share since the last one. (0, 10]"""
    tiling: bool | None = None
    """Encode and decode in tiles: large pictures need less memory, and differ a little."""
    weighting: str | None = None
    """How weights are written in the prompts, "a1111" or none; also reads prompts of any length. See
    `kamado_models.diffusion.prompt_syntax`."""
    scheduler: str | None = None
    """Name of the sampler; see `kamado_models.diffusion.schedulers`."""
    image: Any = None
    """Input picture, or a list of several: PIL image, path, bytes, data URL or array."""
    mask: Any = None
    """White where the input picture is to be painted anew."""
    control: Any = None
    """Input of a ControlNet: edges, depth, a pose. Of several: a list, in the order of the nets."""
    control_map: str | None = None
    """What is made of `control` before a ControlNet sees it: "edges" (see `kamado.media.edges.canny`). None: nothing,
    it is a map already."""
    control_scale: float | list[float] | None = None
    """How much a ControlNet counts; a list has a number for each."""
    last_image: Any = None
    """The picture that a video ends with; `image` is the one that it begins with."""
    video: Any = None
    """Input video: a path, bytes, a data URL, a Video or (frames, fps)."""
    audio: Any = None
    """Input sound: a path, bytes, a data URL, an Audio or (samples, sample rate)."""
    frames: int | None = None
    """Frames of a video."""
    fps: float | None = None
    """Frames a second: what a pipeline is told that takes it, and the rate of the video."""
    seconds: float | None = None
    """How long a sound or a video is."""
    adapters: tuple[AdapterUse, ...] = ()
    seed: int = 0
    """Answer i of the request has seed + i."""
    n: int = 1
    """Number of answers."""
    preview_every: int = 0
    """A preview each so many steps; 0: none."""
    deadline_s: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Options that the model's pipeline takes under their own names, as they are."""


def resolve_picture_options(options: Mapping[str, Any], *, defaults: Mapping[str, Any] | None = None) -> PictureOptions:
    """Check what was asked, over `defaults`. Values that are None count as missing; unknown names go to `extra`, and
    the model judges them. Raises InvalidRequest."""
    given = {**(defaults or {}), **_plain_names({name: value for name, value in options.items() if value is not None})}
    known = {name: given.pop(name) for name in list(given) if name in _CHECKS}
    checked = {name: _CHECKS[name](name, value) for name, value in known.items()}
    checked.setdefault("seed", secrets.randbits(32))
    return PictureOptions(**checked, extra=given)


def _plain_names(given: Mapping[str, Any]) -> dict[str, Any]:
    """With the names of this module in place of those of diffusers' pipelines."""
    for alias, name in ALIASES.items():
        if alias in given and name in given:
            raise InvalidRequest(f"{name} and {alias} are the same option; give one of them")
    return {ALIASES.get(name, name): value for name, value in given.items()}


def parse_adapter(value: Any) -> AdapterUse:
    """`"REF"`, `"REF:0.8"`, a path, or `{"reference": ..., "weight": ...}`. A text that is the path of something here
    has no weight in it. Raises InvalidRequest."""
    if isinstance(value, AdapterUse):
        return value
    if isinstance(value, Mapping):
        unknown = value.keys() - {"reference", "weight", "sha256"}  # as recipes have it
        reference = value.get("reference")
        if unknown or not isinstance(reference, (str, Path)):
            raise InvalidRequest(
                f"adapters: {dict(value)!r:.120} must have a reference, may have a weight, and no more"
            )
        weight = value.get("weight", 1.0)
        return AdapterUse(str(reference), _number(-MAX_ADAPTER_WEIGHT, MAX_ADAPTER_WEIGHT)("adapters: weight", weight))
    if isinstance(value, Path):
        return AdapterUse(str(value))
    if not isinstance(value, str) or not value:
        raise InvalidRequest(
            f"adapters: {value!r:.120} is not a reference, like style.safetensors or style.safetensors:0.8"
        )
    reference, separator, written = value.rpartition(":")
    if not separator or reference == "pypi" or _is_here(value):
        return AdapterUse(value)
    try:
        number = float(written)
    except ValueError:
        # What is before it can only be a file or a repository, and those have no colon.
        if "/" in reference or reference.lower().endswith(".safetensors"):
            raise InvalidRequest(f"adapter {value!r:.120}: the weight {written!r:.40} is not a number") from None
        return AdapterUse(value)
    return AdapterUse(reference, _number(-MAX_ADAPTER_WEIGHT, MAX_ADAPTER_WEIGHT)("adapters: weight", number))


def _is_here(text: str) -> bool:
    try:
        return Path(text).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False


def _adapters(name: str, value: Any) -> tuple[AdapterUse, ...]:
    listed = value if isinstance(value, (list, tuple)) else [value]
    if len(listed) > MAX_ADAPTERS:
        raise InvalidRequest(f"{name}: at most {MAX_ADAPTERS} can be used at once, not {len(listed)}")
    return tuple(map(parse_adapter, listed))


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} must be text, not {type(value).__name__}")
    if len(value) > MAX_PROMPT_CHARACTERS:
        raise InvalidRequest(f"{name} has {len(value)} characters; at most {MAX_PROMPT_CHARACTERS} can be given")
    return value


def _whole(low: int, high: int) -> Any:
    def check(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InvalidRequest(f"{name} must be a whole number from {low} to {high}, not {value!r}")
        return value

    return check


def _number(low: float, high: float, *, open_low: bool = False) -> Any:
    def check(name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise InvalidRequest(f"{name} must be a finite number, not {value!r}")
        if not low <= value <= high or (open_low and value == low):
            least = "above" if open_low else "at least"
            raise InvalidRequest(f"{name} must be {least} {low:g} and at most {high:g}, not {value!r}")
        return float(value)

    return check


def _scale(name: str, value: Any) -> float | list[float]:
    check = _number(-100.0, 100.0)
    if isinstance(value, (list, tuple)) and value:
        return [check(name, item) for item in value]
    return check(name, value)  # type: ignore[no-any-return]


def _outpaint(name: str, value: Any) -> dict[str, int]:
    sides = ("left", "right", "top", "bottom")
    if not isinstance(value, Mapping) or value.keys() - {*sides, "feather"}:
        raise InvalidRequest(f"{name} must have some of {', '.join(sides)} and feather, in pixels, not {value!r:.120}")
    pixels = {key: _whole(0, MAX_SIDE)(f"{name}: {key}", pixels) for key, pixels in value.items()}
    if not any(pixels.get(side) for side in sides):
        raise InvalidRequest(f"{name} must be above 0 on one side at least: {', '.join(sides)}")
    return pixels


def _yes_or_no(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name} must be true or false, not {value!r}")
    return value


def _one_of(*choices: str) -> Any:
    def check(name: str, value: Any) -> str:
        if value not in choices:
            raise InvalidRequest(f"{name} must be {' or '.join(map(repr, choices))}, not {value!r}")
        return str(value)

    return check


def _any(name: str, value: Any) -> Any:
    return value


_CHECKS: dict[str, Any] = {
    "prompt": _text,
    "negative": _text,
    "width": _whole(1, MAX_SIDE),
    "height": _whole(1, MAX_SIDE),
    "steps": _whole(1, MAX_STEPS),
    "guidance": _number(0.0, 1000.0),
    "strength": _number(0.0, 1.0, open_low=True),
    "outpaint": _outpaint,
    "hires": _number(1.0, 8.0, open_low=True),
    "hires_strength": _number(0.0, 1.0, open_low=True),
    "hires_steps": _whole(1, MAX_STEPS),
    "step_cache": _number(0.0, 10.0, open_low=True),
    "tiling": _yes_or_no,
    "weighting": _one_of("a1111"),
    "scheduler": _text,
    "image": _any,
    "mask": _any,
    "control": _any,
    "last_image": _any,
    "video": _any,
    "audio": _any,
    "frames": _whole(1, MAX_FRAMES),
    "fps": _number(0.0, MAX_FPS, open_low=True),
    "seconds": _number(0.0, MAX_SECONDS, open_low=True),
    "adapters": _adapters,
    "control_map": _one_of("edges"),
    "control_scale": _scale,
    "seed": _whole(0, 2**63 - 1 - MAX_PICTURES),
    "n": _whole(1, MAX_PICTURES),
    "preview_every": _whole(0, MAX_STEPS),
    "deadline_s": _number(0.0, 1e9, open_low=True),
}
PICTURE_OPTION_NAMES = frozenset(_CHECKS)
