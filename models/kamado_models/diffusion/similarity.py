"""How alike two pictures are."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

_MOST_DB = 100.0
_WINDOW, _SIGMA = 11, 1.5
_STABILIZERS = (0.01**2, 0.03**2)

Pixels = NDArray[np.float32]


def psnr(one: Pixels, other: Pixels) -> float:
    """Peak signal-to-noise ratio in dB, at most 100, of pictures (height, width, channels) in [0, 1]."""
    error = float(np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2))
    return _MOST_DB if error <= 10 ** (-_MOST_DB / 10) else float(-10 * np.log10(error))


def ssim(one: Pixels, other: Pixels) -> float:
    """Structural similarity, up to 1, of pictures (height, width, channels) in [0, 1]: the mean over a Gaussian window
    of 11 pixels, sigma 1.5, and channels (Wang, Bovik, Sheikh, Simoncelli: Image quality assessment, 2004). Pictures
    that are smaller than the window get a window of their size."""
    first, second = (_planes(picture) for picture in (one, other))
    line = _line(min(_WINDOW, *first.shape[-2:]), first)

    def blurred(planes: Tensor) -> Tensor:
        """By columns, then by rows: 22 products a pixel instead of 121."""
        return functional.conv2d(functional.conv2d(planes, line.unsqueeze(-1)), line.unsqueeze(-2))

    mean_1, mean_2 = blurred(first), blurred(second)
    variance_1 = blurred(first * first) - mean_1**2
    variance_2 = blurred(second * second) - mean_2**2
    covariance = blurred(first * second) - mean_1 * mean_2
    c1, c2 = _STABILIZERS
    likeness = (2 * mean_1 * mean_2 + c1) * (2 * covariance + c2)
    likeness /= (mean_1**2 + mean_2**2 + c1) * (variance_1 + variance_2 + c2)
    return float(likeness.mean())


def _planes(picture: Pixels) -> Tensor:
    """(channels, 1, height, width), float64."""
    return torch.from_numpy(np.ascontiguousarray(picture)).double().permute(2, 0, 1).unsqueeze(1)


def _line(size: int, like: Tensor) -> Tensor:
    """Of the window, which is the outer product of this and itself: (1, 1, size), with the sum 1."""
    offsets = torch.arange(size, dtype=like.dtype) - (size - 1) / 2
    line = torch.exp(-(offsets**2) / (2 * _SIGMA**2))
    return (line / line.sum()).expand(1, 1, size)
