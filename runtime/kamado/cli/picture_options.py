"""The generation options of pipelines that make pictures, videos and sounds."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from ..checkpoint.strict_json import unique_pairs
from ..errors import InvalidRequest
from ..picture_requests import ALIASES
from .common import Command, apply_options

_ONCE = (
    *("width", "height", "steps", "guidance", "negative", "scheduler", "mask", "strength", "weighting", "last_image"),
    *("control_map", "hires", "hires_strength", "hires_steps", "tiling", "step_cache"),
)
_SEVERAL = ("image", "control", "control_scale", "adapters", "ip_adapter_image")
PICTURE_FLAGS = (*_ONCE, *_SEVERAL, "outpaint")
"""Options of pictures that have a flag; others are given with --option."""
_OWN_PLACE = {"self": "not an option", "seed": "--seed", "n": "--n"}

_FILE = click.Path(path_type=Path)
_OPTIONS = [
    click.option("--width", type=int, metavar="PIXELS", help="[the model's own]"),
    click.option("--height", type=int, metavar="PIXELS", help="[the model's own]"),
    click.option("--steps", type=int, metavar="N", help="Denoising steps."),
    click.option("--guidance", type=float, metavar="X", help="How closely what is made follows the prompt."),
    click.option("--negative", metavar="TEXT", help="What a picture should not show."),
    click.option("--scheduler", metavar="NAME", help="Sampler: euler, dpm++-karras, ..."),
    click.option("--image", type=_FILE, multiple=True, metavar="FILE", help="Input picture. Repeatable."),
    click.option("--last-image", type=_FILE, metavar="FILE", help="The picture that a video ends with."),
    click.option("--mask", type=_FILE, metavar="FILE", help="White where the input picture is painted anew."),
    click.option(
        "--outpaint", multiple=True, metavar="SIDE=PIXELS",
        help="Grow the input picture: left=64, right, top, bottom; edges run out over feather=16. Repeatable.",
    ),
    click.option("--strength", type=float, metavar="X", help="How much of the input picture is replaced: 0 to 1."),
    click.option(
        "--control", type=_FILE, multiple=True, metavar="FILE",
        help="Edges, depth or a pose that a picture keeps to. Repeatable: one for each ControlNet.",
    ),
    click.option("--control-map", metavar="NAME", help="Make a map of --control first: edges."),
    click.option(
        "--control-scale", type=float, multiple=True, metavar="X", help="How much a ControlNet counts. Repeatable."
    ),
    click.option("--weighting", metavar="NAME", help="How the prompt writes weights: a1111, (like:1.3) this."),
    click.option(
        "--hires", type=float, metavar="X", help="Then X times larger, refined in a second pass."
    ),
    click.option("--hires-strength", type=float, metavar="X", help="How much the second pass replaces: 0 to 1."),
    click.option("--hires-steps", type=int, metavar="N", help="Steps of the second pass."),
    click.option("--tiling", is_flag=True, default=None, help="Large pictures need less memory, and differ a little."),
    click.option(
        "--step-cache", type=float, metavar="X",
        help="Leave out calls of the denoiser while its input changes by less than this share, like 0.1.",
    ),
    click.option(
        "--adapter", "adapters", multiple=True, metavar="REF[:WEIGHT]",
        help="LoRA, embedding or IP-Adapter: a .safetensors file, org/name. Repeatable.",
    ),
    click.option(
        "--adapter-image", "ip_adapter_image", type=_FILE, multiple=True, metavar="FILE",
        help="The picture that an IP-Adapter shows. Repeatable.",
    ),
    click.option(
        "--option", "named", multiple=True, metavar="NAME=JSON",
        help="An option of the model's pipeline under its own name, like class_labels=[3]. Repeatable.",
    ),
]  # fmt: skip


def picture_options(command: Command) -> Command:
    """Adds the generation options of picture models; calls with `picture: dict` of those that were given. Input
    pictures are paths, several are a list. Values are for `kinds.check_values` to judge."""

    @functools.wraps(command)
    def wrapper(*args: Any, named: tuple[str, ...], **kwargs: Any) -> Any:
        values = {name: kwargs.pop(name) for name in PICTURE_FLAGS}
        picture: dict[str, Any] = {name: value for name, value in values.items() if value not in (None, ())}
        for name in _SEVERAL:
            if name in picture:
                picture[name] = picture[name][0] if len(picture[name]) == 1 else list(picture[name])
        if "outpaint" in picture:
            picture["outpaint"] = parse_outpaint(picture["outpaint"])
        for item in named:
            name, value = parse_named(item)
            if name in picture:
                raise InvalidRequest(f"--option {name}: {name} was given already")
            picture[name] = value
        return command(*args, picture=picture, **kwargs)

    return apply_options(wrapper, _OPTIONS, "Pictures")  # type: ignore[return-value]


def parse_outpaint(items: Sequence[str]) -> dict[str, int]:
    """`["left=64", "feather=16"]` -> `{"left": 64, "feather": 16}`. Raises InvalidRequest."""
    found: dict[str, int] = {}
    for item in items:
        side, separator, number = item.partition("=")
        if not separator or not re.fullmatch(r"[0-9]{1,9}", number) or side in found:
            raise InvalidRequest(f"--outpaint {item!r:.80}: write it as SIDE=PIXELS, each side once, like left=64")
        found[side] = int(number)
    return found


def parse_named(item: str) -> tuple[str, Any]:
    """`"class_labels=[3]"` -> `("class_labels", [3])`. Raises InvalidRequest."""
    name, separator, text = item.partition("=")
    if not separator or not name.isidentifier():
        raise InvalidRequest(f"--option {item!r:.80}: write it as NAME=JSON, like class_labels=[3]")
    if name in _OWN_PLACE:
        raise InvalidRequest(f"--option {name} cannot be used: it is {_OWN_PLACE[name]}")
    try:
        value = json.loads(text, object_pairs_hook=unique_pairs, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise InvalidRequest(
            f"--option {name}: {text!r:.80} is not JSON; write a number, a list, true, or '\"text\"' in both quotes"
        ) from None
    if value is None:
        raise InvalidRequest(f"--option {name}=null says nothing; leave it out")
    return ALIASES.get(name, name), value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
