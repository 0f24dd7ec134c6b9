"""Presets: load settings under a name, as TOML. They come with the package or from a file.

Every key is optional; what is missing is left to the defaults of `Runtime` and `Runtime.load`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import InvalidRequest
from .units import parse_bytes

PRESET_KEYS = ("device", "memory", "dtype", "quant", "kv_tokens", "kv_dtype", "offload", "step_budget")
MAX_PRESET_BYTES = 64 * 1024

_FOLDER = Path(__file__).parent / "configs"
_COUNTS = ("kv_tokens", "step_budget")


def preset_names() -> tuple[str, ...]:
    """Names of the presets that come with the package, in alphabetical order."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


def load_preset(name_or_file: str) -> Mapping[str, str | int]:
    """The settings of a preset of the package (`"cpu"`) or of a TOML file (`"./mine.toml"`): those that it names, of
    `PRESET_KEYS`. What has a path separator or ends in `.toml` is a file. Whether a device, dtype or quantization is to
    be had is judged where it is used. Raises InvalidRequest.
    """
    if "/" in name_or_file or "\\" in name_or_file or name_or_file.endswith(".toml"):
        path = Path(name_or_file).expanduser()
    elif name_or_file in preset_names():
        path = _FOLDER / f"{name_or_file}.toml"
    else:
        known = ", ".join(preset_names())
        raise InvalidRequest(f"no preset is called {name_or_file!r}; there are {known}; or give a .toml file's path")
    return _check(path, _read(path))


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_PRESET_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InvalidRequest(f"cannot read the preset {str(path)!r}: {reason}") from None
    if len(content) > MAX_PRESET_BYTES:
        raise InvalidRequest(f"the preset {str(path)!r} is longer than {MAX_PRESET_BYTES} bytes; that is no preset")
    try:
        return tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the preset {str(path)!r} is not TOML: {error}") from None


def _check(path: Path, settings: dict[str, Any]) -> dict[str, str | int]:
    for key, value in settings.items():
        if key not in PRESET_KEYS:
            raise InvalidRequest(f"{path}: unknown key {key!r}; a preset may have {', '.join(PRESET_KEYS)}")
        # bool is an int to Python, but `kv_tokens = true` is a mistake
        if key in _COUNTS:
            if type(value) is not int or not 0 < value < 2**31:
                raise InvalidRequest(f"{path}: {key} must be a whole number above 0, not {value!r}")
        elif key == "memory":
            if type(value) not in (int, str):
                raise InvalidRequest(f"{path}: memory must be a size like '8GiB', not {value!r}")
            parse_bytes(value)
        elif not isinstance(value, str):
            raise InvalidRequest(f"{path}: {key} must be a text, not {value!r}")
    return settings
