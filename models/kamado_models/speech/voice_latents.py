"""Voices that are latents of a codec, frame by frame: in a file, or by the name of one beside the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kamado.checkpoint.safetensors_header import read_safetensors_header
from kamado.checkpoint.types import Checkpoint
from kamado.errors import InvalidRequest, KamadoError

from .arrays import MAX_BYTES, read_npy
from .speaking import known_voice
from .vectors import voice_files

SUFFIXES = (".safetensors", ".npy")


def preset_option(name: str, value: Any) -> str | Path:
    """See kamado.options.Check. The name of a voice, or a file."""
    if isinstance(value, Path) or (isinstance(value, str) and value.lower().endswith(SUFFIXES)):
        path = Path(value)
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            raise InvalidRequest(f"{name}: there is no file {path} ({', '.join(SUFFIXES)})")
        return path
    if not isinstance(value, str) or not value.strip() or len(value) > 200:
        raise InvalidRequest(f"{name} must be the name of a voice, or a file of one, not {value!r:.80}")
    return value


def presets(checkpoint: Checkpoint) -> Mapping[str, Path]:
    """The voices beside a model, by name."""
    return {name: path for name, path in voice_files(checkpoint).items() if path.suffix.lower() in SUFFIXES}


def chosen_file(checkpoint: Checkpoint, preset: str | Path | None) -> Path | None:
    """The file of the voice that was asked for, or else of the first one beside the model; None where there is none.
    Raises InvalidRequest."""
    if isinstance(preset, Path):
        return preset
    files = presets(checkpoint)
    if preset is None and not files:
        return None
    if preset is not None and not files:
        raise InvalidRequest(f"no voice {preset!r:.80} lies beside {checkpoint.reference}: give a file of latents")
    name = min(files) if preset is None else known_voice(preset, sorted(files), checkpoint.reference)
    return files[name]


def read_latents(path: Path, size: int) -> Any:
    """The latents (frames, size) in a file, as numpy float32. Raises InvalidRequest."""
    import numpy as np

    try:
        found = read_npy(path) if path.suffix.lower() == ".npy" else _read_safetensors(path)
    except (OSError, ValueError, KeyError, EOFError, KamadoError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InvalidRequest(f"the voice {path} cannot be read: {reason}") from error
    if found.ndim == 3 and found.shape[0] == 1:
        found = found[0]
    if found.ndim != 2 or found.shape[1] != size or not found.size or not np.isfinite(found).all():
        raise InvalidRequest(
            f"the voice {path} is none for this model: it holds {list(found.shape)}, and latents are finite numbers "
            f"[frames, {size}]"
        )
    return found.astype(np.float32)


def _read_safetensors(path: Path) -> Any:
    from safetensors import safe_open

    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    names = list(read_safetensors_header(path).tensors)
    if len(names) != 1:
        raise ValueError(f"it has {len(names)} tensors, and latents are one")
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(names[0]).float().numpy()
