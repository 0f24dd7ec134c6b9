"""bitsandbytes. L: rows (outputs), N: columns (inputs), B: blocks of the matrix's values, row after row.

    8 bits: X.weight int8 (L, N), X.SCB float32 (L): weight = value * SCB / 127; activations are rounded too, but for
            large ones
    4 bits: X.weight, two values in a byte, the first in the high half; X.weight.absmax float32 (B);
            X.weight.quant_map float32 (16); X.weight.quant_state.bitsandbytes__nf4 (or fp4): JSON with the shape
            weight = quant_map[value] * absmax

With double quantization absmax is uint8, an index into X.weight.nested_quant_map (256), times X.weight.nested_absmax of
its block, plus the JSON's nested_offset.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import inf
from typing import Any

from ....checkpoint.types import TensorEntry
from ....errors import UnsupportedCheckpoint
from .entries import Entries, Parts, StoredWeight, integer_bytes, small_bytes, weight

STATE = ".quant_state.bitsandbytes__"
BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_THRESHOLD = 6.0
"""From which magnitude on activations keep their precision, where the configuration does not say."""
_ROWS = b"\0"
"""X.weight_format of 8 bits: row after row."""


def find(entries: Entries, config: Mapping[str, Any], what: str) -> Parts:
    """See methods.Method."""
    parts = Parts(entries, what)
    outlier = config.get("llm_int8_threshold", _THRESHOLD)
    if not isinstance(outlier, (int, float)) or not 0 <= outlier < inf:
        raise UnsupportedCheckpoint(f"{what}: llm_int8_threshold is {outlier!r:.40}, which is no threshold")
    for stem in parts.stems(".SCB"):
        _eight(parts, stem, float(outlier))
    for name in ("nf4", "fp4"):
        for stem in parts.stems(STATE + name):
            _four(parts, stem, name)
    return parts


def _eight(parts: Parts, stem: str, outlier: float) -> None:
    values = parts.take(f"{stem}.weight", ("I8",), 2)
    scales = parts.take(f"{stem}.SCB", ("F32",))
    rows, columns = values.shape
    if scales.numel != rows:
        raise parts.refused(stem, f"has {rows} rows, but {scales.numel} scales")
    if parts.get(f"{stem}.weight_format") is not None:
        layout = small_bytes(parts.take(f"{stem}.weight_format"))
        if layout.strip(_ROWS):
            raise parts.refused(stem, "is in a GPU's own layout; save it in the layout of rows")
    parts.add(
        weight(
            f"{stem}.weight",
            (rows, columns),
            form="integers",
            label="bnb-int8",
            parts={"values": values, "scales": scales},
            packed_bytes=integer_bytes((rows, columns), 8, 1, "F32"),
            settings={"divisor": 127.0, "outlier": outlier},
        )
    )


def _four(parts: Parts, name: str, kind: str) -> None:
    state = _state(parts, parts.take(f"{name}{STATE}{kind}", ("U8",)))
    shape, block = _shape(parts, name, state), state.get("blocksize")
    values = parts.take(name)
    count = shape[0] * shape[1]
    if type(block) is not int or block not in BLOCKS:
        raise parts.refused(name, f"has blocks of {block!r:.20} values")
    if values.nbytes != (count + 1) // 2 or count % 2:
        raise parts.refused(name, f"has {values.nbytes} bytes for {shape[0]} x {shape[1]} values of 4 bits")
    blocks = -(-count // block)
    found = {
        "values": values,
        "scales": parts.take(f"{name}.absmax", ("F32", "U8")),
        "table": parts.take(f"{name}.quant_map", ("F32",)),
    }
    counts = {"scales": blocks, "table": 16}
    settings: dict[str, Any] = {"kind": kind, "block": block}
    if found["scales"].dtype == "U8":
        settings |= {"nested_block": state.get("nested_blocksize"), "nested_offset": state.get("nested_offset")}
        nested = settings["nested_block"]
        if type(nested) is not int or nested not in BLOCKS or not isinstance(settings["nested_offset"], (int, float)):
            raise parts.refused(name, f"has scales in blocks of {nested!r:.20}")
        found["nested_scales"] = parts.take(f"{name}.nested_absmax", ("F32",))
        found["nested_table"] = parts.take(f"{name}.nested_quant_map", ("F32",))
        counts |= {"nested_scales": -(-blocks // nested), "nested_table": 256}
    for part, number in counts.items():
        if found[part].numel != number:
            raise parts.refused(found[part].name, f"has {found[part].numel} values, not {number}")
    parts.add(_weight(name, shape, found, settings))


def _weight(
    name: str, shape: tuple[int, int], found: Mapping[str, TensorEntry], settings: dict[str, Any]
) -> StoredWeight:
    rows, columns = shape
    return weight(
        name,
        shape,
        form="codebook",
        label=f"bnb-{settings['kind']}",
        parts=found,
        packed_bytes=rows * columns // 2 + 4 * (rows * columns // settings["block"]),
        settings=settings,
        decoded=bool(columns % settings["block"]),  # a block that goes over the end of a row
    )


def _state(parts: Parts, entry: TensorEntry) -> Mapping[str, Any]:
    try:
        state = json.loads(small_bytes(entry))
    except (ValueError, RecursionError) as error:
        raise parts.refused(entry.name, "is no JSON") from error
    if not isinstance(state, dict):
        raise parts.refused(entry.name, "is no JSON object")
    return state


def _shape(parts: Parts, name: str, state: Mapping[str, Any]) -> tuple[int, int]:
    shape = state.get("shape")
    if not (
        isinstance(shape, list) and len(shape) == 2 and all(type(each) is int and 0 < each < 1 << 31 for each in shape)
    ):
        raise parts.refused(name, f"has the shape {shape!r:.60}, which is no matrix")
    return shape[0], shape[1]
