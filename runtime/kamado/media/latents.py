"""Latents from arrays and files; `vectors.py` writes them."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidRequest, KamadoError
from ..outputs import Embedding
from .opening import shown

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_VALUES = 1 << 28
_MAX_JSON_BYTES = 1 << 28
_TENSOR = "embedding"
_NAMES = ("embeddings", "latents", "samples")


def open_latents(source: Any) -> NDArray[Any]:
    """Latents, float32 (channels, ...), of one input: an array, nested lists, an Embedding, a file of `vectors.py`,
    or a .safetensors file with one tensor (or one named latents). Raises InvalidRequest, also for values that are not
    finite."""
    import numpy as np

    if isinstance(source, (str, os.PathLike)):
        array = _read(Path(source))
    elif isinstance(source, Embedding):
        array = source.vectors.reshape(len(source.vectors), *source.shape) if source.shape else source.vectors
    else:
        array = _array(source, "latents")
    found = np.asarray(array, dtype=np.float32)
    if found.ndim in (4, 5) and found.shape[0] == 1:
        found = found[0]
    if found.ndim not in (3, 4) or not found.size:
        raise InvalidRequest(
            f"latents must be [channels, height, width], or [channels, frames, height, width], not {list(found.shape)}"
        )
    if found.size > MAX_VALUES:
        raise InvalidRequest(f"latents hold {found.size} values; at most {MAX_VALUES} are read")
    if not np.isfinite(found).all():
        raise InvalidRequest("latents hold NaN or infinity")
    return found


def _array(source: Any, what: str) -> Any:
    import numpy as np

    try:
        return np.asarray(source, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"{what} must be numbers, as many in each row: {error}") from error


def _read(path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix not in (".json", ".safetensors"):
        raise InvalidRequest(f"{shown(path)}: latents are read from .safetensors and .json files")
    if not path.is_file():
        raise InvalidRequest(f"{shown(path)} does not exist, or is no file; check the path")
    try:
        return _read_json(path) if suffix == ".json" else _read_safetensors(path)
    except InvalidRequest:
        raise
    except KamadoError as error:  # of a checkpoint's file, which this is not; it names the file
        raise InvalidRequest(str(error)) from error
    except OSError as error:
        raise InvalidRequest(f"{shown(path)} cannot be read: {error.strerror or error}") from error


def _read_json(path: Path) -> Any:
    from ..checkpoint.strict_json import read_json_object

    document = read_json_object(path, max_bytes=_MAX_JSON_BYTES)
    if _TENSOR not in document:
        raise InvalidRequest(f"{shown(path)} holds no embedding of one input")
    array, shape = _array(document[_TENSOR], shown(path)), document.get("shape", [])
    sizes = shape if isinstance(shape, list) and all(isinstance(size, int) and size > 0 for size in shape) else []
    if not sizes or math.prod(sizes) != array.size:
        raise InvalidRequest(f"{shown(path)}: its shape {shape!r:.80} is not that of its {array.size} numbers")
    return array.reshape(sizes)


def _read_safetensors(path: Path) -> Any:
    from ..checkpoint.safetensors_header import read_safetensors_header

    tensors = read_safetensors_header(path).tensors
    name = next((each for each in _NAMES if each in tensors), None) or next(iter(tensors), None)
    if name is None or (len(tensors) > 1 and name not in _NAMES):
        raise InvalidRequest(f"{shown(path)} holds {len(tensors)} tensors; one is needed, or one named latents")
    entry = tensors[name]
    if entry.numel > MAX_VALUES:
        raise InvalidRequest(
            f"{shown(path)}: its tensor {name} holds {entry.numel} values; at most {MAX_VALUES} are read"
        )
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:  # numpy has no bfloat16
        return file.get_tensor(name).float().numpy()
