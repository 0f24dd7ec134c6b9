"""DCGAN: Radford, Metz, Chintala 2015, "Unsupervised Representation Learning with Deep Convolutional Generative
Adversarial Networks". Tensor names: those of a `nn.Sequential` of transposed convolution, norm, rectifier and so on, as
in PyTorch's example of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .ops import StoredNorm, stored


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One transposed convolution. The first one has stride 1 and no padding, all others double the size."""

    number: int
    """Of the convolution in the sequence; its norm, if there is one, has the next."""
    inputs: int
    outputs: int
    size: int
    """Of its filter."""
    bias: bool
    norm: bool


class _Up(nn.Module):
    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.weight = stored(stage.inputs, stage.outputs, stage.size, stage.size)
        self.bias = stored(stage.outputs) if stage.bias else None
        self._stride, self._padding = (1, 0) if stage.number == 0 else (2, (stage.size - 2) // 2)

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv_transpose2d(x, self.weight, self.bias, self._stride, self._padding)


class Dcgan(nn.Module):
    """Latents to pictures."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        super().__init__()
        self.main = nn.ModuleDict()
        self._stages = tuple(stages)
        for stage in stages:
            self.main[str(stage.number)] = _Up(stage)
            if stage.norm:
                self.main[str(stage.number + 1)] = StoredNorm(stage.outputs)

    def forward(self, z: Tensor) -> Tensor:
        """(rows, z) -> (rows, channels, height, width) in [-1, 1]."""
        x = z[:, :, None, None]
        for stage in self._stages:
            x = self.main[str(stage.number)](x)
            if stage.norm:
                x = self.main[str(stage.number + 1)](x)
            x = torch.tanh(x) if stage is self._stages[-1] else functional.relu(x)
        return x
