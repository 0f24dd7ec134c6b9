"""compressed-tensors' layout: integers of 8 and 4 bits and 8-bit floats, as vLLM and transformers read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import UnsupportedCheckpoint
from ...quant import Scheme
from .floats import Floats
from .integers import Integers
from .packed import Packed
from .saving_layout import Layout, Used


def _parts(packed: Packed, scheme: Scheme, weight: Tensor) -> Mapping[str, Tensor]:
    assert isinstance(packed, (Integers, Floats))
    values, scale = packed.parts["values"], packed.parts["scale"]
    if scheme.bits == 8:
        return {".weight": values, ".weight_scale": scale}
    # Eight numbers in 32 bits, the first lowest: on a little-endian machine the bytes are the same.
    words = values.view(torch.int32) if values.shape[1] % 4 == 0 else None
    if words is None:
        raise UnsupportedCheckpoint(f"rows of {packed.shape[1]} values are no whole words of eight 4-bit numbers")
    return {".weight_packed": words, ".weight_scale": scale, ".weight_shape": torch.tensor(packed.shape)}


def _config(used: Mapping[str, Used], plain: Sequence[str]) -> dict[str, Any]:
    groups: dict[Scheme, list[str]] = {}
    for name, each in used.items():
        groups.setdefault(each.scheme, []).append(name)
    formats = {_format(scheme) for scheme in groups}
    return {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": {
            # Exact names of modules: which class each is, the file does not say.
            f"group_{number}": {"targets": sorted(names), **_group(scheme)}
            for number, (scheme, names) in enumerate(groups.items())
        },
        "ignore": list(plain),
    }


def _group(scheme: Scheme) -> dict[str, Any]:
    kind = _kind(scheme)
    activations = {"num_bits": 8, "type": kind, "strategy": "token", "symmetric": True, "dynamic": True}
    if scheme.group_size:
        activations |= {"strategy": "group", "group_size": scheme.group_size}
    return {
        "format": _format(scheme),
        "weights": {
            "num_bits": scheme.bits,
            "type": kind,
            "strategy": "group" if scheme.group_size else "channel",
            "group_size": scheme.group_size or None,
            "symmetric": True,
            "dynamic": False,
            "actorder": None,
        },
        "input_activations": activations if scheme.dynamic else None,
        "output_activations": None,
    }


def _kind(scheme: Scheme) -> str:
    return "float" if scheme.name.startswith("fp8") else "int"


def _format(scheme: Scheme) -> str:
    if scheme.bits == 4:
        return "pack-quantized"
    return f"{_kind(scheme)}-quantized"


LAYOUT = Layout(
    name="compressed-tensors",
    schemes=("int8-weight-only", "int8-dynamic", "int4", "fp8", "fp8-dynamic"),
    most_parts=3,
    longest_ending=len(".weight_packed"),
    parts=_parts,
    config=_config,
)
