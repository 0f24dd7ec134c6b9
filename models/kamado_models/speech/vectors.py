"""Voices that are vectors of numbers (x-vectors): given as such, in a file, or by the name of one beside the model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kamado.checkpoint.paths import below
from kamado.checkpoint.safetensors_header import read_safetensors_header
from kamado.checkpoint.strict_json import read_bounded
from kamado.checkpoint.types import Checkpoint
from kamado.errors import InvalidRequest, KamadoError

from .arrays import read_npy
from .speaking import known_voice

SUFFIXES = (".npy", ".json", ".safetensors")
FOLDERS = ("voices", "speaker_embeddings")
"""Of a checkpoint, in which files of voices may lie: `voices/NAME.npy`."""
MAX_NUMBERS = 1 << 16
MAX_FILE_BYTES = 16 << 20

Voice = str | tuple[float, ...]


def voice_option(name: str, value: Any) -> Voice:
    """See kamado.options.Check. A list of numbers, or a file that holds one (.npy, .json, .safetensors with one
    tensor), becomes a tuple; any other text is the name of a voice."""
    if isinstance(value, Path) or (isinstance(value, str) and value.lower().endswith(SUFFIXES)):
        return read_vector(Path(value), name)
    if isinstance(value, str):
        if not value.strip() or len(value) > 200:
            raise InvalidRequest(f"{name} must be the name of a voice, a file or a list of numbers, not {value!r:.80}")
        return value
    return _numbers(value, name)


def read_vector(path: Path, what: str) -> tuple[float, ...]:
    """The numbers in a file, in the order of memory. Raises InvalidRequest."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InvalidRequest(f"{what}: {path} is no file of a voice: it has more than {MAX_FILE_BYTES} bytes")
        return _numbers(_READERS[path.suffix.lower()](path), f"{what} ({path})")
    except FileNotFoundError as error:
        raise InvalidRequest(f"{what}: there is no file {path}") from error
    except (OSError, ValueError, KeyError, EOFError, RecursionError, KamadoError) as error:
        if isinstance(error, InvalidRequest):
            raise
        reason = (str(error).splitlines() or ["unreadable"])[0][:200]
        raise InvalidRequest(f"{what}: {path} holds no vector: {reason}") from error


def voice_files(checkpoint: Checkpoint) -> Mapping[str, Path]:
    """The voices that lie beside a model, by name."""
    found: dict[str, Path] = {}
    for folder in FOLDERS:
        home = checkpoint.root / folder
        for path in sorted(home.iterdir()) if home.is_dir() else ():
            if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
                found.setdefault(path.stem, below(checkpoint.root, f"{folder}/{path.name}"))
    return found


def vector_for(checkpoint: Checkpoint, voice: Voice | None, size: int) -> tuple[float, ...]:
    """`size` numbers: those of the voice that was asked for, or else of the first one beside the model. Raises
    InvalidRequest."""
    files = voice_files(checkpoint)
    if voice is None:
        if not files:
            raise InvalidRequest(
                f"{checkpoint.reference} needs a voice: a list of {size} numbers (a speaker embedding), or a file of "
                "them: .npy, .json, .safetensors (--voice FILE)"
            )
        voice = min(files)
    numbers = voice
    if isinstance(voice, str):
        if not files:
            raise InvalidRequest(
                f"no voice {voice!r:.80} lies beside {checkpoint.reference}; give a file of {size} numbers: .npy, "
                ".json, .safetensors"
            )
        numbers = read_vector(files[known_voice(voice, sorted(files), checkpoint.reference)], "voice")
    if len(numbers) != size:
        raise InvalidRequest(f"a voice for {checkpoint.reference} has {size} numbers, not {len(numbers)}")
    return tuple(map(float, numbers))


def _numbers(value: Any, what: str) -> tuple[float, ...]:
    values = value.tolist() if hasattr(value, "tolist") else value
    while isinstance(values, (list, tuple)) and len(values) == 1 and isinstance(values[0], (list, tuple)):
        values = values[0]  # (1, size), as feature extractors make it
    if not isinstance(values, (list, tuple)) or not 0 < len(values) <= MAX_NUMBERS:
        raise InvalidRequest(f"{what} must be a voice: its name, a file, or a list of numbers")
    for each in values:
        if isinstance(each, bool) or not isinstance(each, (int, float)) or not math.isfinite(each):
            raise InvalidRequest(f"{what} must be a list of finite numbers; one of them is {each!r:.40}")
    return tuple(map(float, values))


def _read_json(path: Path) -> Any:
    value = json.loads(read_bounded(path, max_bytes=MAX_FILE_BYTES))
    return next((each for each in value.values() if isinstance(each, list)), None) if isinstance(value, dict) else value


def _read_safetensors(path: Path) -> Any:
    from safetensors import safe_open

    names = list(read_safetensors_header(path).tensors)
    if len(names) != 1:
        raise InvalidRequest(f"{path} has {len(names)} tensors; the file of a voice has one")
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(names[0]).float()


_READERS = {".npy": read_npy, ".json": _read_json, ".safetensors": _read_safetensors}
