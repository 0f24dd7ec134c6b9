"""From schemes (names in `kamado.quant`) to the code that makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ...quant import Scheme
from .codebook import quantize_codebook
from .dynamic import OUTLIER, quantize_dynamic
from .floats import quantize_floats
from .integers import quantize_integers
from .packed import Packed

Quantizer = Callable[[Tensor, Scheme], Packed]


def _integers(weight: Tensor, scheme: Scheme) -> Packed:
    scale = torch.float16 if scheme.scale_bytes == 2 else torch.float32
    return quantize_integers(weight, bits=scheme.bits, group_size=scheme.group_size, scale_dtype=scale)


def _codebook(weight: Tensor, scheme: Scheme) -> Packed:
    return quantize_codebook(weight, kind=scheme.name, block_size=scheme.group_size)


def _floats(weight: Tensor, scheme: Scheme) -> Packed:
    return quantize_floats(weight, group_size=scheme.group_size, dynamic=scheme.dynamic)


HANDLERS: Mapping[str, Quantizer] = {
    "int8-weight-only": _integers,
    "int8-dynamic": lambda weight, scheme: quantize_dynamic(weight, group_size=scheme.group_size),
    "int4": _integers,
    "nf4": _codebook,
    "fp4": _codebook,
    "bnb-int8": lambda weight, _: quantize_dynamic(weight, outlier=OUTLIER),
    "fp8": _floats,
    "fp8-dynamic": _floats,
}
"""What makes a matrix (out, in) of floats into a form, by the scheme's name."""


def quantize(weight: Tensor, scheme: Scheme) -> Packed:
    """Round a matrix (out, in) of floats; on its device."""
    return HANDLERS[scheme.name](weight, scheme)
