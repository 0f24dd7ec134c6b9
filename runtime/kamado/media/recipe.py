"""Recipes as values: their JSON form, what they ask for, and what is different now.

    {"kamado": version,
     "model": {"reference", "revision", "files": {name: SHA-256}},
     "options": {"prompt", "negative", "width", "height", "steps", "guidance", "strength", "scheduler", "seed", ...},
     "components": {name: {"reference", "revision", "files"}, or null for one that was left out},
     "base": {"reference", "revision", "files"} of the pipeline that completed a single file, or "tokenizers", if it
         had no more than these,
     "adapters": [{"reference", "weight", "sha256"}],
     "unrecorded": [names of options that JSON cannot hold, like tensors]; not there if there are none,
     "inputs": {"image": {"sha256"}, "mask": {...}}, of several pictures a list,
     "pipeline": name of the class that made it,
     "device", "hardware": name of the product, "threads" of a CPU, "dtype", "quant", "versions": {library: version},
     "batched": true if forwards were shared with other pictures; otherwise it is not there}

Recipes come out of files from strangers: any field may be missing or of the wrong type. Readers here take a wrong type
for a missing field, and raise InvalidRequest only where nothing can be done without it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..checkpoint.reference import HubReference, PypiReference, parse_reference
from ..checkpoint.strict_json import parse_json_object
from ..errors import InvalidRequest, ModelNotFound, UnsupportedCheckpoint
from ..quant import recorded
from ..units import format_bytes

MAX_RECIPE_BYTES = 1 << 20
MAX_DIFFERENCES = 20
"""Differences of one kind that are listed; the rest is counted."""
FINE_ROUNDING_LEVELS = 1
"""In float32 on a CPU, where a batch moves one value in 10 000 by one level."""
COARSE_ROUNDING_LEVELS = 16
"""In half precision, quantized, and on GPUs, whose float32 may have the short factors of TF32. 25 steps in bfloat16
with other sums differ by up to 6 levels; long ones of large models by more."""
_SHOWN_CHARACTERS = 80
_FLAT = ("device", "hardware", "threads", "dtype", "quant", "kamado")
_LARGEST_WEIGHT = 1e6
# Half characters have no UTF-8, and the two noncharacters no place in XML; JSON has an escape for each.
_ESCAPED = re.compile("[\ud800-\udfff\ufffe\uffff]")
_MISSING = object()


def recipe_json(recipe: Mapping[str, Any]) -> str:
    """The one JSON text of a recipe: compact, keys in order, fit for UTF-8 and XML. `parse_recipe` reads it.

    Raises InvalidRequest for values without a JSON form, nesting that no reader takes, or over MAX_RECIPE_BYTES.
    """
    try:
        text = json.dumps(
            recipe, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"), default=_as_dict
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"the recipe cannot be written: {_shown(str(error))}") from error
    text = _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    parse_recipe(text, what="the recipe")
    return text


def parse_recipe(text: str, *, what: str, limit: int = MAX_RECIPE_BYTES) -> dict[str, Any]:
    """The recipe in a JSON text of at most `limit` bytes; `what` names it in errors. Raises InvalidRequest."""
    if len(text) > limit or len(data := text.encode("utf-8", "replace")) > limit:
        raise InvalidRequest(f"{what} is larger than {format_bytes(limit)}, which no recipe should be")
    try:
        return parse_json_object(data, what=what)
    except UnsupportedCheckpoint as error:
        raise InvalidRequest(str(error)) from error


def recipe_request(recipe: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """(reference of the model, options of the request) that make the output again. Raises InvalidRequest.

    The reference is pinned to the revision in the recipe where it names a hub or a package. What the recipe says is not
    to be trusted: the reference may be any path, and nothing here allows a checkpoint's code to run.
    """
    model = _mapping(recipe.get("model"))
    reference = model.get("reference")
    if not isinstance(reference, str) or not reference:
        raise InvalidRequest("the recipe does not say which model it was made with; give the model")
    options = recipe.get("options")
    if not isinstance(options, Mapping):
        raise InvalidRequest("the recipe holds no options, so there is nothing to make again")
    pinned = _pinned(reference, _text(model.get("revision")))
    return pinned, {str(name): value for name, value in options.items() if value is not None}


def check_recorded(recipe: Mapping[str, Any], source: Any) -> None:
    """Raise InvalidRequest if the output in the file `source` was made with options that its recipe could not hold."""
    names = recipe.get("unrecorded")
    if isinstance(names, list) and names:
        listed = ", ".join(map(_shown, names[:MAX_DIFFERENCES]))
        raise InvalidRequest(
            f"{source} was made with {listed}, which its recipe does not hold, so it cannot be made again from it; "
            "call Model.generate with the options in the recipe and these"
        )


def rounding_levels(recipe: Mapping[str, Any], *, batched: bool = False) -> int:
    """How far, of 255, a value of the picture may be off when nothing is different: 0 if it was made alone, as was the
    other one (`batched`: it was not), else what other orders of summation do."""
    if recipe.get("batched") is not True and not batched:
        return 0
    is_fine = recipe.get("device") == "cpu" and recipe.get("dtype") == "float32" and recipe.get("quant") == "none"
    return FINE_ROUNDING_LEVELS if is_fine else COARSE_ROUNDING_LEVELS


def recipe_loading(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """How the model is to be loaded to make the output again, as far as the recipe says: `dtype`, `quant`, `components`
    as {name: reference or None}, `base`, and `adapters` as [{"reference", "weight"}]. The permission to run a
    checkpoint's code is never among it."""
    found: dict[str, Any] = {"dtype": recipe["dtype"]} if isinstance(recipe.get("dtype"), str) else {}
    quant = recorded(recipe.get("quant"))
    if isinstance(quant, Mapping) or (isinstance(quant, str) and not quant.endswith(".toml")):  # no file is opened
        found["quant"] = quant
    components = {
        str(name): facts and _pinned(facts["reference"], _text(facts.get("revision")))
        for name, facts in _mapping(recipe.get("components")).items()
        if facts is None or (isinstance(facts, Mapping) and _text(facts.get("reference")))
    }
    found |= {"components": components} if components else {}
    if _text((base := _mapping(recipe.get("base"))).get("reference")):
        found["base"] = _pinned(base["reference"], _text(base.get("revision")))
    adapters = [
        {"reference": adapter["reference"], "weight": _weight(adapter)}
        for adapter in _mappings(recipe.get("adapters"))
        if isinstance(adapter.get("reference"), str)
    ]
    return found | ({"adapters": adapters} if adapters else {})


def differences(recipe: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """What keeps an output of `current` from being that of `recipe`, as sentences; empty if nothing does.

    Compared are model files, components, base, adapters, input files, device, hardware, threads, dtype, quantization
    and versions; not the options. What `recipe` does not mention is not compared, but for components, which it always
    does.
    """
    then_model, now_model = _mapping(recipe.get("model")), _mapping(current.get("model"))
    found = _bounded("model files", _files(_mapping(then_model.get("files")), _mapping(now_model.get("files"))))
    found += _bounded("components", _components(recipe, current))
    for name in ("base", "tokenizers"):
        then, now = _mapping(recipe.get(name)), _mapping(current.get(name))
        found += _bounded(name, _files(_mapping(then.get("files")), _mapping(now.get("files")), of=name))
    found += _bounded("adapters", _adapters(recipe, current))
    then_inputs, now_inputs = _digests(recipe.get("inputs")), _digests(current.get("inputs"))
    found += _bounded("inputs", _changes("input ", then_inputs, now_inputs, digests=True))
    flat = {name: recipe[name] for name in _FLAT if recipe.get(name) is not None}
    if "quant" in flat:
        flat["quant"] = recorded(flat["quant"])
    found += list(_changes("", flat, current))
    versions = _changes("version of ", _mapping(recipe.get("versions")), _mapping(current.get("versions")))
    return found + _bounded("versions", versions)


def _files(then: Mapping[Any, Any], now: Mapping[Any, Any], *, of: str = "model") -> Iterator[str]:
    yield from _changes(f"{of} file ", then, now, digests=True)
    if then:
        for name in now:
            if name not in then:
                yield f"{of} file {_shown(name)} is there now and was not then"


def _components(recipe: Mapping[str, Any], current: Mapping[str, Any]) -> Iterator[str]:
    then, now = _mapping(recipe.get("components")), _mapping(current.get("components"))
    for name in [*then, *(name for name in now if name not in then)]:
        before, after = then.get(name, _MISSING), now.get(name, _MISSING)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            files = _mapping(before.get("files")), _mapping(after.get("files"))
            yield from _files(*files, of=f"component {_shown(name)}")
        elif before is not after:
            yield f"component {_shown(name)}: another one now"


def _adapters(recipe: Mapping[str, Any], current: Mapping[str, Any]) -> Iterator[str]:
    then, now = _mappings(recipe.get("adapters")), _mappings(current.get("adapters"))
    for adapter in then:
        name, weight = _shown(adapter.get("reference")), _weight(adapter)
        same = [other for other in now if _identity(other) == _identity(adapter)]
        if not same:
            yield f"adapter {name}: missing, or other content now"
        elif weight not in (weights := [_weight(other) for other in same]):
            yield f"adapter {name}: weight {weight:g} then, {weights[0]:g} now"
    if "adapters" in recipe and len(now) > len(then):
        yield f"adapters: {len(then)} then, {len(now)} now"


def _changes(label: str, then: Mapping[Any, Any], now: Mapping[Any, Any], *, digests: bool = False) -> Iterator[str]:
    for name, before in then.items():
        after = now.get(name, _MISSING)
        if after is _MISSING:
            yield f"{label}{_shown(name)}: {'missing now' if digests else f'{_shown(before)} then, none now'}"
        elif after != before:
            yield f"{label}{_shown(name)}: " + (
                "other content now" if digests else f"{_shown(before)} then, {_shown(after)} now"
            )


def _bounded(kind: str, found: Iterator[str]) -> list[str]:
    listed = list(found)
    rest = len(listed) - MAX_DIFFERENCES
    return listed[:MAX_DIFFERENCES] + ([f"{rest} more differences of {kind}"] if rest > 0 else [])


def _pinned(reference: str, revision: str | None) -> str:
    whole, separator, folder = reference.partition("#")
    return _pinned_whole(whole, revision) + separator + folder


def _pinned_whole(reference: str, revision: str | None) -> str:
    try:
        parsed = parse_reference(reference, look=lambda path: None)
        if isinstance(parsed, HubReference) and revision is not None:
            pinned = str(HubReference(parsed.repository, revision))
        elif isinstance(parsed, PypiReference) and revision is not None:
            pinned = str(PypiReference(parsed.package, revision))
        else:
            return reference
        return str(parse_reference(pinned, look=lambda path: None))
    except ModelNotFound:  # a path, which is looked for when it is loaded
        return reference


def _digests(inputs: Any) -> dict[Any, Any]:
    """What each input was, by its name: one digest, or those of a list."""
    return {
        name: [item.get("sha256") for item in _mappings(facts if isinstance(facts, list) else [facts])]
        for name, facts in _mapping(inputs).items()
    }


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def _mappings(value: Any) -> list[Mapping[Any, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, (list, tuple)) else []


def _identity(adapter: Mapping[Any, Any]) -> Any:
    return adapter.get("sha256") or adapter.get("reference")


def _weight(adapter: Mapping[Any, Any]) -> float:
    value = adapter.get("weight")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= _LARGEST_WEIGHT:
        return 1.0
    return float(value)


def _shown(value: Any) -> str:
    """A stranger's value for a terminal: short, and without control characters."""
    text = value if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def _as_dict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
