"""Videos are those that diffusers' own pipelines make: alone, and while other requests share their forwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition
from PIL import Image

import kamado
import tiny_pipelines as tiny
from kamado.events import Media, Preview
from kamado.outputs import Video
from kamado_models.diffusion.task import PictureTask

LARGEST_DIFFERENCE = 1e-4
RATES = {"wan": 16, "wan-i2v": 16, "wan-ends": 16, "ltx": 25, "cogvideox": 8, "cogvideox-i2v": 8}
RATES |= {"ltx2": 24, "ltx-conditions": 25, "hunyuan-video": 15, "hunyuan-i2v": 15, "hunyuan-i2v-beside": 15}
RATES |= {"animatediff": 8, "stable-video": 7}
CASES = [
    (name, sibling) for name in RATES for sibling in (None, *(tiny.PIPELINES.get(name) or tiny.MOVING[name]).siblings)
]
INPUT_FPS = 12.0
LEFT_OUT = {"hunyuan-i2v-beside": 4}
"""Frames that diffusers' pipeline does not return."""
SOUNDING = {"ltx2"}
"""Models that make sound with their videos."""


@pytest.fixture
def returned(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What pipelines returned, in float32, by request."""
    found: dict[str, Any] = {}
    whole = PictureTask._output

    def output(self: PictureTask, *args: Any) -> Any:
        found[self.id] = made = whole(self, *args)
        return made

    monkeypatch.setattr(PictureTask, "_output", output)
    return found


@pytest.fixture
def runtime() -> Any:
    with kamado.Runtime(device="cpu", memory="6GiB") as made:
        yield made


def _requests(name: str, sibling: str | None) -> list[dict[str, Any]]:
    """Three requests with different prompts, steps and seeds."""
    found = []
    for index in range(3):
        request = tiny.arguments(name, sibling, prompt=index)
        request["num_inference_steps"] += index + 2 * (sibling == "video")
        if "guidance_scale" in request:
            request["guidance_scale"] = 2.0  # random weights blow rounding errors up, most so where guidance is strong
        if index == 1 and "negative" in (tiny.PIPELINES.get(name) or tiny.MOVING[name]).takes:
            request["negative_prompt"] = tiny.NEGATIVE
        found.append({**request, "seed": 10 + index})
    return found


def _asked(request: dict[str, Any]) -> dict[str, Any]:
    """A call of diffusers' pipeline as a request."""
    return request | ({"video": (request["video"], INPUT_FPS)} if "video" in request else {})


@pytest.mark.parametrize(("name", "sibling"), CASES)
def test_alone_and_in_a_mixed_batch(
    name: str,
    sibling: str | None,
    folders: dict[str, Path],
    runtime: kamado.Runtime,
    returned: dict[str, Any],
) -> None:
    spec = tiny.PIPELINES.get(name) or tiny.MOVING[name]
    pipeline = tiny.load(folders[name], pipeline_class=spec.siblings[sibling] if sibling else None)
    scheduler, requests, wanted = pipeline.scheduler, _requests(name, sibling), []
    for request in requests:
        pipeline.scheduler = type(scheduler).from_config(scheduler.config)
        more = {"num_frames": request["num_frames"] + LEFT_OUT[name]} if name in LEFT_OUT else {}
        wanted.append(tiny.call(pipeline, **request | more))
    assert numpy.abs(wanted[0] - wanted[1]).max() > 0.01, "prompts and seeds matter"
    model = runtime.load(folders[name])
    assert model.capabilities == ("video",)
    jobs = [model.submit(**_asked(request)) for request in requests]
    results = [job.result() for job in jobs] + [model.generate(**_asked(request)) for request in requests]
    for result, frames in zip(results, [*wanted, *wanted], strict=True):
        (video,) = result.outputs
        assert isinstance(video, Video)
        found = numpy.asarray(returned[result.request_id].frames, dtype=numpy.float32)
        assert found.shape == frames.shape
        assert numpy.abs(found - frames).max() < LARGEST_DIFFERENCE
        assert video.frames.dtype == numpy.uint8
        assert (video.audio is not None) == (name in SOUNDING)
        if video.audio is not None:
            sound = returned[result.request_id].audio[0].float().numpy()
            assert video.audio.sample_rate == 24000
            assert numpy.array_equal(video.audio.samples, sound.clip(-1, 1))
            assert abs(video.audio.duration_s - video.duration_s) < 0.1 and sound.std() > 0.001
        assert numpy.abs(video.frames / 255.0 - frames[0]).max() < 0.5 / 255 + LARGEST_DIFFERENCE
        assert video.fps == (INPUT_FPS if sibling == "video" else RATES[name])
        assert not any("frames" in note for note in result.notes)
    assert results[-1].recipe["pipeline"] == type(pipeline).__name__


@pytest.mark.parametrize("name", ["wan", "ltx", "cogvideox", "animatediff", "stable-video"])
def test_several_videos_and_their_previews(name: str, folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    model = runtime.load(folders[name])
    request = tiny.arguments(name)
    events = list(model.stream(**request, n=2, seed=5, preview_every=1))
    size = request["width"], request["height"]
    assert {event.image.size for event in events if isinstance(event, Preview)} == {size}
    media = {event.index: event for event in events if isinstance(event, Media)}
    assert {event.kind for event in media.values()} == {"video"} and sorted(media) == [0, 1]
    again = model.generate(**request, seed=6)
    assert again.seeds == (6,)
    assert numpy.abs(again.video.astype(int) - media[1].data.frames).max() <= 1


def test_a_request_teaches_plans(folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    first = runtime.plan(folders["cogvideox"])
    assert first.activation_basis == "estimated" and "one video of 9 frames of 32 x 32" in first.notes[0]
    model = runtime.load(folders["cogvideox"])
    model.generate(**tiny.arguments("cogvideox"), seed=1, preview_every=1)
    assert {lane.activation_basis for lane in runtime.plan(folders["cogvideox"]).lanes} == {"measured"}


def test_frames_seconds_and_rates(folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    model = runtime.load(folders["wan"])
    short = {"prompt": "a cat", "steps": 1, "width": 32, "height": 32}
    result = model.generate(**short, frames=6)
    assert len(result.video) == 5 and result.notes == ("the video has 5 frames, not 6: this model makes 4k + 1",)
    result = model.generate(**short, seconds=0.5, fps=10)
    assert (len(result.video), result.fps, result.notes) == (5, 10.0, ())
    assert result.recipe["options"]["seconds"] == 0.5 and result.recipe["options"]["fps"] == 10.0
    told = runtime.load(folders["ltx"]).generate("a cat", steps=2, width=64, height=64, frames=9, frame_rate=30)
    assert told.fps == 30.0
    for wrong, words in (
        ({"frames": 0}, "whole number from 1"),
        ({"frames": 5, "seconds": 1}, "give one of them"),
        ({"seconds": 1e6}, "at most"),
        ({"frames": 4001, "width": 1600, "height": 1600}, "needs about"),
        ({"width": 33}, "multiples of 16"),
        ({"last_image": Image.new("RGB", (32, 32))}, "takes no last_image"),
        ({"audio": (numpy.zeros(8, numpy.float32), 8000)}, "takes no audio"),
        ({"video": ([], 8.0)}, "no frames"),
        ({"max_tokens": 8}, "this model makes videos"),
    ):
        with pytest.raises(kamado.InvalidRequest, match=words):
            model.generate(**{**short, **wrong})


def test_pictures_take_nothing_of_videos(folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    model = runtime.load(folders["dit"])
    for name in ("frames", "fps", "seconds"):
        with pytest.raises(kamado.InvalidRequest, match=f"{name} cannot be used: .* makes pictures"):
            model.generate(class_labels=[1], **{name: 2})


def test_a_video_is_shaped_like_its_picture(folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    model = runtime.load(folders["wan-i2v"])
    picture = tiny.picture(1, (96, 48))
    result = model.generate("a cat", image=picture, steps=1, frames=5, max_sequence_length=48)
    assert result.video.shape[1:3] == (48, 96)
    assert result.notes == ("the video is 96 x 48, shaped like its input",)
    with pytest.raises(kamado.InvalidRequest, match="give WanImageToVideoPipeline image"):
        model.generate("a cat")
    with pytest.raises(kamado.InvalidRequest, match="1 x 1 pixels"):
        model.generate("a cat", image=Image.new("RGB", (1, 1)))


def test_a_model_of_first_and_last_pictures_needs_both(folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    with pytest.raises(kamado.InvalidRequest, match="give last_image too"):
        runtime.load(folders["wan-ends"]).generate("a cat", image=tiny.picture(1))


def test_conditions_of_frames(folders: dict[str, Path], runtime: kamado.Runtime, returned: dict[str, Any]) -> None:
    """LTX's pictures and videos for single frames, beside each other and alone."""
    pipeline, plain = tiny.load(folders["ltx-conditions"]), tiny.arguments("ltx-conditions")
    plain["guidance_scale"] = 2.0
    pictures = [tiny.picture(number) for number in range(9)]
    end = LTXVideoCondition(image=pictures[5], frame_index=16, strength=0.8)
    start = LTXVideoCondition(image=pictures[1], strength=0.8)
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"image": pictures[1]}, {"image": pictures[1]}),
        ({"video": (pictures, INPUT_FPS)}, {"video": [pictures], "frame_rate": 12}),
        ({"last_image": pictures[5], "strength": 0.8}, {"conditions": [end]}),
        ({"image": pictures[1], "last_image": pictures[5], "strength": 0.8}, {"conditions": [start, end]}),
        ({"image": pictures[2], "frame_index": 8}, {"image": pictures[2], "frame_index": 8}),
    ]
    wanted = []
    for number, (_, told) in enumerate(cases):
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
        wanted.append(tiny.call(pipeline, **plain, **told, seed=number))
    model = runtime.load(folders["ltx-conditions"])
    assert model.tasks == ("text-to-video", "image-to-video", "video-to-video")
    requests = [{**plain, **asked, "seed": number} for number, (asked, _) in enumerate(cases)]
    jobs = [model.submit(**request) for request in requests]
    results = [job.result() for job in jobs] + [model.generate(**request) for request in requests]
    for number, (result, frames) in enumerate(zip(results, [*wanted, *wanted], strict=True)):
        found = numpy.asarray(returned[result.request_id].frames, dtype=numpy.float32)
        assert found.shape == frames.shape and numpy.abs(found - frames).max() < LARGEST_DIFFERENCE
        assert result.fps == (INPUT_FPS if number % len(cases) == 1 else 25)
        assert not result.notes
    for wrong, words in (
        ({"image": pictures[0], "video": (pictures, INPUT_FPS)}, "give one of them"),
        ({"strength": 0.5}, "strength is about an input"),
        ({"image": pictures[0], "frame_index": 17}, "from 0 to 16"),
    ):
        with pytest.raises(kamado.InvalidRequest, match=words):
            model.generate(**plain, **wrong)


def test_tiles_over_time(folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    """A video that fits in one tile is the same."""
    for name in ("wan", "ltx"):
        model = runtime.load(folders[name])
        plain, tiled = (model.generate(**tiny.arguments(name), seed=2, tiling=tiling) for tiling in (None, True))
        assert numpy.abs(plain.video.astype(int) - tiled.video).max() <= 1


def test_the_sound_of_a_video(folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    request = tiny.arguments("ltx2")
    pipeline = tiny.load(folders["ltx2"])
    generator = torch.Generator("cpu").manual_seed(4)
    wanted = pipeline(**request, generator=generator, output_type="np").audio[0].float().numpy()
    found = runtime.load(folders["ltx2"]).generate(**request, seed=4)
    assert found.audio.shape == wanted.shape and found.sample_rate == 24000
    assert numpy.abs(found.audio - wanted.clip(-1, 1)).max() < LARGEST_DIFFERENCE


def test_videos_sounds_and_pictures_beside_each_other(folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    """What runs beside it changes nothing."""
    models = {name: runtime.load(folders[name]) for name in ("wan", "stable-audio", "dit")}
    requests = {name: {**tiny.arguments(name), "seed": 3} for name in models}
    alone = {name: models[name].generate(**requests[name]) for name in models}
    jobs = {name: models[name].submit(**requests[name]) for name in models}
    together = {name: job.result() for name, job in jobs.items()}
    assert numpy.array_equal(together["wan"].video, alone["wan"].video)
    assert numpy.array_equal(together["stable-audio"].audio, alone["stable-audio"].audio)
    assert numpy.array_equal(together["dit"].pixels[0], alone["dit"].pixels[0])
