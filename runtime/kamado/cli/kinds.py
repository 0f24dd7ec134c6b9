"""Which kind of output is asked for: options of one kind are an error for a model of another kind, never ignored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import InvalidRequest
from .picture_options import PICTURE_FLAGS
from .prompt import check_text

SHARED = ("seed", "n")
"""Options of every kind of model."""
_RENAMED = {"chat": "--raw", "adapters": "--adapter", "ip_adapter_image": "--adapter-image"}


def check_values(text: Mapping[str, Any], picture: Mapping[str, Any]) -> None:
    """Find values that are impossible for every kind of model, before one is looked for. Raises InvalidRequest."""
    for name in ("system", "stop"):
        check_text(f"--{name}", "".join(text.get(name, "")))
    for name in ("negative", "scheduler", "weighting"):
        check_text(f"--{name}", str(picture.get(name, "")))
    check_text_options({name: value for name, value in text.items() if name not in SHARED})
    check_picture_options(picture)
    shared = {name: value for name, value in text.items() if name in SHARED}
    try:
        check_text_options(shared)
    except InvalidRequest:
        check_picture_options(shared)


def check_text_options(options: Mapping[str, Any]) -> None:
    """Raises InvalidRequest."""
    from ..requests import resolve_text_options

    resolve_text_options({**options, "prompt": "x"})


def check_picture_options(options: Mapping[str, Any]) -> None:
    """Raises InvalidRequest. Files are not opened."""
    from ..picture_requests import resolve_picture_options

    resolve_picture_options(options)


def options_for(
    makes: Sequence[str], model: str, text: Mapping[str, Any], picture: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """("text" or "image", the options) of a request to a model that makes `makes`. Raises InvalidRequest, which names
    an option that is of another kind."""
    if "text" in makes:
        if picture:
            raise InvalidRequest(f"{_flag(next(iter(picture)))} is for picture models, and {model} makes text")
        check_text_options(text)
        return "text", dict(text)
    if "image" in makes:
        foreign = [name for name in text if name not in SHARED]
        if foreign:
            raise InvalidRequest(f"{_flag(foreign[0])} is for text models, and {model} makes pictures")
        options = {**text, **picture}
        check_picture_options(options)
        return "image", options
    raise InvalidRequest(f"{model} makes {' and '.join(makes)}, which this command cannot ask for")


def opened(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with pictures in place of paths: what cannot be opened is found out before a model is loaded.
    Raises InvalidRequest."""
    from ..media.pictures import open_picture

    return _with_files(options, open_picture)


def as_typed(options: Mapping[str, Any], show: Callable[[Any], str] = str) -> dict[str, Any]:
    """The options for a JSON document: paths as texts, which `show` makes of them."""
    return _with_files(options, show)


def _with_files(options: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """The options with input files changed; one of a list that holds one stands alone."""
    from ..media.inputs import INPUTS

    found = dict(options)
    for name in INPUTS:
        if name in found:
            value = found[name]
            items = [change(item) for item in (value if isinstance(value, list) else [value])]
            found[name] = items[0] if len(items) == 1 else items
    return found


def _flag(name: str) -> str:
    """An option as it was typed."""
    if name in _RENAMED:
        return _RENAMED[name]
    from ..requests import TEXT_OPTION_NAMES

    typed = name in TEXT_OPTION_NAMES or name in PICTURE_FLAGS
    return f"--{name.replace('_', '-')}" if typed else f"--option {name}"
