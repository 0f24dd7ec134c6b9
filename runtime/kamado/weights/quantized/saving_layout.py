"""What a layout of quantized checkpoints says of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...quant import Scheme
from .packed import Packed


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """How a matrix is stored."""

    scheme: Scheme
    dtype: torch.dtype
    """In which it was before."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layout:
    """A layout, and how matrices are written in it."""

    name: str
    schemes: tuple[str, ...]
    """Names of the forms that it has a place for."""
    most_parts: int
    """Tensors of a matrix."""
    longest_ending: int
    """Characters after the name of a module."""
    parts: Callable[[Packed, Scheme, Tensor], Mapping[str, Tensor]]
    """(form, its scheme, what it was made of) -> tensors, by what follows the name of the module. Raises
    UnsupportedCheckpoint."""
    config: Callable[[Mapping[str, Used], Sequence[str]], Mapping[str, Any]]
    """(the quantized modules, the others that have a matrix) -> `quantization_config`."""
