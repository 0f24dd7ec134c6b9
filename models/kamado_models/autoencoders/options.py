"""What an autoencoder can be asked. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kamado.errors import InvalidRequest
from kamado.options import Check, Medium, Options, anything, flag, number, one_of, whole

from .layouts import Facts

DEFAULT_FRAMES = 24
DEFAULT_FPS = 24.0
_TAKES: Mapping[str, tuple[str, ...]] = {
    # task: what it takes besides `task`, `seed` and `tiling`; the first ones are what it works on
    "reconstruct": ("image", "video", "sample_posterior", "n"),
    "encode": ("image", "video", "sample_posterior", "n"),
    "decode": ("latents", "fps"),
    "interpolate": ("image", "frames", "fps", "path"),
    "score": ("image", "video"),
    "error_map": ("image", "video"),
    "sample": ("width", "height", "frames", "fps", "n"),
}
_INPUTS: Mapping[str, Medium] = {"image": "image", "video": "video", "latents": "latents"}
_COMES_OUT = {"encode": "embedding", "score": "scores", "interpolate": "video"}
_PATHS = ("linear", "spherical")


def tasks(facts: Facts) -> tuple[str, ...]:
    """Those that mean something for an autoencoder."""
    found = [name for name in _TAKES if name != "interpolate" or not facts.is_video]
    return tuple(name for name in found if name != "sample" or facts.layout.latents == "normal")


def options(facts: Facts) -> Options:
    """Those that it can use."""
    checks: dict[str, Check] = {
        "task": one_of(*tasks(facts)),
        "image": anything,
        "latents": anything,
        "fps": number(0.0, 1000.0, above=True),
    }
    if facts.is_video:
        checks["video"] = anything
    if facts.layout.latents == "normal":
        checks |= {"sample_posterior": flag, "width": whole(1, 1 << 14), "height": whole(1, 1 << 14)}
    checks["frames"] = whole(1, 10_000)
    if not facts.is_video:
        checks["path"] = one_of(*_PATHS)
    if facts.layout.tiling:
        checks["tiling"] = flag
    inputs = {name: medium for name, medium in _INPUTS.items() if name in checks}
    return Options(
        what=f"an autoencoder ({facts.name})", checks=checks, inputs=inputs, needs=(), takes_n=True,
        made=lambda asked: made(facts, asked),
    )  # fmt: skip


def task_of(facts: Facts, asked: Mapping[str, Any]) -> str:
    """What was asked for, or what the inputs are good for. Raises InvalidRequest for what does not go together."""
    task = asked.get("task") or _guessed(facts, asked)
    takes = _TAKES[task]
    for name in asked:
        if name in ("task", "seed", "tiling", "deadline_s") or name in takes or (name == "n" and asked["n"] == 1):
            continue
        raise InvalidRequest(f"{name} cannot be used with task={task}, which takes {', '.join(takes)}")
    sources = [name for name in ("image", "video", "latents") if name in takes]
    given = [name for name in sources if name in asked]
    if sources and len(given) != 1:
        usable = [name for name in sources if name != "video" or facts.is_video]
        raise InvalidRequest(f"task={task} needs {' or '.join(usable)}" + (", not both" if given else ""))
    if asked.get("n", 1) > 1 and task != "sample" and not asked.get("sample_posterior"):
        raise InvalidRequest(f"n: task={task} draws nothing, so all answers would be equal (sample_posterior draws)")
    _check_inputs(task, asked)
    return task


def made(facts: Facts, asked: Mapping[str, Any]) -> tuple[str, ...]:
    """The kinds that the answer to a request may be of: see `kamado.outputs.KINDS`. Raises InvalidRequest."""
    task = task_of(facts, asked)
    if task in _COMES_OUT:
        return (_COMES_OUT[task],)
    if task == "decode":  # how many frames latents are shows when they are decoded
        return ("video", "image") if facts.is_video else ("image",)
    return ("video",) if "video" in asked or asked.get("frames", 1) > 1 else ("image",)


def _guessed(facts: Facts, asked: Mapping[str, Any]) -> str:
    if "latents" in asked:
        return "decode"
    if "image" in asked or "video" in asked:
        return "reconstruct"
    if facts.layout.latents == "normal":
        return "sample"
    raise InvalidRequest(f"give image{' or video' if facts.is_video else ''} to reconstruct, or latents to decode")


def _check_inputs(task: str, asked: Mapping[str, Any]) -> None:
    for name in ("image", "video"):
        value: Any = asked.get(name)
        count = len(value) if _is_several(value) else 1
        if task == "interpolate" and count < 2:
            raise InvalidRequest("task=interpolate needs two pictures at least (image)")
        if count > 1 and not (name == "image" and task in ("interpolate", "score")):
            raise InvalidRequest(f"task={task} takes one {name}; several are several requests")
        if task == "interpolate":
            break
    if task == "interpolate" and asked.get("frames", DEFAULT_FRAMES) < 2:
        raise InvalidRequest("frames must be 2 at least between two pictures")


def _is_several(value: Any) -> bool:
    """Whether it is a list of inputs: (frames, fps) is one video."""
    is_video = isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], (int, float))
    return isinstance(value, (list, tuple)) and not is_video
