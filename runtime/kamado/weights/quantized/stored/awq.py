"""AWQ in the layout that AutoAWQ calls `gemm`. L: rows (outputs), N: columns (inputs), G: groups of columns.

    X.qweight int32 (N, L / 8), X.qzeros int32 (G, L / 8), X.scales (G, L)

A word holds 4 bits each of 8 neighbouring outputs, from the lowest on those with the numbers 0, 2, 4, 6, 1, 3, 5, 7.
Weight = scale * (value - zero).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ....errors import UnsupportedCheckpoint
from .entries import HALVES, Entries, Parts, integer_bytes, weight


def find(entries: Entries, config: Mapping[str, Any], what: str) -> Parts:
    """See methods.Method."""
    layout = str(config.get("version") or config.get("format") or "gemm").lower()
    if layout not in ("gemm", "exllama", "ipex"):  # the latter two are other kernels for the same files
        raise UnsupportedCheckpoint(f"{what} is AWQ in the layout {layout!r}; only gemm can be loaded")
    bits = config.get("bits", config.get("w_bit", 4))
    if bits != 4:
        raise UnsupportedCheckpoint(f"{what} is AWQ of {bits!r} bits; only 4 can be loaded")
    parts = Parts(entries, what)
    for stem in parts.stems(".qweight"):
        _one(parts, stem, config.get("group_size", config.get("q_group_size")))
    return parts


def _one(parts: Parts, stem: str, group_size: object) -> None:
    values = parts.take(f"{stem}.qweight", ("I32",), 2)
    scales = parts.take(f"{stem}.scales", HALVES, 2)
    zeros = parts.take(f"{stem}.qzeros", ("I32",), 2)
    groups, rows = scales.shape
    columns = values.shape[0]
    if values.shape[1] * 8 != rows or zeros.shape != (groups, rows // 8) or columns % groups or columns % 2:
        shapes = f"{list(values.shape)}, zeros {list(zeros.shape)}, scales {list(scales.shape)}"
        raise parts.refused(stem, f"has shapes that contradict each other: {shapes}")
    if group_size not in (-1, None, columns // groups):
        raise parts.refused(stem, f"has groups of {columns // groups}, not of {group_size} columns")
    parts.add(
        weight(
            f"{stem}.weight",
            (rows, columns),
            form="awq",
            label="awq-int4",
            parts={"values": values, "scales": scales, "zeros": zeros},
            packed_bytes=integer_bytes((rows, columns), 4, groups, scales.dtype, offset=True),
        )
    )
