"""GPTQ, as AutoGPTQ and GPTQModel write it. L: rows (outputs), N: columns (inputs), G: groups of columns.

    X.qweight int32 (N * bits / 32, L), X.qzeros int32 (G, L * bits / 32), X.scales (G, L), perhaps X.g_idx int32 (N)

The lowest bits of a word come first. Weight = scale * (value - zero). The first format stores zero - 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ....errors import UnsupportedCheckpoint
from .entries import HALVES, Entries, Parts, integer_bytes, weight


def find(entries: Entries, config: Mapping[str, Any], what: str) -> Parts:
    """See methods.Method."""
    layout = config.get("checkpoint_format") or config.get("format") or "gptq"
    if layout not in ("gptq", "gptq_v2"):
        raise UnsupportedCheckpoint(f"{what} is GPTQ in the layout {layout!r}; only gptq and gptq_v2 can be loaded")
    parts = Parts(entries, what)
    for stem in parts.stems(".qweight"):
        _one(parts, stem, config, first_format=layout == "gptq")
    return parts


def _one(parts: Parts, stem: str, config: Mapping[str, Any], *, first_format: bool) -> None:
    values = parts.take(f"{stem}.qweight", ("I32",), 2)
    scales = parts.take(f"{stem}.scales", HALVES, 2)
    zeros = parts.take(f"{stem}.qzeros", ("I32",), 2)
    groups, rows = scales.shape
    bits = zeros.shape[1] * 32 // rows
    if bits not in (4, 8):
        raise parts.refused(stem, f"has {bits} bits; 4 and 8 can be loaded")
    columns = values.shape[0] * 32 // bits
    if values.shape[1] != rows or zeros.shape != (groups, rows * bits // 32) or rows * bits % 32 or columns % groups:
        shapes = f"{list(values.shape)}, zeros {list(zeros.shape)}, scales {list(scales.shape)}"
        raise parts.refused(stem, f"has shapes that contradict each other: {shapes}")
    found = {"values": values, "scales": scales, "zeros": zeros, **parts.groups(stem, "g_idx", columns)}
    if (
        "groups" not in found
        and not config.get("dynamic")
        and config.get("group_size") not in (-1, None, columns // groups)
    ):
        raise parts.refused(stem, f"has groups of {columns // groups}, not of {config.get('group_size')} columns")
    ordered = bool(config.get("desc_act")) and "groups" in found and groups > 1
    size = integer_bytes((rows, columns), bits, groups, scales.dtype, offset=not config.get("sym", True), order=ordered)
    parts.add(
        weight(
            f"{stem}.weight",
            (rows, columns),
            form="gptq",
            label=f"gptq-int{bits}",
            parts=found,
            packed_bytes=size,
            settings={"bits": bits, "first_format": first_format},
        )
    )
