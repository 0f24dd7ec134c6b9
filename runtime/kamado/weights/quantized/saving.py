"""Quantized matrices as checkpoints store them, written tensor by tensor: as compressed-tensors and bitsandbytes do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...errors import UnsupportedCheckpoint
from ...quant import Quant, role_of, scheme_named
from ..saving import SafetensorsWriter
from ..stream import ReadableTensor
from . import saving_bitsandbytes, saving_compressed
from .forms import quantize
from .saving_layout import Layout, Used

LAYOUTS: Mapping[str, Layout] = {
    name: layout for layout in (saving_compressed.LAYOUT, *saving_bitsandbytes.LAYOUTS) for name in layout.schemes
}
"""By scheme."""
_KINDS = {3: "stacks of experts", 4: "convolutions"}
_EMBEDDINGS = "token tables"
_OTHERS = "other matrices"


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What became of tensors."""

    config: Mapping[str, Any] | None
    """The `quantization_config` that readers need; None where nothing is quantized."""
    kept: Mapping[str, int]
    """What has a form in memory, but none in the layout, and keeps its precision: bytes, by kind."""


def layout_of(quant: Quant) -> Layout:
    """The layout in which such weights are written. Raises UnsupportedCheckpoint where somebody asks for two."""
    schemes = [(pattern, scheme_named(name)) for pattern, name in (("", quant.scheme), *quant.overrides)]
    (_, first), *others = [(pattern, scheme) for pattern, scheme in schemes if scheme is not None]
    layout = LAYOUTS[first.name]
    for pattern, scheme in others:
        if LAYOUTS[scheme.name] is not layout:
            raise UnsupportedCheckpoint(
                f"{first.name} and {scheme.name} ({pattern}) are of two layouts ({layout.name}; "
                f"{LAYOUTS[scheme.name].name}), a checkpoint has one; override with {', '.join(layout.schemes)}"
            )
    return layout


def write_quantized_tensors(
    path: Path, tensors: Mapping[str, ReadableTensor], quant: Quant, *, prefix: str = ""
) -> Written:
    """Quantize tensors one by one into a safetensors file. `quant` is asked for names that begin with `prefix`.

    Raises UnsupportedCheckpoint for a form that cannot be written, OSError if the disk fails.
    """
    layout = layout_of(quant)
    used: dict[str, Used] = {}
    plain: list[str] = []
    kept: dict[str, int] = {}
    longest = max(map(len, tensors), default=0) + layout.longest_ending
    with (
        torch.no_grad(),
        SafetensorsWriter(
            path, max_tensors=layout.most_parts * len(tensors), longest_name=longest, metadata={"format": "pt"}
        ) as file,
    ):
        for name, tensor in tensors.items():
            weight = tensor.read()
            scheme = quant.scheme_for(prefix + name, weight.shape) if weight.is_floating_point() else None
            module = name.removesuffix(".weight")
            has_place = module != name and weight.ndim == 2 and scheme is not None and scheme.name in layout.schemes
            if scheme is None or not has_place:
                file.add(name, weight)
                plain += [module] if module != name and weight.ndim > 1 else []
                if scheme is not None:
                    kind = _kind(prefix + name, weight)
                    kept[kind] = kept.get(kind, 0) + weight.nbytes
                continue
            packed = quantize(weight, scheme)
            for ending, part in layout.parts(packed, scheme, weight).items():
                file.add(module + ending, part)
            used[module] = Used(scheme=scheme, dtype=weight.dtype)
    return Written(config=layout.config(used, sorted(plain)) if used else None, kept=kept)


def _kind(name: str, weight: torch.Tensor) -> str:
    if role_of(name, weight.shape) == "embedding":
        return _EMBEDDINGS
    return _KINDS.get(weight.ndim, _OTHERS)
