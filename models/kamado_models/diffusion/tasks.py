"""What pipelines can do, by the names that hubs have for tasks. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping

from .related import inputs_by_relation
from .table import makes

_ENDINGS: Mapping[str, tuple[str, ...]] = {
    # How diffusers names classes by what they do; the longest beginning or ending that fits counts.
    "Inpaint": ("inpainting",),
    "Inpainting": ("inpainting",),
    "Img2Img": ("image-to-image",),
    "ImageToVideo": ("image-to-video",),
    "Image2Video": ("image-to-video",),
    "I2V": ("image-to-video",),
    "VideoToVideo": ("video-to-video",),
    "VideoToWorld": ("image-to-video", "video-to-video"),
    "Condition": ("text-to-video", "image-to-video", "video-to-video"),
    "Upscale": ("image-to-image",),
    "SuperResolution": ("image-to-image",),
    "Edit": ("image-to-image",),
    "InstructPix2Pix": ("image-to-image",),
    "ImageVariation": ("image-to-image",),
    "StableVideoDiffusion": ("image-to-video",),
    "AudioToAudio": ("audio-to-audio",),
    "MarigoldDepth": ("depth-estimation",),
    "ShapEImg2Img": ("image-to-3d",),
    "ShapE": ("text-to-3d",),
}
_UNCONDITIONAL = ("DDIM", "DDPM", "PNDM", "LDMPipeline", "KarrasVe", "ScoreSdeVe", "ConsistencyModel", "DiT")
_BY_KIND = {
    "image": "text-to-image",
    "video": "text-to-video",
    "audio": "text-to-audio",
    "mesh": "text-to-3d",
    "map": "image-to-image",
}
_WITH_INPUT = {"image": "image-to-video", "video": "video-to-video", "audio": "audio-to-audio"}
_PAINTERS = ("StableDiffusion", "StableDiffusionXL", "StableDiffusion3", "Flux", "QwenImage", "Kandinsky", "Chroma")
"""Families of pictures whose text pipeline has siblings of the same models that change pictures."""


def tasks_of(pipeline: str) -> tuple[str, ...]:
    """Of a pipeline class; those of the classes that it shares its models with included."""
    stem = pipeline.removesuffix("Pipeline")
    for ending in sorted(_ENDINGS, key=len, reverse=True):
        if stem.endswith(ending) or stem == ending:
            return _ENDINGS[ending]
    made = makes(pipeline)
    if made == "image" and pipeline.startswith(_UNCONDITIONAL):
        return ("unconditional-image-generation",)
    tasks = [_BY_KIND[made]] if made in _BY_KIND else []
    if made == "image" and stem in _PAINTERS:
        tasks += ["image-to-image", "inpainting"]
    tasks += [_WITH_INPUT[name] for name in inputs_by_relation(pipeline)]
    return tuple(tasks)
