"""torchao, as transformers writes it to safetensors. L: rows (outputs), N: columns (inputs), G: groups of columns.

    Int8Tensor, IntxUnpackedToInt8Tensor (4-bit numbers too)
        X._weight_qdata int8 (L, N), X._weight_scale (L, G), perhaps X._weight_zero_point int8 (L, G)
        weight = scale * (value - zero)
    Int4Tensor
        X._weight_qdata int8 (L, N / 2), X._weight_scale (G, L), X._weight_zero_point (G, L), of the scales' type
        two's complement, the even column in the low half; weight = scale * value + zero
    Float8Tensor
        X._weight_qdata float8_e4m3fn (L, N), X._weight_scale: one, (L, 1), or a number for each block
        weight = scale * value

Types are told apart by those of their parts. Layouts made for the kernels of one device are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ....checkpoint.types import TensorEntry
from ....errors import UnsupportedCheckpoint
from .entries import HALVES, Entries, Parts, integer_bytes, weight
from .float8 import add_float8

_PART = re.compile(r"\._\w+_(qdata|scale|zero_point|scale_and_zero|per_tensor_scale|act_\w+|qscale)$")
_QDATA = "._weight_qdata"
_MEASURED = ("._weight_act_quant_scale", "._weight_act_quant_zero_point")
"""Of activations, once for all."""
_KNOWN = "of torchao's, int8, int4 (plain or in int8) and float8 (e4m3) matrices can be loaded"


def find(entries: Entries, config: Mapping[str, Any], what: str) -> Parts:
    """See methods.Method."""
    parts = Parts(entries, what)
    parts.drop(*_MEASURED)
    told = _told(config)
    for stem in parts.stems(_QDATA):
        _one(parts, stem, told)
    for name in parts.all():
        if _PART.search(name):
            raise UnsupportedCheckpoint(f"{what}: {name} is of a layout that is not known here; {_KNOWN}")
    return parts


def _told(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings that hold for all weights, with the class under `_type`; empty where they are not one for all."""
    quant_type = config.get("quant_type")
    default = quant_type.get("default") if isinstance(quant_type, Mapping) else None
    if not isinstance(default, Mapping) or not isinstance(default.get("_data"), Mapping):
        return {}
    return {**default["_data"], "_type": default.get("_type")}


def _one(parts: Parts, stem: str, told: Mapping[str, Any]) -> None:
    values = parts.take(f"{stem}{_QDATA}")
    if len(values.shape) != 2 or values.dtype not in ("I8", "F8_E4M3") or 0 in values.shape:
        raise parts.refused(stem, f"is {values.dtype} of the shape {list(values.shape)}; {_KNOWN}")
    if parts.get(f"{stem}._weight_act_pre_scale") is not None:
        raise parts.refused(stem, "wants its input scaled before, which cannot be done here")
    zeros = parts.get(f"{stem}._weight_zero_point")
    if values.dtype == "F8_E4M3":
        scales = parts.take(f"{stem}._weight_scale", HALVES)
        add_float8(parts, stem, values, scales, None, rounds=_rounds(told, "Float8DynamicActivationFloat8WeightConfig"))
    elif zeros is not None and zeros.dtype != "I8":
        _four(parts, stem, values)
    else:
        _eight(parts, stem, values, told)


def _eight(parts: Parts, stem: str, values: TensorEntry, told: Mapping[str, Any]) -> None:
    scales = parts.take(f"{stem}._weight_scale", HALVES)
    rows, columns = values.shape
    groups = scales.shape[1] if len(scales.shape) == 2 else 1
    if scales.numel != 1 and (scales.shape != (rows, groups) or columns % groups):
        raise parts.refused(stem, f"has scales of the shape {list(scales.shape)} for {rows} x {columns} values")
    found = {"values": values, "scales": scales}
    if parts.get(f"{stem}._weight_zero_point") is not None:
        found["zeros"] = zeros = parts.take(f"{stem}._weight_zero_point", ("I8",))
        if zeros.shape != scales.shape:
            raise parts.refused(stem, f"has zero points of the shape {list(zeros.shape)}")
    mapping = told.get("weight_mapping_type", told.get("mapping_type"))
    uneven = isinstance(mapping, Mapping) and mapping.get("_data") == "ASYMMETRIC"
    kind = told.get("weight_dtype")
    bits = 4 if isinstance(kind, Mapping) and kind.get("_data") == "int4" and columns % 2 == 0 else 8
    rounding = {"outlier": 0.0} if _rounds(told, "Int8DynamicActivationInt8WeightConfig") else {}
    parts.add(
        weight(
            f"{stem}.weight",
            (rows, columns),
            form="integers",
            label=f"torchao-int{bits}",
            parts=found,
            packed_bytes=integer_bytes((rows, columns), bits, groups, scales.dtype, offset=uneven),
            settings={"bits": bits, **rounding},
        )
    )


def _four(parts: Parts, stem: str, values: TensorEntry) -> None:
    scales = parts.take(f"{stem}._weight_scale", HALVES, 2)
    zeros = parts.take(f"{stem}._weight_zero_point", HALVES, 2)
    rows, columns, groups = values.shape[0], 2 * values.shape[1], scales.shape[0]
    if scales.shape[1] != rows or zeros.shape != scales.shape or columns % groups or columns // groups % 2:
        shapes = f"{list(values.shape)}, zeros {list(zeros.shape)}, scales {list(scales.shape)}"
        raise parts.refused(stem, f"has shapes that contradict each other: {shapes}")
    parts.add(
        weight(
            f"{stem}.weight",
            (rows, columns),
            form="signed-nibbles",
            label="torchao-int4",
            parts={"values": values, "scales": scales, "zeros": zeros},
            packed_bytes=integer_bytes((rows, columns), 4, groups, scales.dtype, offset=True),
        )
    )


def _rounds(told: Mapping[str, Any], kind: str) -> bool:
    """Whether settings of that class round activations evenly around zero, each row for itself."""
    mapping, granularity = told.get("act_mapping_type"), told.get("granularity")
    each = granularity if isinstance(granularity, list) else [granularity]
    return (
        told.get("_type") == kind
        and (not isinstance(mapping, Mapping) or mapping.get("_data") == "SYMMETRIC")
        and all(isinstance(one, Mapping) and one.get("_type") == "PerRow" for one in each)
    )
