"""GGML's blocks, kept as whole numbers with scales: the same weights, in a layout that products are fast in.

Blocks of 4 bits or fewer become 4-bit integers, wider ones 8-bit integers; groups, scales and offsets are the file's.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import NamedTuple

from ....checkpoint.types import TensorEntry
from .entries import StoredWeight, integer_bytes, weight


class Kept(NamedTuple):
    """How the blocks of one format are held."""

    values: int
    """Numbers in a block."""
    nbytes: int
    """Bytes of a block."""
    bits: int
    group: int
    scale: str
    offset: bool
    shift: int
    """Subtracted from the numbers to be in the range of `Integers`."""


KEPT: Mapping[str, Kept] = {
    "Q4_0": Kept(32, 18, 4, 32, "F16", False, 0),
    "Q4_1": Kept(32, 20, 4, 32, "F16", True, 8),
    "Q5_0": Kept(32, 22, 8, 32, "F16", False, 0),
    "Q5_1": Kept(32, 24, 8, 32, "F16", True, 0),
    "Q8_0": Kept(32, 34, 8, 32, "F16", False, 0),
    "Q2_K": Kept(256, 84, 4, 16, "F32", True, 0),
    "Q3_K": Kept(256, 110, 4, 16, "F32", False, 0),
    "Q4_K": Kept(256, 144, 4, 32, "F32", True, 8),
    "Q5_K": Kept(256, 176, 8, 32, "F32", True, 0),
    "Q6_K": Kept(256, 210, 8, 16, "F32", False, 0),
}
"""By GGML's name. All others are decoded."""


def kept(entry: TensorEntry) -> StoredWeight | None:
    """A matrix of a GGUF file, or a stack of them, as it can be held; None for what is neither, or of another type."""
    how = KEPT.get(entry.dtype)
    if how is None or len(entry.shape) not in (2, 3) or 0 in entry.shape or entry.shape[-1] % how.values:
        return None
    rows, columns = prod(entry.shape[:-1]), entry.shape[-1]
    blocks = TensorEntry(
        entry.name, "U8", (rows, columns // how.values * how.nbytes), entry.file, entry.offset, entry.nbytes
    )
    return weight(
        entry.name,
        entry.shape,
        form="ggml",
        label=entry.dtype,
        parts={"blocks": blocks},
        packed_bytes=integer_bytes((rows, columns), how.bits, columns // how.group, how.scale, offset=how.offset),
    )
