"""compressed-tensors, as llm-compressor writes it. L: rows (outputs), N: columns (inputs), G: groups of columns.

    X.weight int8 or float8_e4m3fn (L, N), X.weight_scale, perhaps X.weight_zero_point int8 of the scales' shape
    X.weight_packed int32 (L, N * bits / 32), X.weight_shape int64 (2), X.weight_scale,
        perhaps X.weight_zero_point int32 (L * bits / 32, G), int8 (L, G) in old files, perhaps X.weight_g_idx int32 (N)

Scales are of the shape (1), (L, 1), (L, G), or a number for each block of rows and columns. Packed values and zeros are
raised by half of their range. Weight = scale * (value - zero). Activations are rounded where each row, or each group
of one, is rounded for itself; what is measured once for all is left out.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, Literal

from ....checkpoint.types import TensorEntry
from ....errors import UnsupportedCheckpoint
from .entries import HALVES, Entries, Parts, integer_bytes, small_bytes, weight
from .float8 import add_float8, block_of

_FORMATS = (
    "dense",
    "float-quantized",
    "int-quantized",
    "mixed-precision",
    "naive-quantized",
    "pack-quantized",
)
_ACTIVATIONS = (".input_scale", ".input_zero_point", ".output_scale", ".output_zero_point", ".k_scale", ".v_scale")
_SHAPES = {"I64": "q", "I32": "i"}
Rounding = Literal["", "token", "group"]
"""Of activations: none, each row, or each group of columns that shares a scale of the weights."""


def find(entries: Entries, config: Mapping[str, Any], what: str) -> Parts:
    """See methods.Method."""
    for name in (config.get("format"), *(group.get("format") for group in _groups(config))):
        if name is not None and name not in _FORMATS:
            raise UnsupportedCheckpoint(f"{what} is in compressed-tensors' format {name!r}, which cannot be loaded")
    sparsity = config.get("sparsity_config")
    if isinstance(sparsity, Mapping) and sparsity.get("format", "dense") != "dense":
        raise UnsupportedCheckpoint(f"{what} is stored sparsely ({sparsity.get('format')!r}), which cannot be loaded")
    parts = Parts(entries, what)
    parts.drop(*_ACTIVATIONS)
    for stem in parts.stems(".weight_packed"):
        _packed(parts, stem)
    block = _block(config)
    for stem in parts.stems(".weight_scale"):
        _plain(parts, stem, block, rounding=_rounding(config, stem))
    return parts


def _groups(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    groups = config.get("config_groups")
    return [each for each in groups.values() if isinstance(each, Mapping)] if isinstance(groups, Mapping) else []


def _block(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns that share a scale, where a group says so."""
    for group in _groups(config):
        weights = group.get("weights")
        if isinstance(weights, Mapping) and weights.get("block_structure"):
            return block_of(weights["block_structure"])
    return None


def _rounding(config: Mapping[str, Any], module: str) -> Rounding:
    """What of a module's input is rounded to 8 bits for itself, as its group says it."""
    groups = _groups(config)
    for group in groups:
        targets, activations = group.get("targets"), group.get("input_activations")
        if not isinstance(targets, list) or not (module in targets or (len(groups) == 1 and "Linear" in targets)):
            continue
        if not isinstance(activations, Mapping) or not {"num_bits": 8, "dynamic": True}.items() <= activations.items():
            return ""
        if activations.get("strategy") == "token":
            return "token"
        weights = group.get("weights")
        is_alike = isinstance(weights, Mapping) and weights.get("group_size") == activations.get("group_size")
        return "group" if activations.get("strategy") == "group" and is_alike else ""
    return ""


def _packed(parts: Parts, stem: str) -> None:
    values = parts.take(f"{stem}.weight_packed", ("I32",), 2)
    rows, columns = _shape(parts, parts.take(f"{stem}.weight_shape", tuple(_SHAPES), 1))
    bits = next((bits for bits in (4, 8) if values.shape[1] == -(-columns * bits // 32)), None)
    if bits is None or values.shape[0] != rows or columns * bits % 8:
        raise parts.refused(stem, f"has {list(values.shape)} words for {rows} x {columns} values of 4 or 8 bits")
    scales, groups, blocks = _scales(parts, stem, (rows, columns))
    found = {"values": values, "scales": scales}
    if parts.get(f"{stem}.weight_zero_point") is not None:
        found["zeros"] = zeros = parts.take(f"{stem}.weight_zero_point", ("I32", "I8"), 2)
        words = rows if zeros.dtype == "I8" else -(-rows * bits // 32)
        if blocks or scales.shape != (rows, groups) or zeros.shape != (words, groups):
            raise parts.refused(stem, f"has zero points of the shape {list(found['zeros'].shape)}")
    found |= parts.groups(stem, "weight_g_idx", columns)
    size = integer_bytes(
        (rows, columns), bits, groups, scales.dtype, offset="zeros" in found, order="groups" in found and groups > 1
    )
    parts.add(
        weight(
            f"{stem}.weight",
            (rows, columns),
            form="packed-integers",
            label=f"int{bits}",
            parts=found,
            packed_bytes=size,
            settings={"bits": bits},
        )
    )


def _plain(parts: Parts, stem: str, block: tuple[int, int] | None, *, rounding: Rounding) -> None:
    values = parts.take(f"{stem}.weight", ("I8", "F8_E4M3"), 2)
    rows, columns = values.shape
    if values.dtype == "F8_E4M3":
        scale = parts.take(f"{stem}.weight_scale", HALVES)
        if parts.get(f"{stem}.weight_zero_point") is not None:
            parts.drop(f"{stem}.weight_zero_point")  # floats are symmetric: it is all zeros
        add_float8(parts, stem, values, scale, block, rounds=rounding == "token")
        return
    scales, groups, _ = _scales(parts, stem, (rows, columns))
    found = {"values": values, "scales": scales}
    if parts.get(f"{stem}.weight_zero_point") is not None:
        found["zeros"] = parts.take(f"{stem}.weight_zero_point", ("I8",))
        if found["zeros"].shape != scales.shape:
            raise parts.refused(stem, f"has zero points of the shape {list(found['zeros'].shape)}")
    if parts.get(f"{stem}.weight_g_idx") is not None:
        raise parts.refused(stem, "has its columns in another order, which is only known for packed ones")
    parts.add(
        weight(
            f"{stem}.weight",
            (rows, columns),
            form="integers",
            label="int8",
            parts=found,
            packed_bytes=integer_bytes((rows, columns), 8, groups, scales.dtype, offset="zeros" in found),
            settings={"outlier": 0.0, "by_groups": rounding == "group"} if rounding else {},
        )
    )


def _scales(parts: Parts, stem: str, shape: tuple[int, int]) -> tuple[TensorEntry, int, bool]:
    """(entry, groups of columns, whether rows share scales)."""
    scales = parts.take(f"{stem}.weight_scale", HALVES)
    rows, columns = shape
    if scales.numel == 1 or scales.shape == (rows,):
        return scales, 1, scales.numel == 1 and rows > 1
    if len(scales.shape) != 2 or rows % scales.shape[0] or columns % scales.shape[1]:
        raise parts.refused(stem, f"has scales of the shape {list(scales.shape)} for {rows} x {columns} values")
    return scales, scales.shape[1], scales.shape[0] != rows


def _shape(parts: Parts, entry: TensorEntry) -> tuple[int, int]:
    """What X.weight_shape says. Raises UnsupportedCheckpoint."""
    data = small_bytes(entry)
    code = _SHAPES[entry.dtype]
    if entry.shape != (2,) or len(data) != 2 * struct.calcsize(code):
        raise parts.refused(entry.name, f"is no shape of a matrix: {list(entry.shape)}")
    rows, columns = struct.unpack(f"<2{code}", data)
    if not (0 < rows < 1 << 31 and 0 < columns < 1 << 31):
        raise parts.refused(entry.name, f"says {rows} x {columns}")
    return rows, columns
