"""Which kind of output is asked for: options of one kind are an error for a model of another kind, never ignored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidRequest
from ..options import Check, anything, number, whole
from ..options import text as text_of
from ..picture_requests import PICTURE_OPTION_NAMES
from ..turns import is_path
from .media_options import INPUT_FLAGS, MEDIA_FLAGS, Given
from .picture_options import PICTURE_FLAGS
from .prompt import check_text

if TYPE_CHECKING:
    from .loading import Abilities

SHARED = ("seed", "n")
"""Options of every kind of model."""
_RENAMED = {"chat": "--raw", "files": "--file", "adapters": "--adapter", "ip_adapter_image": "--adapter-image"}


def check_values(given: Given) -> None:
    """Find values that are impossible for every kind of model, before one is looked for. Raises InvalidRequest."""
    text, picture = given.text, given.picture
    for name in ("system", "stop", "suffix", "repository", "filename"):
        check_text(f"--{name}", "".join(text.get(name, "")))
    for name in ("negative", "scheduler", "weighting"):
        check_text(f"--{name}", str(picture.get(name, "")))
    check_text_options({name: value for name, value in text.items() if name not in SHARED})
    check_picture_options({name: value for name, value in picture.items() if name != "prompt"})
    for name, value in given.media.items():
        _MEDIA_CHECKS.get(name, anything)(f"--{name}", value)
    shared = {name: value for name, value in text.items() if name in SHARED}
    try:
        check_text_options(shared)
    except InvalidRequest:
        check_picture_options(shared)


_MEDIA_CHECKS: Mapping[str, Check] = {
    "frames": whole(1, 100_000),
    "fps": number(0.0, 1000.0, above=True),
    "seconds": number(0.0, 86_400.0, above=True),
    "voice": text_of(),
    "language": text_of(longest=100),
    "task": text_of(longest=100),
}


def check_text_options(options: Mapping[str, Any]) -> None:
    """Raises InvalidRequest."""
    from ..requests import resolve_text_options

    resolve_text_options({**options, "prompt": "x"})


def check_picture_options(options: Mapping[str, Any]) -> None:
    """Raises InvalidRequest. Files are not opened."""
    from ..picture_requests import resolve_picture_options

    resolve_picture_options(options)


def options_for(found: Abilities, model: str, given: Given) -> tuple[str, dict[str, Any]]:
    """("text", "image" or "media", the options) of a request to a model. Raises InvalidRequest, which names an option
    that is of another kind."""
    text, picture, media = given.text, given.picture, given.media
    makes = found.makes
    if found.takes is not None:
        options = {**text, **picture, **media}
        if foreign := [name for name in options if name not in found.takes.names and name not in found.takes.aliases]:
            raise InvalidRequest(f"{_flag(foreign[0])} cannot be used with {model}, {found.takes.what}")
        checked = found.takes.checked(options, whole_request=False)
        return "media", {
            name: as_paths(value) if name in found.takes.inputs else value for name, value in checked.items()
        }
    if "prompt" in picture:
        raise InvalidRequest("--option prompt cannot be used: it is an argument")
    if "text" in makes:
        seen = {name: value for name, value in {**picture, **media}.items() if name in INPUT_FLAGS}
        if others := [name for name in (*picture, *media) if name not in seen]:
            kind = "picture models" if others[0] in picture else "other media"
            raise InvalidRequest(f"{_flag(others[0])} is for {kind}, and {model} makes text")
        check_text_options({**text, **seen})
        return "text", {**text, **seen}
    if foreign := [name for name in text if name not in SHARED]:
        raise InvalidRequest(f"{_flag(foreign[0])} is for text models, and {model} makes {_made(makes)}")
    if "image" in makes and media:
        raise InvalidRequest(f"{_flag(next(iter(media)))} is for other media, and {model} makes pictures")
    if foreign := [name for name in media if name not in PICTURE_OPTION_NAMES]:
        raise InvalidRequest(f"{_flag(foreign[0])} cannot be used with {model}, which makes {_made(makes)}")
    options = {**text, **picture, **media}
    check_picture_options(options)
    return "image", options


def _made(makes: Sequence[str]) -> str:
    return "pictures" if "image" in makes else " and ".join(makes)


def opened(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with pictures, videos and sounds in place of paths: what cannot be opened is found out before a model
    is loaded. Raises InvalidRequest."""
    from ..media.inputs import MEDIA_INPUTS, opened_media

    return {
        name: _alone(opened_media({name: value}, MEDIA_INPUTS)[name]) if name in MEDIA_INPUTS else value
        for name, value in options.items()
    }


def as_paths(value: Any) -> Any:
    """A file that was named, or a list of such, as paths. Data URLs, and what is no text, stay as they are."""
    if isinstance(value, (list, tuple)):
        return [as_paths(item) for item in value]
    return Path(value) if is_path(value) else value


def as_typed(options: Mapping[str, Any], show: Callable[[Any], str] = str) -> dict[str, Any]:
    """The options for a JSON document: paths as texts, which `show` makes of them."""

    def shown(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [shown(item) for item in value]
        return show(value) if isinstance(value, Path) else value

    return {name: shown(value) for name, value in _with_files(options, show).items()}


def _with_files(options: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """The options with input files changed; one of a list that holds one stands alone."""
    from ..media.inputs import MEDIA_INPUTS

    found = dict(options)
    for name in MEDIA_INPUTS:
        if name in found:
            value = found[name]
            items = [change(item) for item in (value if isinstance(value, list) else [value])]
            found[name] = _alone(items)
    return found


def _alone(value: Any) -> Any:
    """One of a list that holds one."""
    if not isinstance(value, (list, tuple)):
        return value
    return value[0] if len(value) == 1 else list(value)


def _flag(name: str) -> str:
    """An option as it was typed."""
    if name in _RENAMED:
        return _RENAMED[name]
    from ..requests import TEXT_OPTION_NAMES

    typed = name in TEXT_OPTION_NAMES or name in (*PICTURE_FLAGS, *MEDIA_FLAGS)
    return f"--{name.replace('_', '-')}" if typed else f"--option {name}"
