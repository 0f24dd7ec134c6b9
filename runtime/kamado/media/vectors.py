"""Files of vectors: JSON, numpy's `.npy`, and safetensors.

| file | holds |
|---|---|
| `.json` | `embedding`, or `embeddings` of several inputs; `recipe` |
| `.npy` | float32 (inputs, dimensions); there is no place for a recipe |
| `.safetensors` | the tensor `embeddings`, float32 (inputs, dimensions); the recipe in the header, as `kamado` |

Latents have a shape: `shape` in JSON; in the others they are (inputs, channels, height, width). See `latents.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import InvalidRequest
from ..files import replacing
from ..outputs import Embedding
from .opening import check_target, opened_file, shown
from .recipe import recipe_json

_KEY = "kamado"
_MAX_HEADER_BYTES = 1 << 26
_MAX_FILE_BYTES = 1 << 32
WRITE_FORMATS = (".json", ".npy", ".safetensors")


def save_embedding(output: Embedding, path: Path, recipe: Mapping[str, Any] | None) -> None:
    """Write vectors, whole or not at all. Raises InvalidRequest for a path that cannot be written, and OSError."""
    suffix = check_target(path, WRITE_FORMATS, "embedding")
    array = output.vectors.reshape(len(output.vectors), *output.shape) if output.shape else output.vectors
    with replacing(path) as file:
        if suffix == ".npy":
            import numpy

            numpy.save(file, array, allow_pickle=False)
        elif suffix == ".safetensors":
            from safetensors.numpy import save

            told = None if recipe is None else {_KEY: recipe_json(recipe)}
            file.write(save({"embeddings": array}, metadata=told))
        else:
            from .saving import document_of

            document = document_of(output) | ({} if recipe is None else {"recipe": json.loads(recipe_json(recipe))})
            file.write((json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode("utf-8", errors="replace"))


def read_embedding(path: Path) -> Embedding:
    """Vectors back from a `.safetensors` file of `save_embedding`. Raises InvalidRequest."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    with opened_file(path, "vectors", _MAX_FILE_BYTES) as file:
        try:
            array = load(file.read())["embeddings"]
            vectors = array.reshape(len(array), math.prod(array.shape[1:]))
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise InvalidRequest(f"{shown(path)} is damaged, or no file of vectors: {str(error)[:120]}") from error
    return Embedding(vectors=vectors, shape=tuple(array.shape[1:]) if array.ndim > 2 else ())


def is_safetensors(head: bytes) -> bool:
    """Whether a file that begins so holds tensors."""
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= _MAX_HEADER_BYTES


def read_embedding_recipe(file: BinaryIO) -> str | None:
    """The recipe in an open `.safetensors` file, unparsed; None where there is none."""
    length = int.from_bytes(file.read(8), "little")
    try:
        header = json.loads(file.read(min(length, _MAX_HEADER_BYTES)))
    except (ValueError, RecursionError):
        return None
    told = header.get("__metadata__") if isinstance(header, dict) else None
    text = told.get(_KEY) if isinstance(told, dict) else None
    return text if isinstance(text, str) else None
