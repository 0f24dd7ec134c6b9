"""Requests of many kinds share the forwards of one model, and nobody suffers from another's end."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy
import pytest

import kamado
import tiny_pipelines as tiny
from kamado.events import Finished, Media, Progress, Started
from kamado_models.diffusion.schedulers import new_scheduler

LARGEST_DIFFERENCE = 1e-4
KINDS = {
    None: "StableDiffusionPipeline",
    "img2img": "StableDiffusionImg2ImgPipeline",
    "inpaint": "StableDiffusionInpaintPipeline",
}
REQUESTS: list[tuple[str | None, dict[str, Any]]] = [
    (None, {"prompt": tiny.PROMPTS[0], "steps": 12, "guidance_scale": 3.5, "seed": 1}),
    (None, {"prompt": tiny.PROMPTS[1], "steps": 9, "guidance_scale": 2.0, "seed": 2, "scheduler": "dpm++"}),
    (None, {"prompt": tiny.PROMPTS[2], "steps": 14, "guidance_scale": 1.0, "seed": 3, "scheduler": "euler"}),
    ("img2img", {"prompt": tiny.PROMPTS[0], "steps": 16, "guidance_scale": 2.5, "seed": 4, "strength": 0.6,
                 "scheduler": "ddim", "image": tiny.picture(1)}),
    ("inpaint", {"prompt": tiny.PROMPTS[1], "steps": 10, "guidance_scale": 3.0, "seed": 5, "strength": 1.0,
                 "negative": tiny.NEGATIVE, "image": tiny.picture(2), "mask": tiny.mask()}),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(folders: dict[str, Path]) -> Path:
    return folders["sd15"]


@pytest.fixture
def model(runtime: kamado.Runtime, folder: Path) -> kamado.Model:
    return runtime.load(folder)


@pytest.fixture(scope="module")
def wanted(folder: Path) -> list[Any]:
    """What diffusers makes of each request by itself."""
    pictures = []
    for kind, request in REQUESTS:
        pipeline = tiny.load(folder, pipeline_class=KINDS[kind])
        names = {"steps": "num_inference_steps", "negative": "negative_prompt", "mask": "mask_image"}
        given = {names.get(name, name): value for name, value in request.items()}
        pipeline.scheduler = new_scheduler(pipeline.scheduler, given.pop("scheduler", None))
        # A pipeline that gets no size asks its UNet, whatever size the picture has.
        pictures.append(tiny.call(pipeline, **given)[0])
    return pictures


def _steps(runtime: kamado.Runtime, component: str) -> tuple[int, int]:
    """(forwards, calls) of a component so far."""
    (lane,) = [stats for name, stats in runtime.stats()["lanes"].items() if name.endswith(f"/{component}")]
    return lane["steps"], lane["rows"]


def test_text_picture_and_mask_requests_share_forwards(
    runtime: kamado.Runtime, model: kamado.Model, wanted: list[Any], folders: dict[str, Path]
) -> None:
    """Different schedulers, steps, guidance, and inputs; one with a LoRA; submitted at different times."""
    lora = folders["lora-sd15"]
    styled = {**REQUESTS[0][1], "adapters": [f"{lora}:0.7"], "steps": 6}
    pipeline = tiny.load(folders["sd15"])
    pipeline.load_lora_weights(lora, adapter_name="style")
    pipeline.set_adapters("style", 0.7)
    given = {"prompt": styled["prompt"], "num_inference_steps": 6, "guidance_scale": styled["guidance_scale"]}
    pictures = [*wanted, tiny.call(pipeline, **given, seed=styled["seed"])[0]]
    jobs = []
    for request in (*(request for _, request in REQUESTS), styled):
        jobs.append(model.submit(**request))
        # The next one comes when this one is on its way.
        next(event for event in jobs[-1].events() if isinstance(event, Progress | Finished))
    for job, picture in zip(jobs, pictures, strict=True):
        (pixels,) = job.result().pixels
        assert numpy.abs(pixels - picture).max() < LARGEST_DIFFERENCE
    assert numpy.abs(pictures[-1] - wanted[0]).max() > 0.01
    forwards, calls = _steps(runtime, "unet")
    total = sum(1 for job in jobs for event in job.events() if isinstance(event, Progress))
    assert calls >= total
    assert forwards < 0.75 * calls


def _ledger(runtime: kamado.Runtime, model: kamado.Model) -> Any:
    """Without what encoders made, which is kept on purpose."""
    session: Any = vars(runtime)["_session"]
    session.call(model.loaded._workshop.outputs.trim)  # type: ignore[attr-defined]
    return runtime.stats()["ledger"]


@pytest.mark.parametrize("moment", range(6))
def test_cancelled_at_any_step_nothing_is_left(
    moment: int, runtime: kamado.Runtime, model: kamado.Model, wanted: list[Any]
) -> None:
    before = _ledger(runtime, model)
    other = model.submit(**REQUESTS[0][1])
    job = model.submit(**{**REQUESTS[3][1], "steps": 8, "strength": 0.5})
    for count, _ in enumerate(event for event in job.events() if isinstance(event, Started | Progress)):
        if count == moment:
            job.cancel()
            break
    ends = [event for event in job.events() if isinstance(event, Finished)]
    assert len(ends) == 1
    with pytest.raises(kamado.Cancelled) if ends[0].error else nullcontext():
        job.result(timeout=30)
    assert numpy.abs(other.result().pixels[0] - wanted[0]).max() < LARGEST_DIFFERENCE
    assert runtime.stats()["queued"] == 0
    assert _ledger(runtime, model) == before


def test_200_random_submits_and_cancels(runtime: kamado.Runtime, model: kamado.Model) -> None:
    generator = numpy.random.default_rng(0)
    before, jobs = _ledger(runtime, model), []
    for number in range(200):
        _, request = REQUESTS[int(generator.integers(len(REQUESTS)))]
        jobs.append(model.submit(**{**request, "steps": int(generator.integers(2, 5)), "seed": number}))
        if generator.random() < 0.8:
            jobs[int(generator.integers(len(jobs)))].cancel()
        if generator.random() < 0.1:
            time.sleep(0.005)
    ended = [next(event for event in reversed(list(job.events())) if isinstance(event, Finished)) for job in jobs]
    assert {end.reason for end in ended} == {"complete", "cancelled"}
    assert runtime.stats()["queued"] == 0
    assert _ledger(runtime, model) == before


BAD: list[dict[str, Any]] = [
    {"steps": 0},
    {"steps": 1001, "scheduler": "ddim"},
    {"width": 100_000, "height": 64},
    {"width": 63},
    {"guidance": float("nan")},
    {"scheduler": "magic"},
    {"image": tiny.picture(0), "mask": "/nowhere/mask.png"},
    {"mask": tiny.mask()},
    {"image": tiny.picture(0), "strength": 0.0},
    {"image": tiny.picture(0), "mask": tiny.mask((16, 4096))},
    {"callback_on_step_end": print},
    {"n": 0},
    {"prompt_embeds": numpy.zeros((1, 2, 3))},
    {"nonsense": 1},
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: "-".join(bad))
def test_a_bad_request_is_one_clear_error_and_others_go_on(
    bad: dict[str, Any], model: kamado.Model, wanted: list[Any]
) -> None:
    good = model.submit(**REQUESTS[0][1])
    with pytest.raises(kamado.KamadoError) as caught:
        model.generate(**{"prompt": "a", "steps": 2, **bad})
    assert "Traceback" not in str(caught.value)
    assert 10 < len(str(caught.value)) < 700
    assert numpy.abs(good.result().pixels[0] - wanted[0]).max() < LARGEST_DIFFERENCE


def test_events_come_in_order_and_several_pictures_have_a_seed_each(model: kamado.Model, wanted: list[Any]) -> None:
    _, request = REQUESTS[0]
    job = model.submit(**{**request, "n": 3, "seed": request["seed"] - 1})
    events = list(job.events())
    assert isinstance(events[0], Started)
    assert [event.index for event in events if isinstance(event, Media)] == [0, 1, 2]
    assert sum(isinstance(event, Finished) for event in events) == 3
    for index in range(3):
        steps = [(event.step, event.total) for event in events if isinstance(event, Progress) and event.index == index]
        assert steps == [(step, len(steps)) for step in range(1, len(steps) + 1)]
        assert len(steps) >= request["steps"]
    result = job.result()
    assert result.seeds == (0, 1, 2)
    assert numpy.abs(result.pixels[1] - wanted[0]).max() < LARGEST_DIFFERENCE
    assert result.recipe_of(1)["options"]["seed"] == 1
    again = model.generate(**result.recipe_of(1)["options"])
    assert numpy.abs(again.pixels[0] - wanted[0]).max() < LARGEST_DIFFERENCE


@pytest.mark.parametrize("mask", [None, (72, 40)])
def test_a_changed_picture_keeps_its_size(mask: tuple[int, int] | None, model: kamado.Model) -> None:
    request = {"prompt": "a", "steps": 2, "strength": 1.0, "image": tiny.picture(0, (72, 40)), "seed": 1}
    result = model.generate(**request, **({"mask": tiny.mask(mask)} if mask else {}))
    assert result.images[0].size == (72, 40)


def test_deterministic_pictures_are_bit_equal_whatever_else_runs(folder: Path) -> None:
    with kamado.Runtime(device="cpu", memory="2GiB", deterministic=True) as runtime:
        model = runtime.load(folder)
        alone = model.generate(**REQUESTS[0][1]).pixels[0]
        jobs = [model.submit(**request) for _, request in REQUESTS]
        assert numpy.array_equal(jobs[0].result().pixels[0], alone)
