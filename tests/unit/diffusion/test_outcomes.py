"""What pipelines return becomes values, or an error."""

from __future__ import annotations

import copy
import inspect
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

from kamado.errors import GenerationFailed
from kamado.outputs import Audio, Picture, Video
from kamado_models.diffusion.outcomes import OUTCOMES, Rates, judged
from kamado_models.diffusion.refusals import not_taken
from kamado_models.diffusion.stepping import WatchedStep
from kamado_models.diffusion.table import RUN
from kamado_models.diffusion.tasks import tasks_of

RATES = Rates(fps=12.0, sample_rate=24000)


def _made(kind: str, **returned: Any) -> Any:
    return judged(OUTCOMES[kind], SimpleNamespace(**returned), RATES, [])


def test_everything_that_the_table_promises_has_an_outcome() -> None:
    assert set(RUN) <= set(OUTCOMES)


def test_a_picture() -> None:
    pixels = numpy.random.default_rng(0).random((1, 4, 6, 3), dtype=numpy.float32)
    made = _made("image", images=pixels)
    assert isinstance(made, Picture) and made.image.size == (6, 4) and numpy.array_equal(made.pixels, pixels[0])


@pytest.mark.parametrize("form", ["array", "tensor", "bytes", "frames"])
def test_a_video_of_any_form(form: str) -> None:
    frames = numpy.random.default_rng(0).random((5, 4, 6, 3), dtype=numpy.float32)
    given: Any = frames[None]
    if form == "tensor":
        given = torch.from_numpy(frames[None])
    elif form == "bytes":
        given = (frames * 255).round().astype(numpy.uint8)[None]
    elif form == "frames":
        given = list(frames)
    made = _made("video", frames=given)
    assert isinstance(made, Video) and (made.fps, made.audio) == (12.0, None)
    assert numpy.array_equal(made.frames, (frames * 255).round().astype(numpy.uint8))
    assert OUTCOMES["video"].extent(made).key == (6, 4, 5, 0)


def test_a_video_with_sound() -> None:
    sound = torch.linspace(-2, 2, 48).reshape(1, 2, 24)
    made = _made("video", frames=numpy.full((1, 3, 4, 4, 3), 0.5, numpy.float32), audio=sound)
    assert made.audio.samples.shape == (2, 24) and made.audio.sample_rate == 24000
    assert float(numpy.abs(made.audio.samples).max()) == 1.0


@pytest.mark.parametrize("shape", [(1, 24), (1, 2, 24), (24,)])
def test_a_sound(shape: tuple[int, ...]) -> None:
    samples = numpy.sin(numpy.arange(numpy.prod(shape), dtype=numpy.float32)).reshape(shape)
    made = _made("audio", audios=samples)
    assert isinstance(made, Audio) and made.samples.shape == (2 if len(shape) == 3 else 1, 24)
    assert OUTCOMES["audio"].extent(made).key == (0, 0, 1, 1)


@pytest.mark.parametrize(
    ("kind", "returned", "words"),
    [
        ("image", {"images": numpy.zeros((1, 4, 4, 3))}, "made no picture .it is all black"),
        ("video", {"frames": numpy.zeros((1, 2, 4, 4, 3))}, "made no video .it is all black"),
        ("video", {"frames": numpy.full((1, 2, 4, 4, 3), numpy.nan)}, "NaN"),
        ("video", {"frames": numpy.zeros((1, 0, 4, 4, 3))}, "no pixels"),
        ("video", {"frames": numpy.ones((4, 4))}, "the form"),
        ("audio", {"audios": numpy.zeros((1, 8))}, "made no sound .it is silent"),
        ("audio", {"audios": numpy.zeros((1, 0))}, "no samples"),
        ("audio", {"audios": numpy.full((1, 8), numpy.inf)}, "infinity"),
        ("video", {"frames": numpy.ones((1, 1, 1, 1, 3)), "nsfw_content_detected": [True]}, "took the video away"),
    ],
)
def test_what_is_no_output(kind: str, returned: dict[str, Any], words: str) -> None:
    with pytest.raises(GenerationFailed, match=words):
        _made(kind, **returned)


def test_steps_of_copies_are_not_watched() -> None:
    """LTX-2 steps its sounds with a copy of the scheduler."""
    scheduler: Any = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(3)
    seen: list[Any] = []

    def watch(step: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(args)
        return step(*args, **kwargs)

    taken = inspect.signature(scheduler.step)
    scheduler.step = WatchedStep(scheduler, watch)
    assert inspect.signature(scheduler.step) == taken
    other = copy.deepcopy(scheduler)
    sample, time = torch.ones(1, 4), scheduler.timesteps[0]
    for _ in range(2):
        other.step(sample, time, sample)
    assert not seen and other.step_index == 2 and scheduler.step_index is None
    scheduler.step(sample, time, sample)
    assert len(seen) == 1 and scheduler.step_index == 1


@pytest.mark.parametrize(
    ("pipeline", "tasks"),
    [
        ("StableDiffusionPipeline", ("text-to-image", "image-to-image", "inpainting")),
        ("StableDiffusionInpaintPipeline", ("inpainting",)),
        ("StableDiffusionImg2ImgPipeline", ("image-to-image",)),
        ("DDPMPipeline", ("unconditional-image-generation",)),
        ("WanPipeline", ("text-to-video", "video-to-video")),
        ("WanImageToVideoPipeline", ("image-to-video",)),
        ("StableVideoDiffusionPipeline", ("image-to-video",)),
        ("AudioLDM2Pipeline", ("text-to-audio",)),
        ("ShapEPipeline", ("text-to-3d",)),
        ("ShapEImg2ImgPipeline", ("image-to-3d",)),
        ("MarigoldDepthPipeline", ("depth-estimation",)),
    ],
)
def test_tasks(pipeline: str, tasks: tuple[str, ...]) -> None:
    assert tasks_of(pipeline) == tasks


def test_a_refusal_names_what_may_be_asked_of_videos() -> None:
    told = str(not_taken(WanPipeline, "sparkle", ["prompt", "num_frames"]))
    assert all(f" {name}" in told for name in ("frames", "fps", "seconds", "video"))
