"""Sounds are those that diffusers' own pipelines make: alone, and while other requests share their forwards."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusers
import numpy
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_oobleck import OobleckDiagonalGaussianDistribution as Sound

import kamado
import tiny_pipelines as tiny
from kamado.events import Media
from kamado.outputs import Audio

LARGEST_DIFFERENCE = 1e-4
RATE = 4000
CHANNELS = {"audioldm2": 1, "musicldm": 1, "stable-audio": 2, "ace-step": 2}


def _pipeline(name: str, folder: Path) -> Any:
    pipeline = tiny.load(folder)
    if name == "musicldm":  # written for transformers 4, where this was a tensor
        whole = pipeline.text_encoder.get_text_features
        pipeline.text_encoder.get_text_features = lambda *args, **kwargs: whole(*args, **kwargs).pooler_output
    return pipeline


@pytest.mark.parametrize("name", sorted(CHANNELS))
def test_alone_and_in_a_mixed_batch(name: str, folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    pipeline = _pipeline(name, folders[name])
    scheduler, requests, wanted = pipeline.scheduler, [], []
    for index in range(3):
        request = tiny.arguments(name, prompt=index)
        request["num_inference_steps"] += index
        request |= {"negative_prompt": tiny.NEGATIVE} if index == 1 and "negative" in tiny.MOVING[name].takes else {}
        requests.append({**request, "seed": 10 + index})
        pipeline.scheduler = type(scheduler).from_config(scheduler.config)
        made = tiny.call(pipeline, **requests[-1])
        wanted.append(made.reshape(-1, made.shape[-1]).clip(-1, 1))
    assert numpy.abs(wanted[0] - wanted[1]).max() > 0.01, "prompts and seeds matter"
    model = runtime.load(folders[name])
    assert model.capabilities == ("audio",) and model.tasks == ("text-to-audio",)
    jobs = [model.submit(**request) for request in requests]
    results = [job.result() for job in jobs] + [model.generate(**request) for request in requests]
    for result, samples in zip(results, [*wanted, *wanted], strict=True):
        (sound,) = result.outputs
        assert isinstance(sound, Audio) and sound.sample_rate == RATE
        assert sound.samples.shape == samples.shape and len(samples) == CHANNELS[name]
        assert numpy.abs(sound.samples - samples).max() < LARGEST_DIFFERENCE


def test_the_scheduler_that_stable_audio_comes_with(
    folders: dict[str, Path], runtime: kamado.Runtime, tmp_path: Path
) -> None:
    """Its noise is that of a Brownian tree, grown from the request's seed."""
    if find_spec("torchsde") is None:
        pytest.skip("diffusers' class wants torchsde")
    pipeline = tiny.load(folders["stable-audio"])
    pipeline.scheduler = diffusers.CosineDPMSolverMultistepScheduler(
        sigma_min=0.3, sigma_max=500, prediction_type="v_prediction", sigma_schedule="exponential"
    )
    pipeline.save_pretrained(tmp_path)
    requests = [tiny.arguments("stable-audio", prompt=number) | {"seed": 10 + number} for number in range(3)]
    wanted = []
    for number, request in enumerate(requests):
        request["num_inference_steps"] += number
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
        wanted.append(tiny.call(pipeline, **request)[0].clip(-1, 1))
    model, before = runtime.load(tmp_path), torch.get_rng_state()
    jobs = [model.submit(**request) for request in requests]
    results = [job.result() for job in jobs] + [model.generate(**request) for request in requests]
    assert torch.equal(torch.get_rng_state(), before)
    for result, samples in zip(results, [*wanted, *wanted], strict=True):
        assert numpy.abs(result.audio - samples).max() < LARGEST_DIFFERENCE
    other = model.generate(**requests[0] | {"seed": 3})
    assert numpy.abs(other.audio - wanted[0]).max() > 0.01


def test_several_sounds_of_so_many_seconds(folders: dict[str, Path], runtime: kamado.Runtime, tmp_path: Path) -> None:
    model = runtime.load(folders["stable-audio"])
    events = list(model.stream("waves", seconds=0.25, steps=2, seed=5, n=2))
    media = {event.index: event for event in events if isinstance(event, Media)}
    assert {event.kind for event in media.values()} == {"audio"} and sorted(media) == [0, 1]
    again = model.generate("waves", seconds=0.25, steps=2, seed=6)
    assert again.audio.shape == (2, RATE // 4) and again.recipe["options"]["seconds"] == 0.25
    assert numpy.abs(again.audio - media[1].data.samples).max() < LARGEST_DIFFERENCE
    (path,) = again.save(tmp_path / "waves.flac")
    assert path.stat().st_size > 100
    for wrong, words in (
        ({"frames": 8}, "frames cannot be used: .* makes sounds"),
        ({"width": 64}, "takes no width"),
        ({"seconds": 1e4}, "."),
        ({"seconds": -1}, "seconds must be"),
        ({"num_waveforms_per_prompt": 2}, "takes no num_waveforms_per_prompt"),
    ):
        with pytest.raises(kamado.InvalidRequest, match=words):
            model.generate(**{"prompt": "waves", "steps": 1} | wrong)


def test_a_sound_to_begin_with(folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    """At any rate, with one channel: it becomes what the model reads."""
    model = runtime.load(folders["stable-audio"])
    request: dict[str, Any] = {"prompt": "waves", "audio_end_in_s": 0.25, "steps": 2, "seed": 5}
    tone = numpy.sin(numpy.arange(4000) / 10).astype(numpy.float32)
    plain, begun = model.generate(**request), model.generate(**request, audio=(tone, 8000))
    assert begun.audio.shape == plain.audio.shape and numpy.abs(begun.audio - plain.audio).max() > 0.01
    assert set(begun.recipe["inputs"]) == {"audio"}
    for source in (numpy.zeros(0, numpy.float32), tone):
        with pytest.raises(kamado.InvalidRequest):
            model.generate(**request, audio=(source, 0))


@pytest.mark.parametrize("task", [{"task_type": "repaint", "repainting_start": 0.1}, {"task_type": "cover"}])
def test_a_song_of_a_song(
    task: dict[str, Any], folders: dict[str, Path], runtime: kamado.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ACE-Step draws without a generator is drawn from the seed too, and not from everybody's random numbers."""
    request = tiny.arguments("ace-step") | task
    del request["audio_duration"]
    song = numpy.stack([numpy.sin(numpy.arange(2048) / rate) for rate in (5, 9)]).astype(numpy.float32) / 2
    further, plain = torch.Generator().manual_seed(4), Sound.sample
    with monkeypatch.context() as patched:
        patched.setattr(Sound, "sample", lambda self: plain(self, further))
        pipeline = tiny.load(folders["ace-step"])
        wanted = tiny.call(pipeline, seed=4, src_audio=torch.from_numpy(song), audio_duration=0.512, **request)[0]
    model, before = runtime.load(folders["ace-step"]), torch.get_rng_state()
    jobs = [model.submit(**request, audio=(song, RATE), seed=seed) for seed in (4, 5)]
    found, other = (job.result() for job in jobs)
    again = model.generate(**request, audio=(song, RATE), seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert found.audio.shape == wanted.shape and numpy.abs(found.audio - other.audio).max() > 0.01
    for result in (found, again):
        assert numpy.abs(result.audio - wanted).max() < LARGEST_DIFFERENCE
    with pytest.raises(kamado.InvalidRequest, match="is as long as that"):
        model.generate(**request, audio=(song, RATE), seconds=1)
