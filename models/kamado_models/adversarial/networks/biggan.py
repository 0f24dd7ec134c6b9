"""BigGAN-deep: Brock, Donahue, Simonyan 2018, "Large Scale GAN Training for High Fidelity Natural Image Synthesis",
appendix B. Tensor names and configuration: those of the published PyTorch conversions of the authors' weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .ops import SpectralConv, SpectralLinear, attended, stored


@dataclass(frozen=True, slots=True, kw_only=True)
class BigGanShape:
    """From the configuration."""

    z_size: int
    num_classes: int
    channels: int
    """`channel_width`"""
    layers: tuple[tuple[bool, int, int], ...]
    """Of each block: whether it doubles the size; multiples of `channels` that go in and come out."""
    attention_at: int
    """The block before which attention stands."""
    eps: float
    num_stats: int
    """For so many truncations, evenly from 0 to 1, statistics are stored."""
    form: str
    """Of the weights: see ops."""


class _Norm(nn.Module):
    """Batch normalization by the stored statistics of a truncation, scaled and moved by a condition where there is
    one."""

    def __init__(self, channels: int, shape: BigGanShape, *, conditional: bool = True) -> None:
        super().__init__()
        self.running_means = stored(shape.num_stats, channels)
        self.running_vars = stored(shape.num_stats, channels)
        self._eps = shape.eps
        self._conditional = conditional
        if conditional:
            self.scale = SpectralLinear(2 * shape.z_size, channels, shape.form)
            self.offset = SpectralLinear(2 * shape.z_size, channels, shape.form)
        else:
            self.weight = stored(channels)
            self.bias = stored(channels)

    def forward(self, x: Tensor, truncation: float, condition: Tensor) -> Tensor:
        part, start = math.modf(truncation * (len(self.running_means) - 1))
        place = int(start)
        mean, var = self.running_means[place], self.running_vars[place]
        if part:
            # Which of the two neighbours has which share is as in the published code.
            mean = mean * part + self.running_means[place + 1] * (1 - part)
            var = var * part + self.running_vars[place + 1] * (1 - part)
        x = (x - mean[:, None, None]) / torch.sqrt(var[:, None, None] + self._eps)
        if not self._conditional:
            return x * self.weight[:, None, None] + self.bias[:, None, None]
        scale: Tensor = 1 + self.scale(condition)
        return x * scale[:, :, None, None] + self.offset(condition)[:, :, None, None]  # type: ignore[no-any-return]


class _Attention(nn.Module):
    def __init__(self, channels: int, form: str) -> None:
        super().__init__()
        self.snconv1x1_theta = SpectralConv(channels, channels // 8, 1, form)
        self.snconv1x1_phi = SpectralConv(channels, channels // 8, 1, form)
        self.snconv1x1_g = SpectralConv(channels, channels // 2, 1, form)
        self.snconv1x1_o_conv = SpectralConv(channels // 2, channels, 1, form)
        self.gamma = stored(1)

    def forward(self, x: Tensor) -> Tensor:
        seen = attended(self.snconv1x1_theta(x), self.snconv1x1_phi(x), self.snconv1x1_g(x))
        added: Tensor = self.gamma * self.snconv1x1_o_conv(seen)
        return x + added


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, shape: BigGanShape, *, up: bool) -> None:
        super().__init__()
        middle = inputs // 4
        self.bn_0, self.conv_0 = _Norm(inputs, shape), SpectralConv(inputs, middle, 1, shape.form, bias=True)
        self.bn_1 = _Norm(middle, shape)
        self.conv_1 = SpectralConv(middle, middle, 3, shape.form, padding=1, bias=True)
        self.bn_2 = _Norm(middle, shape)
        self.conv_2 = SpectralConv(middle, middle, 3, shape.form, padding=1, bias=True)
        self.bn_3, self.conv_3 = _Norm(middle, shape), SpectralConv(middle, outputs, 1, shape.form, bias=True)
        self._up, self._outputs = up, outputs

    def forward(self, x: Tensor, truncation: float, condition: Tensor) -> Tensor:
        straight = x[:, : self._outputs]
        x = self.conv_0(functional.relu(self.bn_0(x, truncation, condition)))
        x = functional.relu(self.bn_1(x, truncation, condition))
        if self._up:
            x, straight = (functional.interpolate(each, scale_factor=2, mode="nearest") for each in (x, straight))
        x = self.conv_2(functional.relu(self.bn_2(self.conv_1(x), truncation, condition)))
        added: Tensor = self.conv_3(functional.relu(self.bn_3(x, truncation, condition)))
        return straight + added


class _Generator(nn.Module):
    def __init__(self, shape: BigGanShape) -> None:
        super().__init__()
        width = shape.channels
        self.gen_z = SpectralLinear(2 * shape.z_size, 4 * 4 * 16 * width, shape.form, bias=True)
        layers: list[nn.Module] = []
        for place, (up, inputs, outputs) in enumerate(shape.layers):
            if place == shape.attention_at:
                layers.append(_Attention(inputs * width, shape.form))
            layers.append(_Block(inputs * width, outputs * width, shape, up=up))
        self.layers = nn.ModuleList(layers)
        self.bn = _Norm(width, shape, conditional=False)
        self.conv_to_rgb = SpectralConv(width, width, 3, shape.form, padding=1, bias=True)
        self._width = width

    def forward(self, condition: Tensor, truncation: float) -> Tensor:
        x = self.gen_z(condition).view(-1, 4, 4, 16 * self._width).permute(0, 3, 1, 2).contiguous()
        for layer in self.layers:
            x = layer(x, truncation, condition) if isinstance(layer, _Block) else layer(x)
        x = self.conv_to_rgb(functional.relu(self.bn(x, truncation, condition)))
        return torch.tanh(x[:, :3])


class BigGan(nn.Module):
    """Latents and classes to pictures."""

    def __init__(self, shape: BigGanShape) -> None:
        super().__init__()
        self.embeddings = nn.Linear(shape.num_classes, shape.z_size, bias=False)
        self.generator = _Generator(shape)

    def forward(self, z: Tensor, classes: Tensor, truncation: float) -> Tensor:
        """z (rows, z), shares of classes (rows, classes), truncation in (0, 1] -> (rows, 3, height, width) in [-1, 1].
        z is drawn from a normal distribution cut at 2 and multiplied by the truncation."""
        return self.generator(torch.cat((z, self.embeddings(classes)), dim=1), truncation)  # type: ignore[no-any-return]
