"""Options of requests that continue code, or fill it in: what is around the cursor, and where to stop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import InvalidRequest
from .turns import KINDS

CODE_OPTION_NAMES = ("suffix", "files", "repository", "filename", "stop_at")
STOPS_AT = ("block",)
MAX_FILES = 10_000
_MAX_NAME = 1000


def resolve_code(given: Mapping[str, Any]) -> dict[str, Any]:
    """Check those of CODE_OPTION_NAMES that were given, in a request for text. Raises InvalidRequest."""
    code = {name: given[name] for name in CODE_OPTION_NAMES if name in given}
    if not code:
        return code
    names = " and ".join(code)
    if "prompt" not in given:
        raise InvalidRequest(f"{names} can be used with prompt alone, the text before the cursor")
    wrong = [name for name in ("system", *KINDS) if given.get(name) is not None]
    if given.get("chat") is True or wrong:
        raise InvalidRequest(
            f"with {names} the prompt is the text before a cursor, no chat; leave out {wrong[0] if wrong else 'chat'}"
        )
    if "suffix" in code and not isinstance(code["suffix"], str):
        raise InvalidRequest(f"suffix must be text, not {type(code['suffix']).__name__}")
    for name in ("repository", "filename"):
        if name in code:
            _check_name(name, code[name])
    if "files" in code:
        code["files"] = _files(code["files"])
    if "stop_at" in code and code["stop_at"] not in STOPS_AT:
        raise InvalidRequest(f"stop_at must be {' or '.join(STOPS_AT)}, not {code['stop_at']!r:.80}")
    return code


def _files(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping) or len(value) > MAX_FILES:
        raise InvalidRequest(f'files must be {{"path": "text"}}, at most {MAX_FILES} of them, not {value!r:.80}')
    for path, text in value.items():
        _check_name("files: a path", path)
        if not isinstance(text, str):
            raise InvalidRequest(f"files: {path} must be text, not {type(text).__name__}")
    return dict(value)


def _check_name(what: str, value: Any) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_NAME or len(value.splitlines()) != 1:
        raise InvalidRequest(f"{what} must be one line of text, not {value!r:.80}")
