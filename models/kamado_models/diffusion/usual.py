"""What is usual for the videos and sounds of each family of models. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kamado.checkpoint.types import Checkpoint

from .extents import Extent
from .peaks import picture_size, vae_scale
from .table import makes


@dataclass(frozen=True, slots=True)
class Usual:
    """What the authors of a family of models make with it."""

    fps: float
    frames: int
    width: int
    height: int


_VIDEOS: Mapping[str, Usual] = {
    # The sizes are the defaults of the pipelines' calls in diffusers, the rates those of its documentation's examples,
    # which are those of the model cards.
    "Allegro": Usual(15, 88, 1280, 720),
    "AnimateDiff": Usual(8, 16, 512, 512),
    "AnyFlow": Usual(16, 81, 832, 480),
    "ChronoEdit": Usual(16, 81, 832, 480),
    "CogVideoX": Usual(8, 49, 720, 480),
    "Cosmos": Usual(30, 121, 1280, 704),
    "Cosmos2": Usual(16, 93, 1280, 704),
    "Cosmos3": Usual(24, 93, 1280, 704),
    "EasyAnimate": Usual(8, 49, 512, 512),
    "Helios": Usual(24, 132, 640, 384),
    "HunyuanSkyreels": Usual(24, 97, 960, 544),
    "HunyuanVideo": Usual(15, 129, 1280, 720),
    "HunyuanVideo15": Usual(24, 121, 832, 480),
    "HunyuanVideoFramepack": Usual(30, 129, 832, 480),
    "I2VGenXL": Usual(16, 16, 1280, 704),
    "Kandinsky": Usual(24, 121, 768, 512),
    "LTX": Usual(25, 161, 704, 512),
    "LTX2": Usual(24, 121, 768, 512),
    "Latte": Usual(8, 16, 512, 512),
    "LucyEdit": Usual(24, 81, 832, 480),
    "Mochi": Usual(30, 19, 848, 480),
    "MotifVideo": Usual(24, 121, 1280, 736),
    "PIA": Usual(8, 16, 512, 512),
    "Sana": Usual(16, 81, 832, 480),
    "SkyReelsV2": Usual(24, 97, 960, 544),
    "StableVideoDiffusion": Usual(7, 25, 1024, 576),
    "TextToVideoSD": Usual(8, 16, 256, 256),
    "TextToVideoZero": Usual(4, 8, 512, 512),
    "VideoToVideoSD": Usual(8, 16, 256, 256),
    "Wan": Usual(16, 81, 832, 480),
}
"""By the beginning of the pipeline's name; the longest that fits counts."""
_OTHER_VIDEOS = Usual(16, 49, 832, 480)
_SECONDS: Mapping[str, float] = {
    "AceStep": 60.0,
    "AudioLDM": 5.12,
    "AudioLDM2": 10.24,
    "DanceDiffusion": 4.1,
    "MusicLDM": 10.24,
    "StableAudio": 47.55,
    "StableAudio3": 10.0,
}
_OTHER_SECONDS = 10.0
_COGVIDEOX_15_FPS = 16
"""Version 1.5, whose transformer joins frames."""


def usual_video(checkpoint: Checkpoint) -> Usual:
    """What a video of the model is unless a request says otherwise."""
    name = str(checkpoint.config.get("_class_name"))
    found = _VIDEOS.get(_longest(name, _VIDEOS), _OTHER_VIDEOS)
    config: Mapping[str, Any] = checkpoint.metadata["components"].get("transformer", {})
    if name.startswith("CogVideoX") and config.get("patch_size_t"):
        found = Usual(_COGVIDEOX_15_FPS, found.frames, found.width, found.height)
    sides = [config.get(f"sample_{side}") for side in ("width", "height")]
    if all(type(side) is int and 0 < side <= 1024 for side in sides):
        scale = vae_scale(checkpoint)
        frames = config.get("sample_frames")
        frames = frames if type(frames) is int and 0 < frames <= 10_000 else found.frames
        found = Usual(found.fps, frames, sides[0] * scale, sides[1] * scale)  # type: ignore[operator]
    elif "unet" in checkpoint.metadata["components"] and not name.startswith(("StableVideo", "I2VGenXL")):
        width, height = picture_size(checkpoint)
        found = Usual(found.fps, found.frames, width, height)
    return found


def usual_extent(checkpoint: Checkpoint) -> Extent:
    """How large what the model makes is unless a request says otherwise."""
    name = str(checkpoint.config.get("_class_name"))
    kind = makes(name)
    if kind == "video":
        usual = usual_video(checkpoint)
        return Extent(usual.width, usual.height, usual.frames)
    if kind == "audio":
        return Extent(seconds=_SECONDS.get(_longest(name, _SECONDS), _OTHER_SECONDS))
    return Extent() if kind == "mesh" else Extent(*picture_size(checkpoint))


def _longest(name: str, beginnings: Mapping[str, Any]) -> str:
    return max((each for each in beginnings if name.startswith(each)), key=len, default="")
