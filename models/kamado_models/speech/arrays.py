"""numpy's files (.npy, and .npz archives of them), read without its loader, which can run code where objects are
stored.

Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import io
import lzma
import math
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_BYTES = 16 << 20
"""Of one array of a voice, and of its file."""
_MAX_HEADER = 10_000


def read_npy(path: Path) -> NDArray[Any]:
    """The array in a file. Raises OSError, ValueError for what is none, or none of plain numbers."""
    with path.open("rb") as file:
        return parse_npy(file.read(MAX_BYTES + 1))


def read_npz(path: Path, names: Collection[str]) -> dict[str, NDArray[Any]]:
    """Some arrays of an archive. Raises OSError, ValueError; KeyError where one is missing."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = {}
            for name in names:
                with archive.open(f"{name}.npy") as file:
                    found[name] = parse_npy(file.read(MAX_BYTES + 1))
            return found
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, EOFError) as error:
        raise ValueError(f"it is no archive of arrays: {error}") from error


def parse_npy(data: bytes) -> NDArray[Any]:
    """The array in the bytes of a file. Raises ValueError."""
    import numpy as np
    from numpy.lib import format as npy

    if len(data) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    stream = io.BytesIO(data)
    version = npy.read_magic(stream)
    if version not in {(1, 0), (2, 0)}:
        raise ValueError(f"its version {version} is not known")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    try:
        shape, fortran, dtype = read(stream, max_header_size=_MAX_HEADER)
    except Exception as error:  # whatever Python's parser, which numpy asks, makes of absurd headers
        raise ValueError(f"its header cannot be read: {type(error).__name__}") from error
    if dtype.hasobject or dtype.kind not in "fiu":
        raise ValueError(f"it holds {dtype}, not numbers")
    rest = data[stream.tell() :]
    if min(shape, default=1) < 0 or math.prod(shape) * dtype.itemsize != len(rest):
        raise ValueError(f"it has {len(rest)} bytes for {list(shape)} of {dtype}")
    return np.frombuffer(rest, dtype).reshape(shape, order="F" if fortran else "C").copy()
