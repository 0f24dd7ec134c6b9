"""What pipeline classes take, and which take an input with the models of which others, where diffusers' own tables do
not say it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

_TAKING: Mapping[str, Mapping[str, str]] = {
    # The documentation of each of these pipelines loads the checkpoint of the other.
    "image": {
        "LTX2Pipeline": "LTX2ImageToVideoPipeline",
        "LTXPipeline": "LTXImageToVideoPipeline",
        "SanaVideoPipeline": "SanaImageToVideoPipeline",
        "SkyReelsV2DiffusionForcingPipeline": "SkyReelsV2DiffusionForcingImageToVideoPipeline",
    },
    "video": {
        "AnimateDiffPipeline": "AnimateDiffVideoToVideoPipeline",
        "CogVideoXPipeline": "CogVideoXVideoToVideoPipeline",
        "SkyReelsV2DiffusionForcingPipeline": "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
        "TextToVideoSDPipeline": "VideoToVideoSDPipeline",
        "WanPipeline": "WanVideoToVideoPipeline",
    },
    "audio": {
        "StableAudio3Pipeline": "StableAudio3AudioToAudioPipeline",
    },
}
"""By the option: the class that takes it, by that which does not."""
_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "last_image": ("last_image",),
    "video": ("video",),
    "audio": ("audio", "src_audio", "initial_audio_waveforms"),
    "frames": ("num_frames", "video_length", "frames"),
    "fps": ("fps", "frame_rate", "target_fps"),
    "seconds": ("audio_length_in_s", "audio_end_in_s", "audio_duration_s", "audio_duration", "duration"),
}
"""What pipelines call an option."""


@functools.lru_cache(maxsize=512)
def call_parameters(kind: Any) -> Mapping[str, inspect.Parameter]:
    """What the pipeline's `__call__` takes."""
    return inspect.signature(kind.__call__).parameters


def argument_of(option: str, parameters: Mapping[str, Any]) -> str | None:
    """The argument that an option is for a pipeline whose call takes `parameters`; None if it takes none such."""
    return next((name for name in _ARGUMENTS[option] if name in parameters), None)


def class_taking(option: str, kind: Any) -> Any:
    """The class for the same models as `kind` that takes an input of that name; None if there is none."""
    import diffusers

    name = _TAKING.get(option, {}).get(kind.__name__)
    return None if name is None else getattr(diffusers, name, None)


def inputs_by_relation(pipeline: str) -> list[str]:
    """The inputs that models of a pipeline class take by way of another class. Imports no torch."""
    return [option for option, classes in _TAKING.items() if pipeline in classes]
