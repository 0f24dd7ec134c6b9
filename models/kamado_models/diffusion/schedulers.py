"""Schedulers by name: diffusers' class names, and the short names that picture tools use."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import re
from collections.abc import Mapping
from typing import Any

from kamado.errors import InvalidRequest

SHORT_NAMES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {}),
    "dpm++-karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpm++-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpm++-sde-karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    ),
    "dpm++-single": ("DPMSolverSinglestepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "euler-karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "flow-euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "flow-heun": ("FlowMatchHeunDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "kdpm2": ("KDPM2DiscreteScheduler", {}),
    "kdpm2-a": ("KDPM2AncestralDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
OTHER_NAMES: Mapping[str, str] = {
    "dpm++-2m": "dpm++",
    "dpm++-2m-sde": "dpm++-sde",
    "dpm++-2m-sde-gpu": "dpm++-sde",
    "dpm2": "kdpm2",
    "dpm2-a": "kdpm2-a",
    "plms": "pndm",
    "uni-pc": "unipc",
}
"""What AUTOMATIC1111's web UI and ComfyUI call them, as `_plain_name` writes it."""
_KARRAS = "-karras"
_WITH_KARRAS = frozenset(
    {
        *("DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"),
        *("EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler"),
        *("KDPM2AncestralDiscreteScheduler", "LMSDiscreteScheduler", "UniPCMultistepScheduler"),
    }
)
"""Classes whose noise levels may be those of Karras et al. 2022."""
_FLOW_OPTIONS = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}


def new_scheduler(base: Any, name: str | None) -> Any:
    """A scheduler of a request's own, since schedulers keep state: like `base`, or of the class `name` configured like
    `base`. Raises InvalidRequest for a name that is unknown or that cannot be used with this model."""
    if name is None:
        return copy.deepcopy(base)  # nobody has run it; five times quicker than making it anew
    kind, changes = _chosen(base, name)
    return kind.from_config(base.config, **changes)


def check_scheduler(base: Any, name: str | None, steps: int | None) -> None:
    """Raises InvalidRequest where `new_scheduler` does, and for more steps than the scheduler can take, before anything
    is computed."""
    if name is not None:
        _chosen(base, name)
    trained = getattr(getattr(base, "config", None), "num_train_timesteps", None)
    if steps is None or not isinstance(trained, int) or steps <= trained:
        return
    try:
        new_scheduler(base, name).set_timesteps(steps)
    except ValueError as error:
        raise InvalidRequest(f"steps {steps}: this model was trained with {trained}, and takes no more") from error
    except TypeError:
        return  # it needs what only its pipeline knows


def _chosen(base: Any, name: str) -> tuple[Any, dict[str, Any]]:
    """The class that `name` means, and what is set otherwise than in the configuration of `base`."""
    if base is None:
        raise InvalidRequest(f"this model has no scheduler to choose; leave {name!r} out")
    import diffusers

    class_name, changes = _named(name)
    kind = getattr(diffusers, class_name, None)
    if absent := _absent(kind):
        raise InvalidRequest(f"the scheduler {name!r} needs {absent}, which is not installed (pip install {absent})")
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        known = [short for short, (other, _) in SHORT_NAMES.items() if not _absent(getattr(diffusers, other))]
        raise InvalidRequest(f"no scheduler is called {name!r}; known are {', '.join(known)}")
    if not _fits(base, kind):
        usable = [short for short, (other, _) in SHORT_NAMES.items() if _fits(base, getattr(diffusers, other))]
        raise InvalidRequest(
            f"the scheduler {name!r} does not work with this model, which was trained for {type(base).__name__}; "
            f"usable are {', '.join(usable) or 'its own only'}"
        )
    if _is_flow(base) and not kind.__name__.startswith("FlowMatch"):
        return kind, {**_FLOW_OPTIONS, "flow_shift": base.config.get("shift", 1.0), **changes}
    return kind, dict(changes)


def _named(name: str) -> tuple[str, Mapping[str, Any]]:
    """(class, settings) of a name."""
    plain = _plain_name(name)
    found = SHORT_NAMES.get(plain)
    stem = plain.removesuffix(_KARRAS)
    if found is None and stem != plain and (base := SHORT_NAMES.get(stem)) and base[0] in _WITH_KARRAS:
        found = base[0], {**base[1], "use_karras_sigmas": True}
    return found or (name, {})


def _plain_name(name: str) -> str:
    """A name as SHORT_NAMES has it: `Euler a`, `euler_ancestral` and `euler-a` are the same."""
    words = re.sub(r"[\s_-]+", "-", name.strip().lower())
    words = words.replace("dpmpp", "dpm++").replace("dpm-2", "dpm2")
    karras = _KARRAS if words.endswith(_KARRAS) else ""
    stem = words.removesuffix(_KARRAS)
    if stem.endswith("-ancestral"):
        stem = stem.removesuffix("ancestral") + "a"
    return OTHER_NAMES.get(stem, stem) + karras


def _absent(kind: Any) -> str | None:
    """The library that a scheduler class needs and that is not installed: diffusers has a placeholder for such."""
    missing = [name for name in getattr(kind, "_backends", ()) if not importlib.util.find_spec(name)]
    return missing[0] if missing else None


def _is_flow(scheduler: Any) -> bool:
    return type(scheduler).__name__.startswith("FlowMatch") or bool(scheduler.config.get("use_flow_sigmas"))


def _fits(base: Any, kind: Any) -> bool:
    """Whether a scheduler of this class can be configured like `base`: for flow matching, or for a noise schedule."""
    if kind is type(base):
        return True
    parameters = inspect.signature(kind.__init__).parameters.keys()
    if _is_flow(base):
        return kind.__name__.startswith("FlowMatch") or parameters >= _FLOW_OPTIONS.keys()
    return "beta_start" in parameters and "beta_start" in base.config
