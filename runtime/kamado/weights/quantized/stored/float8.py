"""8-bit floats: transformers' fp8, fbgemm's, and NVIDIA's modelopt. L: rows (outputs), N: columns (inputs).

    fp8          X.weight float8_e4m3fn (L, N), X.weight_scale_inv: a number for each block of rows and columns, or one
    fbgemm_fp8   X.weight, X.weight_scale (L, 1)
    modelopt     X.weight, X.weight_scale ()

Weight = scale * value, in all of them. What rounds activations is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd
from typing import Any

from ....checkpoint.types import TensorEntry
from ....errors import UnsupportedCheckpoint
from .entries import HALVES, Entries, Parts, weight

_ACTIVATIONS = (".activation_scale", ".input_scale", ".input_scale_ub", ".k_scale", ".v_scale")


def find(entries: Entries, config: Mapping[str, Any], what: str) -> Parts:
    """See methods.Method."""
    parts = Parts(entries, what)
    parts.drop(*_ACTIVATIONS)
    size = config.get("weight_block_size")
    block = block_of(size) if size else None
    for suffix in (".weight_scale_inv", ".weight_scale"):
        for stem in parts.stems(suffix):
            values = parts.take(f"{stem}.weight", ("F8_E4M3",), 2)
            add_float8(parts, stem, values, parts.take(f"{stem}{suffix}", HALVES), block)
    return parts


def find_modelopt(entries: Entries, config: Mapping[str, Any], what: str) -> Parts:
    """See methods.Method."""
    if str(config.get("quant_algo")).upper() != "FP8":
        raise UnsupportedCheckpoint(f"{what} is quantized by modelopt to {config.get('quant_algo')!r}; only FP8 loads")
    return find(entries, config, what)


def block_of(value: object) -> tuple[int, int]:
    """[rows, columns] that share a scale. Raises UnsupportedCheckpoint."""
    if isinstance(value, (list, tuple)) and len(value) == 2:
        rows, columns = value
        if isinstance(rows, int) and isinstance(columns, int) and rows > 0 and columns > 0:
            return rows, columns
    raise UnsupportedCheckpoint(f"the quantization's blocks must be [rows, columns], not {value!r:.60}")


def add_float8(
    parts: Parts,
    stem: str,
    values: TensorEntry,
    scale: TensorEntry,
    block: tuple[int, int] | None,
    *,
    rounds: bool = False,
) -> None:
    """One weight of 8-bit floats. `rounds`: activations are rounded too, each row for itself. Raises
    UnsupportedCheckpoint where the scales are not of `block`s, or else of equal parts of the matrix."""
    rows, columns = values.shape
    if scale.numel == 1:
        block = (rows, columns)
    elif scale.shape in ((rows,), (rows, 1)):
        block = (1, columns)
    elif block is None and len(scale.shape) == 2 and not (rows % scale.shape[0] or columns % scale.shape[1]):
        block = (rows // scale.shape[0], columns // scale.shape[1])
    if block is not None:
        block = (min(block[0], rows), min(block[1], columns))
    grid = None if block is None else (-(-rows // block[0]), -(-columns // block[1]))
    if block is None or (scale.numel != 1 and scale.shape not in (grid, (rows,))):
        raise parts.refused(stem, f"has scales of the shape {list(scale.shape)} for {rows} x {columns} values")
    group = gcd(columns, block[1])
    parts.add(
        weight(
            f"{stem}.weight",
            (rows, columns),
            form="float8",
            label="fp8",
            parts={"values": values, "scales": scale},
            packed_bytes=rows * columns + 4 * rows * (columns // group),
            settings={"block": block, "group": group, "rounds": rounds and group == columns},
        )
    )
