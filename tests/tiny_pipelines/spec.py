"""What is known of one tiny pipeline, and the pictures that pipelines take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

PROMPTS = ("a red cat on a mat", "two blue birds fly over the sea", "Kamado, 1900: smoke & embers!")
"""Prompts of different lengths that every tokenizer here can read."""
NEGATIVE = "blurry, grey"
SIZE: dict[str, Any] = {"height": 64, "width": 64}
FOUR = SIZE | {"num_inference_steps": 4}
"""What most calls need: the size of the picture, or also a few steps."""
SHORT: dict[str, Any] = {"num_inference_steps": 3, "height": 32, "width": 32, "num_frames": 5}
"""What most calls for a video need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSpec:
    """How one tiny pipeline is made and called.

    `make` returns diffusers' pipeline with random weights; it runs under a fixed seed. `arguments` are what a quick
    call needs beside `takes`: steps, guidance, size. `takes` names the inputs that the pipeline wants or can use:
    "prompt", "negative", "image", "mask", "control", "class", "size". `siblings` are pipelines that load from the same
    folder, as `kind -> class name`.
    """

    name: str
    class_name: str
    make: Callable[[], Any] = field(repr=False)
    arguments: dict[str, Any] = field(default_factory=dict)
    takes: frozenset[str] = frozenset({"prompt", "negative", "size"})
    siblings: dict[str, str] = field(default_factory=dict)


def picture(seed: int = 0, size: tuple[int, int] = (64, 64)) -> Any:
    """A PIL picture with smooth colours and an edge. `size` is width, height."""
    import numpy
    from PIL import Image

    width, height = size
    x = numpy.linspace(0.0, 1.0, width, dtype=numpy.float32)[None, :]
    y = numpy.linspace(0.0, 1.0, height, dtype=numpy.float32)[:, None]
    waves = [0.5 + 0.5 * numpy.sin((seed + 2) * (k + 1) * x + (k + 2) * y + seed) for k in range(3)]
    pixels = numpy.stack(waves, axis=-1)
    pixels[height // 4 : height // 2, width // 4 : width // 2] = (seed % 3) / 2
    return Image.fromarray((pixels * 255).round().astype(numpy.uint8), mode="RGB")


def mask(size: tuple[int, int] = (64, 64)) -> Any:
    """A PIL mask, white where the left half is to be painted anew."""
    from PIL import Image

    width, height = size
    result = Image.new("L", size, 0)
    result.paste(255, (0, 0, width // 2, height))
    return result
