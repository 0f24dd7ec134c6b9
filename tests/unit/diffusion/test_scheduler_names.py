"""Schedulers are found by the names that people know from other programs."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st

from kamado.errors import InvalidRequest
from kamado_models.diffusion import schedulers
from kamado_models.diffusion.schedulers import SHORT_NAMES, new_scheduler

BASE = DDIMScheduler()


@pytest.mark.parametrize(("name", "kind", "settings"), [
    ("Euler a", "EulerAncestralDiscreteScheduler", {}),
    ("euler_ancestral", "EulerAncestralDiscreteScheduler", {}),
    ("Euler", "EulerDiscreteScheduler", {"use_karras_sigmas": False}),
    ("Euler Karras", "EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ("DPM++ 2M", "DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": False}),
    ("DPM++ 2M Karras", "DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}),
    ("dpmpp_2m", "DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    ("dpmpp_2m_karras", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    ("DPM++ 2M SDE Karras", "DPMSolverMultistepScheduler",
     {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}),
    ("dpmpp_2m_sde_gpu", "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("DPM2", "KDPM2DiscreteScheduler", {}),
    ("dpm_2", "KDPM2DiscreteScheduler", {}),
    ("DPM2 a Karras", "KDPM2AncestralDiscreteScheduler", {"use_karras_sigmas": True}),
    ("dpm_2_ancestral", "KDPM2AncestralDiscreteScheduler", {"use_karras_sigmas": False}),
    ("Heun", "HeunDiscreteScheduler", {}),
    ("UniPC", "UniPCMultistepScheduler", {}),
    ("uni_pc", "UniPCMultistepScheduler", {}),
    ("PLMS", "PNDMScheduler", {}),
    (" LCM ", "LCMScheduler", {}),
    ("DDIM", "DDIMScheduler", {}),
    ("EulerDiscreteScheduler", "EulerDiscreteScheduler", {}),
])  # fmt: skip
def test_names_of_other_programs(name: str, kind: str, settings: dict[str, Any]) -> None:
    found = new_scheduler(BASE, name)
    assert type(found).__name__ == kind
    assert {key: found.config[key] for key in settings} == settings


@pytest.mark.parametrize("name", ["DPM++ 2S a", "DPM++ 3M SDE", "ddim karras", "karras", "", "euler-a-karras"])
def test_what_nobody_has(name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"no scheduler is called .* known are ddim, ddpm"):
        new_scheduler(BASE, name)


@given(st.text(max_size=20))
def test_any_other_text_is_refused_or_a_scheduler(name: str) -> None:
    try:
        assert "Scheduler" in type(new_scheduler(BASE, name)).__name__
    except InvalidRequest as error:
        assert len(str(error)) < 400


def test_every_short_name_means_itself() -> None:
    for name in SHORT_NAMES:
        assert schedulers._named(name) == SHORT_NAMES[name]


@pytest.mark.skipif(importlib.util.find_spec("scipy") is not None, reason="scipy is installed")
def test_a_library_that_is_not_there_is_named() -> None:
    with pytest.raises(InvalidRequest, match="'LMS' needs scipy"):
        new_scheduler(BASE, "LMS")
    with pytest.raises(InvalidRequest, match="kdpm2-a, lcm, pndm"):
        new_scheduler(BASE, "magic")
