"""BigGAN: Brock, Donahue, Simonyan 2018, "Large Scale GAN Training for High Fidelity Natural Image Synthesis", appendix
B, the first of its architectures. Tensor names: those of the authors' PyTorch release."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .ops import SpectralConv, SpectralLinear, attended, stored


@dataclass(frozen=True, slots=True, kw_only=True)
class BigGan2018Shape:
    """From names and shapes of tensors."""

    num_classes: int
    shared: int
    """Numbers of an embedded class that all norms share; 0: each norm has scales and offsets of each class."""
    z_part: int
    """Latents that go into the first layer, and into each block where `split`."""
    split: bool
    """Whether each block has latents of its own."""
    blocks: tuple[tuple[int, int], ...]
    """Channels that go into each block, and come out."""
    gammas: tuple[tuple[int, ...] | None, ...]
    """Shape of the weight of the attention behind each block; None: there is none."""
    eps: float
    counted: bool
    """Whether statistics come with the number of batches that they are the sums of."""
    form: str
    """Of the weights: see ops."""


class _Table(nn.Module):
    """A row of numbers for each class."""

    def __init__(self, num_classes: int, size: int) -> None:
        super().__init__()
        self.weight = stored(num_classes, size)

    def forward(self, shares: Tensor) -> Tensor:
        return shares @ self.weight


class _Standardized(nn.Module):
    """Batch normalization by stored statistics, before anything is scaled."""

    def __init__(self, channels: int, shape: BigGan2018Shape) -> None:
        super().__init__()
        self.stored_mean, self.stored_var = stored(channels), stored(channels)
        if shape.counted:
            self.accumulation_counter = stored(1)
        self._eps, self._counted = shape.eps, shape.counted

    def _standardized(self, x: Tensor) -> Tensor:
        mean: Tensor = self.stored_mean
        var: Tensor = self.stored_var
        if self._counted:  # no batches: these are no sums but running means
            count = torch.where(self.accumulation_counter > 0, self.accumulation_counter, 1.0)
            mean, var = mean / count, var / count
        return functional.batch_norm(x, mean, var, eps=self._eps)


class _Norm(_Standardized):
    def __init__(self, channels: int, shape: BigGan2018Shape) -> None:
        super().__init__(channels, shape)
        self.gain, self.bias = stored(channels), stored(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self._standardized(x) * self.gain[:, None, None] + self.bias[:, None, None]


class _ConditionalNorm(_Standardized):
    def __init__(self, channels: int, shape: BigGan2018Shape) -> None:
        super().__init__(channels, shape)
        wide = shape.shared + (shape.z_part if shape.split else 0)
        self.gain, self.bias = (
            SpectralLinear(wide, channels, shape.form) if shape.shared else _Table(shape.num_classes, channels)
            for _ in range(2)
        )

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale: Tensor = 1 + self.gain(condition)
        moved: Tensor = self.bias(condition)
        return self._standardized(x) * scale[:, :, None, None] + moved[:, :, None, None]


class _Attention(nn.Module):
    def __init__(self, channels: int, form: str, gamma: tuple[int, ...]) -> None:
        super().__init__()
        self.theta = SpectralConv(channels, channels // 8, 1, form)
        self.phi = SpectralConv(channels, channels // 8, 1, form)
        self.g = SpectralConv(channels, channels // 2, 1, form)
        self.o = SpectralConv(channels // 2, channels, 1, form)
        self.gamma = stored(*gamma)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.gamma * self.o(attended(self.theta(x), self.phi(x), self.g(x)))
        return x + added


class _Block(nn.Module):
    """Doubles the size."""

    def __init__(self, inputs: int, outputs: int, shape: BigGan2018Shape) -> None:
        super().__init__()
        self.bn1, self.bn2 = _ConditionalNorm(inputs, shape), _ConditionalNorm(outputs, shape)
        self.conv1 = SpectralConv(inputs, outputs, 3, shape.form, padding=1, bias=True)
        self.conv2 = SpectralConv(outputs, outputs, 3, shape.form, padding=1, bias=True)
        self.conv_sc = SpectralConv(inputs, outputs, 1, shape.form, bias=True)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        added = functional.interpolate(functional.relu(self.bn1(x, condition)), scale_factor=2, mode="nearest")
        added = functional.relu(self.bn2(self.conv1(added), condition))
        # One pixel wide: the same before pixels are doubled as behind, and a quarter of the work.
        straight: Tensor = functional.interpolate(self.conv_sc(x), scale_factor=2, mode="nearest")
        return straight + self.conv2(added)  # type: ignore[no-any-return]


class BigGan2018(nn.Module):
    """Latents and classes to pictures."""

    def __init__(self, shape: BigGan2018Shape) -> None:
        super().__init__()
        self._shape = shape
        if shape.shared:
            self.shared = _Table(shape.num_classes, shape.shared)
        self.linear = SpectralLinear(shape.z_part, 4 * 4 * shape.blocks[0][0], shape.form, bias=True)
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                [_Block(inputs, outputs, shape)] + ([] if gamma is None else [_Attention(outputs, shape.form, gamma)])
            )
            for (inputs, outputs), gamma in zip(shape.blocks, shape.gammas, strict=True)
        )
        last = shape.blocks[-1][1]
        self.output_layer = nn.Sequential(
            _Norm(last, shape),
            nn.ReLU(),
            SpectralConv(last, 3, 3, shape.form, padding=1, bias=True),
        )

    def forward(self, z: Tensor, classes: Tensor) -> Tensor:
        """z (rows, z), shares of classes (rows, classes) -> (rows, 3, height, width) in [-1, 1]."""
        shape = self._shape
        embedded = self.shared(classes) if shape.shared else classes
        first, *parts = z.split(shape.z_part, dim=1)
        x = self.linear(first).view(len(z), -1, 4, 4)
        for place, layers in enumerate(self.blocks):
            condition = torch.cat((embedded, parts[place]), dim=1) if shape.split else embedded
            for layer in layers:  # type: ignore[attr-defined]
                x = layer(x, condition) if isinstance(layer, _Block) else layer(x)
        picture: Tensor = self.output_layer(x)
        return torch.tanh(picture)
