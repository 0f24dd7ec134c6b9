"""The order in which weights lie for the kernels, and what the kernels compute, in torch.

Panels of 16 outputs, groups of 32 inputs: whatever the number of rows, weights are read once, front to back.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

PANEL = 16
"""Outputs that lie side by side."""
GROUP = 32
"""Inputs that share a scale."""
_TINY = 1e-30
"""Groups of activations of no larger magnitude count as zeros."""


def to_tiles(values: Tensor, scales: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """int8 (out, in) and float16 (out, in / 32), put in order: int8 (panels, groups, 8, 16, 4) and float16 (panels,
    groups, 16). For 4 bits uint8 (panels, groups, 4, 16, 4), two inputs 16 apart, the first in the low half, 8 for 0.
    Outputs that the last panel lacks are zeros."""
    out, columns = values.shape
    groups, missing = columns // GROUP, -out % PANEL
    if missing:
        values, scales = functional.pad(values, (0, 0, 0, missing)), functional.pad(scales, (0, 0, 0, missing))
    ordered = values.view(-1, PANEL, groups, 8, 4).permute(0, 2, 3, 1, 4)
    if bits == 4:
        raised = (ordered + 8).to(torch.uint8)
        ordered = raised[:, :, :4] | (raised[:, :, 4:] << 4)
    return ordered.contiguous(), scales.view(-1, PANEL, groups).transpose(1, 2).contiguous()


def from_tiles(values: Tensor, scales: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """The reverse, for the outputs in `index` (n): int8 (n, in) and float16 (n, in / 32)."""
    panel, place = index // PANEL, index % PANEL
    picked = values[panel, :, :, place]
    if values.dtype == torch.uint8:
        picked = torch.cat((picked & 15, picked >> 4), dim=2).to(torch.int8) - 8
    return picked.reshape(len(index), -1), scales[panel, :, place]


def rounded(x: Tensor, bits: int, group: int = GROUP) -> Tensor:
    """Activations (..., in) as the kernels see them: float32, each group of 32 (`group`) in whole multiples of its
    largest magnitude / 127 (8 bits) or / 32767 (16). A group with NaN or an infinity is NaN."""
    # As a tensor: a number divided by a tensor is that number times the reciprocal, for torch, and rounded twice.
    top = torch.tensor(127.0 if bits == 8 else 32767.0, dtype=torch.float32, device=x.device)
    groups = x.float().unflatten(-1, (-1, group))
    largest = groups.abs().amax(-1, keepdim=True)
    scale = torch.where(largest < _TINY, 0.0, torch.where(largest.isinf(), torch.nan, largest / top))
    inverse = torch.where(largest < _TINY, 0.0, top / largest)
    whole: Tensor = (groups * inverse).round_()
    return whole.mul_(scale).flatten(-2)
