"""MXFP4, as gpt-oss is published. E: experts, L: rows (outputs), N: columns (inputs), G: groups of 32 columns.

    X_blocks uint8 (E, L, G, 16): two values in a byte, the even column in the low half
    X_scales uint8 (E, L, G): weight = value * 2 ** (scale - 127)

Values are floats of 4 bits (a sign, two bits of exponent, one of mantissa). The model has X as (E, N, L). Format: Open
Compute Project, "OCP Microscaling Formats (MX) Specification" (2023), section 5.3.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .entries import Entries, Parts, weight

GROUP = 32
"""Values with one scale."""
_SCALE_BYTES = 2
"""As they are held: bfloat16 has all of these powers of two."""


def find(entries: Entries, config: Mapping[str, Any], what: str) -> Parts:
    """See methods.Method."""
    parts = Parts(entries, what)
    for name in parts.stems("_blocks"):
        blocks, scales = parts.take(f"{name}_blocks", ("U8",), 4), parts.take(f"{name}_scales", ("U8",), 3)
        experts, rows, groups, size = blocks.shape
        if 2 * size != GROUP or scales.shape != (experts, rows, groups):
            raise parts.refused(name, f"has blocks of the shape {list(blocks.shape)}, scales {list(scales.shape)}")
        parts.add(
            weight(
                name,
                (experts, groups * GROUP, rows),
                form="mxfp4",
                label="mxfp4",
                parts={"blocks": blocks, "scales": scales},
                packed_bytes=experts * rows * groups * (size + _SCALE_BYTES),
                settings={"turned": True},
            )
        )
    return parts
