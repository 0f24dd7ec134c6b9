"""Latents of seeds, and ways between them."""

from __future__ import annotations

from typing import Any

import numpy
import torch
from torch import Tensor

_CUT = 2.0
"""Where BigGAN's latents are cut off, in standard deviations."""


def drawn(seed: int, size: int) -> Tensor:
    """Normal latents of a seed (1, size): those that the authors' scripts of StyleGAN draw for it (numpy's
    RandomState), which takes 32 bits; larger seeds are split."""
    return torch.tensor(_state(seed).randn(1, size), dtype=torch.float32)


def drawn_within(seed: int, size: int, truncation: float) -> Tensor:
    """Latents (1, size) from a normal distribution cut at 2, multiplied by the truncation: the inverse of the
    distribution function at uniform numbers, as scipy's truncnorm has them."""
    low, high = torch.special.ndtr(torch.tensor([-_CUT, _CUT], dtype=torch.float64))
    uniform = torch.from_numpy(_state(seed).uniform(size=(1, size)))
    found: Tensor = truncation * torch.special.ndtri(low + uniform * (high - low))
    return found.float()


def _state(seed: int) -> Any:
    return numpy.random.RandomState(seed if seed < 1 << 32 else [seed & 0xFFFFFFFF, seed >> 32])


def lerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    """Straight."""
    return start + (end - start) * share


def slerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    """Along the sphere, row by row: normal latents keep their length on the way. (1, size)"""
    cosine = torch.nn.functional.cosine_similarity(start.double(), end.double(), dim=1)
    angle = torch.arccos(cosine.clamp(-1.0, 1.0))[:, None]
    sine = torch.sin(angle)
    curved = (torch.sin((1 - share) * angle) * start + torch.sin(share * angle) * end) / sine
    return torch.where(sine.abs() < 1e-6, lerp(start, end, share).double(), curved).float()


def stations(points: int, frames: int, *, loop: bool) -> list[tuple[int, int, float]]:
    """Between which points each frame lies, and how far along: `frames` evenly spread from the first to the last point;
    `loop`: and back to the first, which is not shown twice."""
    legs = points if loop else points - 1
    places = [frame * legs / (frames if loop else frames - 1) for frame in range(frames)]
    found = []
    for place in places:
        leg = min(int(place), legs - 1)
        found.append((leg, (leg + 1) % points, place - leg))
    return found
