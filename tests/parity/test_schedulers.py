"""Another scheduler steps where the model's own would, also inside combined pipelines; seeds hold for all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest

import kamado
import tiny_pipelines as tiny
from kamado.events import Progress
from kamado_models.diffusion.schedulers import SHORT_NAMES, new_scheduler
from kamado_models.diffusion.stepping import check_stepping

LARGEST_DIFFERENCE = 1e-4


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++"])
def test_the_decoder_of_a_combined_pipeline_steps_with_it(
    scheduler: str, folders: dict[str, Path], runtime: kamado.Runtime
) -> None:
    # Random weights magnify rounding, which each CPU does in its own way, with every step.
    request: dict[str, Any] = {**tiny.arguments("kandinsky22"), "num_inference_steps": 3, "seed": 3}
    pipeline = tiny.load(folders["kandinsky22"])
    prior = pipeline.prior_pipe.scheduler
    replaced = new_scheduler(pipeline.scheduler, scheduler)
    replaced.register_to_config(variance_type=None)  # else the decoder leaves the variance on, and neither takes it off
    pipeline.scheduler = pipeline.decoder_pipe.scheduler = replaced
    wanted = tiny.call(pipeline, **request)
    model = runtime.load(folders["kandinsky22"])
    steps = [event for event in model.stream(**request, scheduler=scheduler) if isinstance(event, Progress)]
    made, plain = model.generate(**request, scheduler=scheduler), model.generate(**request)
    assert numpy.abs(made.pixels[0] - wanted[0]).max() < LARGEST_DIFFERENCE
    assert numpy.abs(made.pixels[0] - plain.pixels[0]).max() > 1e-3
    assert len(steps) == 3
    assert pipeline.prior_pipe.scheduler is prior


@pytest.mark.parametrize("name", ["sd15", "flux", "kandinsky22"])
def test_the_models_own_is_never_stepped_with(name: str, folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    """Those of requests are copies of it."""

    def state(scheduler: Any) -> str:
        return repr({key: value for key, value in vars(scheduler).items() if key != "_internal_dict"})

    model: Any = runtime.load(folders[name])
    parts = model.loaded.direct_pipeline().components
    before = {part: state(value) for part, value in parts.items() if "scheduler" in part}
    model.generate(**tiny.arguments(name), seed=1)
    model.generate(**tiny.arguments(name), seed=2, scheduler="ddim" if name != "flux" else None)
    after = model.loaded.direct_pipeline().components
    assert before and before == {part: state(after[part]) for part in before}


@pytest.mark.parametrize("scheduler", ["euler", "unipc", "heun"])
def test_one_that_the_decoders_code_cannot_step_with_is_refused(
    scheduler: str, folders: dict[str, Path], runtime: kamado.Runtime
) -> None:
    model = runtime.load(folders["kandinsky22"])
    with pytest.raises(kamado.InvalidRequest, match=r"does not work with KandinskyV22CombinedPipeline.*ddim"):
        model.submit(**tiny.arguments("kandinsky22"), scheduler=scheduler)


def test_stable_diffusion_takes_all_that_fit() -> None:
    import diffusers

    base = diffusers.DDIMScheduler()
    for name in SHORT_NAMES:
        if not name.startswith("flow") and name != "lms":
            check_stepping(diffusers.StableDiffusionPipeline, base, name)
            check_stepping(diffusers.StableDiffusionXLImg2ImgPipeline, base, name)
    flow = diffusers.FlowMatchEulerDiscreteScheduler()
    for name in ("flow-euler", "flow-heun", "unipc", "dpm++"):
        check_stepping(diffusers.StableDiffusion3Pipeline, flow, name)


@pytest.mark.parametrize(
    ("kind", "name", "problem"),
    [
        ("DDPMPipeline", "euler", "does not scale"),
        ("DDPMPipeline", "unipc", "gives it generator"),
        ("KandinskyV22InpaintCombinedPipeline", "euler", "does not scale"),
    ],
)
def test_what_a_class_cannot_step_with(kind: str, name: str, problem: str) -> None:
    import diffusers

    with pytest.raises(kamado.InvalidRequest, match=problem):
        check_stepping(getattr(diffusers, kind), diffusers.DDPMScheduler(), name)
    check_stepping(getattr(diffusers, kind), diffusers.DDPMScheduler(), "ddim")
    learned = diffusers.DDPMScheduler(variance_type="learned_range")
    with pytest.raises(kamado.InvalidRequest, match="variance"):
        check_stepping(diffusers.DDPMPipeline, learned, "ddim")
    check_stepping(diffusers.DDPMPipeline, learned, "dpm++")
