"""Tiny random diffusers pipelines on disk, and what diffusers itself makes of them.

They are ordinary folders: model_index.json, safetensors, tokenizers. Weights are drawn such that pictures depend on
prompt, seed and steps, and few pixels lie at the ends of their range.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch

from . import dits, hunyuan, kandinsky, language_dits, sounds, t5_dits, unets, videos
from .adapters import EXTRAS, TOKEN
from .layout import tidy
from .parts import WIDTH
from .spec import NEGATIVE, PROMPTS, PipelineSpec, mask, picture

__all__ = [
    "EXTRAS",
    "MOVING",
    "NEGATIVE",
    "PIPELINES",
    "PROMPTS",
    "TOKEN",
    "Folders",
    "PipelineSpec",
    "arguments",
    "build",
    "build_extra",
    "call",
    "embedding",
    "load",
    "mask",
    "oracle",
    "parameters",
    "picture",
]

MOVING: dict[str, PipelineSpec] = {spec.name: spec for spec in (*videos.SPECS, *hunyuan.SPECS, *sounds.SPECS)}
"""Pipelines that make videos and sounds."""
PIPELINES: dict[str, PipelineSpec] = {
    spec.name: spec for spec in (*unets.SPECS, *dits.SPECS, *t5_dits.SPECS, *language_dits.SPECS, *kandinsky.SPECS)
}


def build(name: str, folder: Path) -> Path:
    """Write pipeline `name` to `folder`, the same on every call. Returns `folder`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sum(name.encode()))
        pipeline = (PIPELINES.get(name) or MOVING[name]).make()
    pipeline.save_pretrained(folder, safe_serialization=True)
    tidy(folder)
    return folder


def build_extra(name: str, folder: Path) -> Path:
    """Write what `EXTRAS` names `name` to `folder`, the same on every call. Returns its file or folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sum(name.encode()))
        return EXTRAS[name](folder)


class Folders(dict[str, Path]):
    """Pipelines and extras by name, below `root`, written when they are first asked for. To change one, copy it."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root = root

    def __missing__(self, name: str) -> Path:
        write = build if name in PIPELINES or name in MOVING else build_extra
        self[name] = write(name, self._root / name)
        return self[name]


def embedding(seed: int) -> torch.Tensor:
    """A picture embedding as Kandinsky's prior makes them: (1, 32)."""
    return torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(seed))


def arguments(name: str, sibling: str | None = None, *, prompt: int = 0) -> dict[str, Any]:
    """All that pipeline `name`, or its sibling of that kind, needs to be called. `prompt`: the number of the prompt,
    picture or class."""
    spec = PIPELINES.get(name) or MOVING[name]
    takes, result = set(spec.takes), dict(spec.arguments)
    if sibling is not None:
        takes |= {sibling} & {"image", "video"}
        takes |= {"image"} if "img2img" in sibling else {"image", "mask"} if "inpaint" in sibling else set()
        takes |= {"control"} if "control" in sibling else set()
        known = parameters(spec.siblings[sibling])
        result |= {"strength": 0.5} if takes & {"image", "video"} else {}
        result = {key: value for key, value in result.items() if key in known}
    if "prompt" in takes:
        result["prompt"] = PROMPTS[prompt]
    if "embedding" in takes:
        result |= {"image_embeds": embedding(prompt), "negative_image_embeds": torch.zeros(1, WIDTH)}
    if "class" in takes:
        result["class_labels"] = [prompt]
    if "image" in takes:
        result["image"] = picture(prompt)
    if "mask" in takes:
        result["mask_image"] = mask()
    if "last image" in takes:
        result["last_image"] = picture(prompt + 3)
    if "video" in takes:
        result["video"] = [picture(prompt + number, (32, 32)) for number in range(spec.arguments["num_frames"])]
    if "control" in takes:
        result["control_image" if "image" in takes else "image"] = picture(7)
    return result


def parameters(pipeline_class: str | type) -> frozenset[str]:
    """Names of what a pipeline's call takes. Its class by name or itself."""
    import diffusers

    found = getattr(diffusers, pipeline_class) if isinstance(pipeline_class, str) else pipeline_class
    return frozenset(inspect.signature(found.__call__).parameters)


def load(folder: Path, *, pipeline_class: str | type | None = None, **components: Any) -> Any:
    """diffusers' own pipeline in float32 without a progress bar: the class that the folder names, or `pipeline_class`.

    `components` are objects that the folder lacks, such as a ControlNet.
    """
    import diffusers

    chosen = pipeline_class or diffusers.DiffusionPipeline
    if isinstance(chosen, str):
        chosen = getattr(diffusers, chosen)
    pipeline = chosen.from_pretrained(folder, local_files_only=True, dtype=torch.float32, **components)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def oracle(
    folder: Path,
    *,
    pipeline_class: str | type | None = None,
    seed: int | Sequence[int] = 0,
    components: Mapping[str, Any] | None = None,
    prepare: Callable[[Any], object] | None = None,
    **call_arguments: Any,
) -> numpy.ndarray:
    """The pictures that diffusers makes: float32 (N, H, W, 3) in [0, 1]; of a video pipeline (N, frames, H, W, 3).

    A list of seeds is a generator for each picture, for one prompt or as many prompts. `prepare` is called with the
    loaded pipeline, to load an adapter for instance.
    """
    pipeline = load(folder, pipeline_class=pipeline_class, **components or {})
    if prepare is not None:
        prepare(pipeline)
    return call(pipeline, seed=seed, **call_arguments)


def call(pipeline: Any, *, seed: int | Sequence[int] = 0, **call_arguments: Any) -> numpy.ndarray:
    """`oracle` with a pipeline that is loaded already."""
    seeds = [seed] if isinstance(seed, int) else list(seed)
    generators = [torch.Generator("cpu").manual_seed(number) for number in seeds]
    known = parameters(type(pipeline))
    if "class_labels" in call_arguments:
        labels = call_arguments["class_labels"]
        call_arguments["class_labels"] = labels * len(seeds) if len(labels) == 1 else labels
    elif "batch_size" in known:
        call_arguments["batch_size"] = len(seeds)
    elif not isinstance(call_arguments.get("prompt"), list) and len(seeds) > 1:
        several = "num_images_per_prompt" if "num_images_per_prompt" in known else "num_videos_per_prompt"
        call_arguments[several] = len(seeds)
    generator = generators[0] if isinstance(seed, int) else generators
    output = pipeline(generator=generator, output_type="np", **call_arguments)
    names = ("images", "frames", "audios")
    pictures = next(getattr(output, name) for name in names if hasattr(output, name))
    return numpy.asarray(pictures, dtype=numpy.float32)
