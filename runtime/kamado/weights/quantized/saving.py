"""Quantized matrices as checkpoints store them: compressed-tensors' form for integers and 8-bit floats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import UnsupportedCheckpoint
from ...quant import Quant, Scheme
from ..saving import SafetensorsWriter
from ..stream import ReadableTensor
from .forms import quantize
from .integers import Integers
from .packed import Packed

METHOD = "compressed-tensors"
STORABLE = ("int8", "int8-dynamic", "int4")
"""Schemes that can be written."""
_MOST_PARTS = 3


def write_quantized_tensors(
    path: Path, tensors: Mapping[str, ReadableTensor], quant: Quant, *, prefix: str = ""
) -> dict[str, Any]:
    """Quantize tensors one by one into a safetensors file. `quant` is asked for names that begin with `prefix`.

    Returns the `quantization_config` that readers need. Raises UnsupportedCheckpoint for a scheme that cannot be
    written, OSError if the disk fails.
    """
    used: dict[str, Scheme] = {}
    ignored: list[str] = []
    longest = max(map(len, tensors), default=0) + len("_packed")
    with (
        torch.no_grad(),
        SafetensorsWriter(
            path, max_tensors=_MOST_PARTS * len(tensors), longest_name=longest, metadata={"format": "pt"}
        ) as file,
    ):
        for name, tensor in tensors.items():
            weight = tensor.read()
            scheme = quant.scheme_for(prefix + name, weight.shape) if weight.is_floating_point() else None
            if scheme is None or weight.ndim != 2:
                file.add(name, weight)
                ignored += [name.removesuffix(".weight")] if name.endswith(".weight") and weight.ndim > 1 else []
                continue
            if scheme.name not in STORABLE:
                raise UnsupportedCheckpoint(
                    f"{scheme.name} has no form on disk here; choose one of {', '.join(STORABLE)}"
                )
            packed = quantize(weight, scheme)
            del weight
            for ending, part in _stored(packed).items():
                file.add(name + ending, part)
            used[name] = scheme
    return _config(used, ignored)


def _stored(packed: Packed) -> Mapping[str, Tensor]:
    """By the ending of the name."""
    assert isinstance(packed, Integers)
    values, scale = packed.parts["values"], packed.parts["scale"]
    if packed.bits == 8:
        return {"": values, "_scale": scale}
    # Eight numbers in 32 bits, the first lowest: on a little-endian machine the bytes are the same.
    words = values.view(torch.int32) if values.shape[1] % 4 == 0 else None
    if words is None:
        raise UnsupportedCheckpoint(f"rows of {packed.shape[1]} values are no whole words of eight 4-bit numbers")
    return {"_packed": words, "_scale": scale, "_shape": torch.tensor(packed.shape)}


def _config(used: Mapping[str, Scheme], ignored: Sequence[str]) -> dict[str, Any]:
    groups: dict[Scheme, list[str]] = {}
    for name, scheme in used.items():
        groups.setdefault(scheme, []).append(name.removesuffix(".weight"))
    formats = {_format(scheme) for scheme in groups}
    return {
        "quant_method": METHOD,
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{number}": {
                "targets": _targets(names),
                "format": _format(scheme),
                "weights": {
                    "num_bits": scheme.bits,
                    "type": "int",
                    "strategy": "group" if scheme.group_size else "channel",
                    "group_size": scheme.group_size or None,
                    "symmetric": True,
                    "dynamic": False,
                    "actorder": None,
                },
                "input_activations": _ACTIVATIONS if scheme.dynamic else None,
                "output_activations": None,
            }
            for number, (scheme, names) in enumerate(groups.items())
        },
        "ignore": sorted(ignored),
    }


_ACTIVATIONS = {"num_bits": 8, "type": "int", "strategy": "token", "symmetric": True, "dynamic": True}


def _format(scheme: Scheme) -> str:
    return "pack-quantized" if scheme.bits == 4 else "int-quantized"


def _targets(names: Iterable[str]) -> list[str]:
    """Exact names of modules: which class each is, the file does not say."""
    return sorted(names)
