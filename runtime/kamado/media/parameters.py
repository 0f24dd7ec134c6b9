"""A recipe in the words of other picture programs: the `parameters` text.

The form is that of AUTOMATIC1111's web UI, which Forge, Civitai and most viewers read:

    prompt, over any number of lines
    Negative prompt: over any number of lines
    Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, Model hash: 0123456789, Model: name, Version: ...

A value with a comma, a colon or a line break is a JSON string. The form has no escape for a prompt with a line that
starts with "Negative prompt:", and its readers drop spaces at the ends of lines; Kamado reads its own JSON instead.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

SAMPLERS: Mapping[str, tuple[str, str | None]] = {
    # short name, or diffusers' class: what other programs call it, and its noise schedule where they name that apart
    "ddim": ("DDIM", None),
    "dpm++": ("DPM++ 2M", None),
    "dpm++-karras": ("DPM++ 2M", "Karras"),
    "dpm++-sde": ("DPM++ 2M SDE", None),
    "dpm++-sde-karras": ("DPM++ 2M SDE", "Karras"),
    "euler": ("Euler", None),
    "euler-a": ("Euler a", None),
    "euler-karras": ("Euler", "Karras"),
    "flow-euler": ("Euler", None),
    "flow-heun": ("Heun", None),
    "heun": ("Heun", None),
    "kdpm2": ("DPM2", None),
    "kdpm2-a": ("DPM2 a", None),
    "lcm": ("LCM", None),
    "lms": ("LMS", None),
    "pndm": ("PLMS", None),
    "unipc": ("UniPC", None),
    "ddimscheduler": ("DDIM", None),
    "dpmsolvermultistepscheduler": ("DPM++ 2M", None),
    "eulerdiscretescheduler": ("Euler", None),
    "eulerancestraldiscretescheduler": ("Euler a", None),
    "flowmatcheulerdiscretescheduler": ("Euler", None),
    "flowmatchheundiscretescheduler": ("Heun", None),
    "heundiscretescheduler": ("Heun", None),
    "kdpm2discretescheduler": ("DPM2", None),
    "kdpm2ancestraldiscretescheduler": ("DPM2 a", None),
    "lcmscheduler": ("LCM", None),
    "lmsdiscretescheduler": ("LMS", None),
    "pndmscheduler": ("PLMS", None),
    "unipcmultistepscheduler": ("UniPC", None),
}
_WEIGHTS = (".safetensors", ".gguf")
_HASH_DIGITS = 10
"""Of a file's SHA-256, as those programs name models."""
_LARGEST = 1 << 64
_HALVES = re.compile("[\ud800-\udfff]")


def parameters_text(recipe: Mapping[str, Any]) -> str:
    """The `parameters` text of a recipe. Fields that the recipe lacks are left out.

    Adapters become `<lora:name:weight>` at the end of the prompt and `Lora hashes`. `Model hash` is only there for a
    model that is one file of weights: what those programs know no hash of would only mislead them.
    """
    options = _mapping(recipe.get("options"))
    adapters = _adapters(recipe.get("adapters"))
    prompt = options.get("prompt")
    tags = "".join(f"<lora:{name}:{weight}>" for name, weight, _ in adapters)
    lines = [" ".join(part for part in (prompt if isinstance(prompt, str) else "", tags) if part)]
    if isinstance(negative := options.get("negative"), str) and negative:
        lines.append(f"Negative prompt: {negative}")
    fields = ", ".join(f"{name}: {_quoted(value)}" for name, value in _fields(recipe, options, adapters) if value)
    return _HALVES.sub("\ufffd", "\n".join([*lines, fields])).replace("\0", "")


def _fields(
    recipe: Mapping[str, Any], options: Mapping[str, Any], adapters: list[tuple[str, str, str]]
) -> list[tuple[str, str]]:
    model = _mapping(recipe.get("model"))
    sampler, schedule = _sampler(options.get("scheduler"))
    width, height = _number(options.get("width")), _number(options.get("height"))
    hashes = ", ".join(f"{name}: {digest[:_HASH_DIGITS]}" for name, _, digest in adapters if digest)
    hires = _number(options.get("hires"))
    version = recipe.get("kamado")
    return [
        ("Steps", _number(options.get("steps"))),
        ("Sampler", sampler),
        ("Schedule type", schedule or ""),
        ("CFG scale", _number(options.get("guidance"))),
        ("Seed", _number(options.get("seed"))),
        ("Size", f"{width}x{height}" if width and height else ""),
        ("Model hash", _model_hash(_mapping(model.get("files")))),
        ("Model", _name(model.get("reference"))),
        ("Denoising strength", _number(options.get("hires_strength" if hires else "strength"))),
        ("Hires upscale", hires),
        ("Hires steps", _number(options.get("hires_steps"))),
        ("Hires upscaler", "Lanczos" if hires else ""),
        ("Lora hashes", hashes),
        ("Version", f"Kamado {version}" if isinstance(version, str) else "Kamado"),
    ]


def _sampler(scheduler: Any) -> tuple[str, str | None]:
    if not isinstance(scheduler, str):
        return "", None
    return SAMPLERS.get(scheduler.lower(), (scheduler, None))


def _adapters(value: Any) -> list[tuple[str, str, str]]:
    """(name, weight, SHA-256 or nothing) of each adapter that has a name."""
    found = []
    for adapter in value if isinstance(value, (list, tuple)) else ():
        facts = _mapping(adapter)
        if name := re.sub(r"[:<>,\n]", "_", _name(facts.get("reference"))):
            digest = facts.get("sha256")
            found.append((name, _number(facts.get("weight")) or "1", digest if isinstance(digest, str) else ""))
    return found


def _model_hash(files: Mapping[Any, Any]) -> str:
    weights = [digest for name, digest in files.items() if str(name).endswith(_WEIGHTS) and isinstance(digest, str)]
    return weights[0][:_HASH_DIGITS] if len(weights) == 1 else ""


def _name(reference: Any) -> str:
    """What to call a model: its reference; of a file or a path only the name, where it lies is nobody's business."""
    if not isinstance(reference, str):
        return ""
    slashes = reference.replace("\\", "/")
    path = PurePosixPath(slashes)
    if path.suffix.lower() in _WEIGHTS:
        return path.stem
    return path.name if slashes.startswith(("/", "./", "../", "~")) or slashes[1:3] == ":/" else reference


def _number(value: Any) -> str:
    """A whole number without a point; nothing for what is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= _LARGEST:
        return ""
    return repr(value).removesuffix(".0")


def _quoted(value: str) -> str:
    plain = value == value.strip() and not any(character in value for character in ',:"\n')
    return value if plain else json.dumps(value, ensure_ascii=False)


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}
