"""Options that a pipeline does not take, or cannot use, are named as the caller names them."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from diffusers import DDPMPipeline, FluxPipeline, QwenImagePipeline, StableDiffusionPipeline

from kamado.errors import InvalidRequest, ModelNotFound
from kamado.picture_requests import PictureOptions
from kamado_models.diffusion.pipelines import call_arguments
from kamado_models.diffusion.refusals import blamed, check_typed, not_taken, unused_negative


def _listed(kind: Any, **options: Any) -> list[str]:
    with pytest.raises(InvalidRequest) as raised:
        call_arguments(kind, PictureOptions(**options))
    return str(raised.value).partition("it takes ")[2].split(", ")


def test_options_are_listed_as_users_name_them() -> None:
    names = _listed(StableDiffusionPipeline, prompt="x", extra={"num_frames": 1})
    assert {"prompt", "negative", "steps", "guidance", "width", "clip_skip", "eta"} <= {*names}
    assert {"seed", "n", "scheduler", "image", "mask", "strength", "tiling", "hires", "step_cache", "adapters",
            "weighting"} <= {*names}  # fmt: skip
    hidden = {"latents", "prompt_embeds", "negative_prompt_embeds", "ip_adapter_image_embeds", "num_inference_steps"}
    assert not hidden & {*names}
    assert len(names) == len({*names})
    names = _listed(QwenImagePipeline, prompt="x", extra={"frames": 1})
    assert not [name for name in names if "embeds" in name]
    assert "weighting" not in names
    assert not {"image", "tiling", "prompt"} & {*_listed(DDPMPipeline, prompt="x")}


@pytest.mark.parametrize("name", ["max_tokens", "temperature", "stop"])
def test_options_for_texts(name: str) -> None:
    error = not_taken(StableDiffusionPipeline, name, ["prompt"])
    assert str(error) == f"{name} is for text models, and this model makes pictures"


def _parameter(annotation: Any) -> inspect.Parameter:
    return inspect.Parameter("eta", inspect.Parameter.KEYWORD_ONLY, annotation=annotation)


@pytest.mark.parametrize("annotation", [float, float | None, int | float, "float | None", "typing.Optional[int]"])
def test_numbers(annotation: Any) -> None:
    for value in ("x", [1], {}):
        with pytest.raises(InvalidRequest, match="eta must be a number, not "):
            check_typed("eta", value, _parameter(annotation))
    for number in (1, 1.5, True):
        check_typed("eta", number, _parameter(annotation))


def test_yes_or_no() -> None:
    check_typed("eta", True, _parameter(bool))
    with pytest.raises(InvalidRequest, match="eta must be true or false, not 'no'"):
        check_typed("eta", "no", _parameter(bool))


@pytest.mark.parametrize("annotation", [str, list[int], float | list[float], inspect.Parameter.empty, dict[str, Any]])
def test_other_types_are_not_judged(annotation: Any) -> None:
    check_typed("eta", "x", _parameter(annotation))


def test_what_fails_before_the_first_step_is_the_requests_fault() -> None:
    options = PictureOptions(extra={"clip_skip": 9})
    with (
        pytest.raises(InvalidRequest, match=r"not use what it was given \(clip_skip\): tuple index"),
        blamed(options, lambda: 3),
    ):
        raise IndexError("tuple index out of range")
    with pytest.raises(InvalidRequest, match="The scheduler class DDIM cannot"), blamed(options, lambda: 0):
        raise ValueError("The scheduler class <class 'a.b.DDIM'>'s cannot")
    steps = iter([0, 1])
    with pytest.raises(IndexError), blamed(options, lambda: next(steps)):
        raise IndexError("later")
    with pytest.raises(IndexError), blamed(PictureOptions(), lambda: 0):
        raise IndexError("nothing was given")
    for error in (ModelNotFound("x"), RuntimeError("x")):
        with pytest.raises(type(error)), blamed(options, lambda: 0):
            raise error


def test_a_negative_that_nobody_reads() -> None:
    flux, qwen = FluxPipeline.__new__(FluxPipeline), QwenImagePipeline.__new__(QwenImagePipeline)
    assert "(true_cfg_scale above 1)" in unused_negative(flux, "grey", {})[0]
    assert unused_negative(flux, "grey", {"true_cfg_scale": 2.0}) == []
    assert unused_negative(flux, "", {}) == unused_negative(flux, None, {}) == []
    assert "(guidance above 1)" in unused_negative(qwen, "grey", {"true_cfg_scale": 1.0})[0]
    assert unused_negative(qwen, "grey", {}) == []
