"""What a generator can be asked. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kamado.checkpoint.strict_json import read_json_object
from kamado.checkpoint.types import Checkpoint
from kamado.errors import InvalidRequest
from kamado.options import LAST_SEED, Check, Options, flag, number, one_of, several, text, whole

from .layouts import Layout

MAX_FRAMES = 10_000
DEFAULT_FRAMES = 60
DEFAULT_FPS = 24.0
_LABEL_FILES = ("labels.json", "id2label.json")
_ONLY_WALKS = ("frames", "fps", "loop")


def options(checkpoint: Checkpoint, layout: Layout) -> Options:
    """Those that the layout can use."""
    seed = whole(0, LAST_SEED)
    checks: dict[str, Check] = {
        "interpolate": several(seed),
        "frames": whole(2, MAX_FRAMES),
        "fps": number(0.0, 1000.0, above=True),
        "loop": flag,
    }
    if layout.num_classes:
        checks["class_label"] = several(_class_of(layout.num_classes))
    if layout.truncates:
        styles = layout.num_styles
        checks["truncation"] = number(-2.0, 2.0) if styles else number(0.0, 1.0, above=True)
    if layout.num_styles:
        checks["truncation_layers"] = whole(1, layout.num_styles)
        checks["mix"] = seed
        checks["mix_layers"] = several(whole(0, layout.num_styles - 1), most=layout.num_styles)
    if layout.noises:
        checks["noise"] = one_of(*layout.noises)
    return Options(
        what=f"a {layout.name} generator", checks=checks, needs=(), takes_n=True,
        made=lambda asked: ("video",) if "interpolate" in asked else ("image",),
        aliases={"psi": "truncation", "truncation_psi": "truncation", "class": "class_label", "noise_mode": "noise"},
    )  # fmt: skip


def check(checkpoint: Checkpoint, layout: Layout, asked: Mapping[str, Any]) -> None:
    """Raise InvalidRequest for options that do not go together, or a class that does not exist."""
    walks = "interpolate" in asked
    if unused := [name for name in _ONLY_WALKS if name in asked and not walks]:
        raise InvalidRequest(f"{unused[0]} is for a walk between pictures; give interpolate, a list of seeds, too")
    if walks and len(asked["interpolate"]) < 2:
        raise InvalidRequest("interpolate must name two seeds at least; for one picture, give seed")
    if walks and asked.get("n", 1) != 1:
        raise InvalidRequest("n is for pictures; one list of seeds (interpolate) is one walk")
    if "mix_layers" in asked and "mix" not in asked:
        raise InvalidRequest("mix_layers says which styles come from another seed; give that as mix")
    if "truncation_layers" in asked and "truncation" not in asked:
        raise InvalidRequest("truncation_layers says how many styles are truncated; give truncation too")
    if layout.num_classes:
        classes_of(checkpoint, layout, asked)


def classes_of(checkpoint: Checkpoint, layout: Layout, asked: Mapping[str, Any]) -> tuple[int, ...]:
    """The class of each picture on the way, as numbers; empty: none was named. Raises InvalidRequest."""
    given = asked.get("class_label", ())
    points = len(asked.get("interpolate", (0,)))
    if len(given) not in (0, 1, points):
        what = f"one for each of the {points} seeds of interpolate" if points > 1 else "one"
        raise InvalidRequest(f"class_label must be {what}, not {len(given)}")
    known = labels(checkpoint) if any(isinstance(value, str) for value in given) else {}
    numbers = [value if isinstance(value, int) else _numbered(value, known, checkpoint) for value in given]
    for value, found in zip(given, numbers, strict=True):
        if found >= layout.num_classes:
            raise InvalidRequest(f"class_label {value!r:.80}: the model has {layout.num_classes} classes")
    return tuple(numbers) if len(numbers) == points else tuple(numbers) * points


def labels(checkpoint: Checkpoint) -> dict[str, int]:
    """Numbers of classes by name, in lower case, as the checkpoint has them: `id2label` of its configuration, or of a
    labels.json beside it. A name with commas stands for each of its parts too. Raises UnsupportedCheckpoint for a file
    that cannot be read."""
    told: Any = checkpoint.config.get("id2label")
    for file in _LABEL_FILES:
        if not told and file in checkpoint.files:
            told = read_json_object(checkpoint.files[file])
            told = told.get("id2label", told)
    found: dict[str, int] = {}
    for key, value in told.items() if isinstance(told, Mapping) else ():
        if isinstance(value, str) and str(key).isdecimal():
            for name in (value, *value.split(",")):
                found.setdefault(name.strip().lower(), int(key))
    return found


def _numbered(name: str, known: Mapping[str, int], checkpoint: Checkpoint) -> int:
    if name.isdecimal():
        return int(name)
    if not known:
        raise InvalidRequest(
            f"class_label {name!r:.80}: the checkpoint names no classes (id2label in config.json); give a number"
        )
    if name.strip().lower() not in known:
        near = [each for each in known if name.strip().lower() in each][:3]
        raise InvalidRequest(
            f"class_label {name!r:.80} is no class of {checkpoint.reference}"
            + (f"; there are {', '.join(near)}" if near else f", which has {', '.join(list(known)[:5])}, ...")
        )
    return known[name.strip().lower()]


def _class_of(count: int) -> Check:
    numbered, named = whole(0, count - 1), text(longest=200)

    def check_class(name: str, value: Any) -> int | str:
        return named(name, value) if isinstance(value, str) else numbered(name, value)  # type: ignore[no-any-return]

    return check_class
