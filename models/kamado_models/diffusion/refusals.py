"""What a pipeline does not take or cannot use of a request, in the words of whoever asked."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from kamado.errors import InvalidRequest, KamadoError
from kamado.picture_requests import ALIASES, PICTURE_OPTION_NAMES, PictureOptions
from kamado.requests import TEXT_OPTION_NAMES

from . import control
from .conditions import takes_conditions
from .related import call_parameters, class_taking
from .table import makes, words

_NAMES = {**ALIASES, "guidance_scale": "guidance"}
_INTERNAL = re.compile(
    r"(?:^|_)(?:latents|embeds|embeds_\w*|(?:attention_)?mask_\d|attention_mask)$|_embeds(?:_|$)|attention_kwargs$"
)
"""Names of what other code computes beforehand, or does with attention. They are taken all the same, but for `scale`
among the latter (`adapters_uses.check_scales`)."""
_CLASS = re.compile(r"<class '(?:[\w.]*\.)?(\w+)'>(?:'s)?")
_NUMBERS = frozenset({"int", "float"})
_SHOWN = 160


def not_taken(kind: Any, name: str, taken: list[str]) -> InvalidRequest:
    """The error for an option `name` that pipelines of class `kind`, whose calls take `taken`, do not have."""
    if name in TEXT_OPTION_NAMES - PICTURE_OPTION_NAMES:
        return InvalidRequest(f"{name} is for text models, and this model makes {words(makes(kind.__name__))}")
    return InvalidRequest(f"{kind.__name__} takes no {name}; it takes {', '.join(options_of(kind, taken))}")


def options_of(kind: Any, taken: list[str]) -> list[str]:
    """What a model whose pipeline is of class `kind`, which takes `taken`, can be asked, without what other code
    computes beforehand. Short of what its components would not do."""
    names = [_NAMES.get(each, each) for each in taken if not _INTERNAL.search(each)]
    names += _own(kind)
    if {"image", "mask"} <= {*names} and makes(kind.__name__) == "image":
        names.append("outpaint")
    return list(dict.fromkeys(names))


def check_typed(name: str, value: Any, parameter: inspect.Parameter) -> None:
    """Raises InvalidRequest for what is neither a number nor yes or no where the pipeline says that it wants such."""
    wanted = _types(parameter.annotation)
    if wanted and wanted <= _NUMBERS and not hasattr(value, "__float__"):
        raise InvalidRequest(f"{name} must be a number, not {value!r:.80}")
    if wanted == {"bool"} and not hasattr(value, "__bool__"):
        raise InvalidRequest(f"{name} must be true or false, not {value!r:.80}")


@contextmanager
def blamed(options: PictureOptions, steps: Callable[[], int]) -> Iterator[None]:
    """What the code inside raises before it has done a step of `steps()` becomes InvalidRequest, if the request has
    options of the pipeline's own: libraries check such late, or never."""
    before = steps()
    try:
        yield
    except KamadoError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        if not options.extra or steps() > before:
            raise
        lines = [line.strip() for line in _CLASS.sub(r"\1", str(error)).splitlines() if line.strip()]
        reason = lines[0][:_SHOWN] if lines else type(error).__name__
        given = ", ".join(options.extra)
        raise InvalidRequest(f"the pipeline could not use what it was given ({given}): {reason}") from error


def unused_negative(pipeline: Any, negative: str | None, arguments: Mapping[str, Any]) -> list[str]:
    """A note, if a pipeline that has run left the negative prompt out."""
    kind: Any = type(pipeline)  # mypy doubts that classes hash
    parameters = call_parameters(kind)
    if not negative or "negative_prompt" not in parameters:
        return []
    if "true_cfg_scale" in parameters:
        scale = arguments.get("true_cfg_scale", parameters["true_cfg_scale"].default)
        # Where there are two and the other is not optional, `guidance` is the other.
        plain = parameters.get("guidance_scale")
        option = "guidance" if plain is None or plain.default is None else "true_cfg_scale"
        guided = not isinstance(scale, (int, float)) or scale > 1
    else:
        option, guided = "guidance", getattr(pipeline, "do_classifier_free_guidance", None) is not False
    if guided:
        return []
    return [f"negative was not used: without classifier-free guidance ({option} above 1) models do not read it"]


def _types(annotation: Any) -> set[str]:
    """Names of the types that an annotation has beside None."""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", None)
    if not isinstance(annotation, type) and not isinstance(annotation, str):
        text = str(annotation)
    text = re.sub(r"(?:typing\.)?Optional\[(\w+)\]", r"\1", text or "")
    return {part.strip() for part in text.split("|")} - {"None"}


def _own(kind: Any) -> list[str]:
    """Kamado's options for pipelines of class `kind`."""
    parts: set[str] = set(kind._get_signature_keys(kind)[0])
    takes_picture = control.sibling(kind, "image") is not None
    made = makes(kind.__name__)
    having = {
        "image": takes_picture or class_taking("image", kind) is not None,
        "video": class_taking("video", kind) is not None,
        "audio": class_taking("audio", kind) is not None,
        "last_image": takes_conditions(kind),
        "fps": made == "video",
        "seconds": made in ("video", "audio"),
        "mask": control.sibling(kind, "mask") is not None,
        "strength": takes_picture,
        "hires": takes_picture,
        "hires_strength": takes_picture,
        "hires_steps": takes_picture,
        "scheduler": "scheduler" in parts,
        "tiling": "vae" in parts,
        "adapters": bool(parts & {"unet", "transformer"}),
        "step_cache": bool(parts & {"unet", "transformer"}),
        "weighting": {"unet", "tokenizer"} <= parts,
    }
    return [*(name for name, has in having.items() if has), "seed", "n", "preview_every", "deadline_s"]
