"""StyleGAN3, T and R: Karras et al. 2021, "Alias-Free Generative Adversarial Networks". Tensor names: those of the
authors' PyTorch code."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from .ops import SLOPE, ScaledLinear, resample, stored

_CLAMP = 256.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer, the names of whose tensors begin with `name`."""

    name: str
    inputs: int
    outputs: int
    kernel: int
    in_size: int
    out_size: int
    up: int
    down: int
    up_taps: int
    """1: there is no filter."""
    down_taps: int
    radial: bool
    """Whether the second filter is one of two dimensions."""
    to_picture: bool

    @property
    def padding(self) -> tuple[int, int]:
        """Before and behind, so that filters leave what is wanted; less than 0: cropped."""
        total = (self.out_size - 1) * self.down + 1 - (self.in_size + self.kernel - 1) * self.up
        total += self.up_taps + self.down_taps - 2
        before = (total + self.up) // 2
        return before, total - before


@dataclass(frozen=True, slots=True, kw_only=True)
class StyleGan3Shape:
    """From names and shapes of tensors, and a configuration where there is one."""

    w_size: int
    size: int
    """Height and width of a picture."""
    first_rate: float
    """Samples across the picture, without its margin, in the first layer."""
    first_cutoff: float
    first_size: int
    """Of its features, margin included."""
    first_channels: int
    output_scale: float
    layers: tuple[Layer, ...] = field(repr=False)


class _Input(nn.Module):
    """Waves of stored frequencies, turned and moved by the first style."""

    def __init__(self, shape: StyleGan3Shape) -> None:
        super().__init__()
        channels = shape.first_channels
        self.weight = stored(channels, channels)
        self.affine = ScaledLinear(shape.w_size, 4)
        self.transform = stored(3, 3)
        self.freqs = stored(channels, 2)
        self.phases = stored(channels)
        self._shape = shape

    def forward(self, w: Tensor) -> Tensor:
        shape = self._shape
        turn = self.affine(w)
        turn = turn / turn[:, :2].norm(dim=1, keepdim=True)
        cos, sin, right, down = turn.unbind(dim=1)
        zero, one = torch.zeros_like(cos), torch.ones_like(cos)
        rotation = torch.stack((cos, -sin, zero, sin, cos, zero, zero, zero, one), dim=1).view(-1, 3, 3)
        move = torch.stack((one, zero, -right, zero, one, -down, zero, zero, one), dim=1).view(-1, 3, 3)
        whole = rotation @ move @ self.transform
        phases = self.phases + (self.freqs @ whole[:, :2, 2:]).squeeze(2)
        freqs = self.freqs @ whole[:, :2, :2]
        fade = (freqs.norm(dim=2) - shape.first_cutoff) / (shape.first_rate / 2 - shape.first_cutoff)
        places = torch.arange(shape.first_size, device=w.device, dtype=w.dtype) + 0.5 - shape.first_size / 2
        places = places / shape.first_rate
        waves = (
            places[None, None, :, None] * freqs[:, None, None, :, 0]
            + places[None, :, None, None] * freqs[:, None, None, :, 1]
        )
        x = torch.sin(2 * math.pi * (waves + phases[:, None, None])) * (1 - fade).clamp(0, 1)[:, None, None]
        return functional.linear(x, self.weight / math.sqrt(shape.first_channels)).permute(0, 3, 1, 2)


class _Layer(nn.Module):
    def __init__(self, layer: Layer, w_size: int) -> None:
        super().__init__()
        self.affine = ScaledLinear(w_size, layer.inputs)
        self.weight = stored(layer.outputs, layer.inputs, layer.kernel, layer.kernel)
        self.bias = stored(layer.outputs)
        self.magnitude_ema = stored()
        self.up_filter = stored(layer.up_taps) if layer.up_taps > 1 else None
        taps = (layer.down_taps,) * (2 if layer.radial else 1)
        self.down_filter = stored(*taps) if layer.down_taps > 1 else None
        self._layer = layer

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        layer = self._layer
        style: Tensor = self.affine(w)
        weight: Tensor = self.weight
        if layer.to_picture:
            x = self._convolved(x, style / math.sqrt(layer.inputs * layer.kernel**2), weight)
        else:
            weight = weight * weight.square().mean(dim=(1, 2, 3), keepdim=True).rsqrt()
            style = style * style.square().mean(dim=1, keepdim=True).rsqrt()
            norm = (style.square() @ weight.square().sum(dim=(2, 3)).t() + 1e-8).rsqrt()
            x = self._convolved(x, style, weight) * norm[:, :, None, None]
        x = x + self.bias[:, None, None]
        x = resample(x, self.up_filter, up=layer.up, pad=layer.padding, gain=layer.up**2)
        if not layer.to_picture:
            x = functional.leaky_relu(x, SLOPE) * math.sqrt(2)
        return resample(x.clamp(-_CLAMP, _CLAMP), self.down_filter, down=layer.down)

    def _convolved(self, x: Tensor, style: Tensor, weight: Tensor) -> Tensor:
        style = style * self.magnitude_ema.rsqrt()
        return functional.conv2d(x * style[:, :, None, None], weight, padding=self._layer.kernel - 1)


class Synthesis(nn.Module):
    """Styles to pictures."""

    def __init__(self, shape: StyleGan3Shape) -> None:
        super().__init__()
        self.input = _Input(shape)
        self._names = [layer.name for layer in shape.layers]
        self._scale = shape.output_scale
        for layer in shape.layers:
            self.add_module(layer.name, _Layer(layer, shape.w_size))

    def forward(self, w: Tensor) -> Tensor:
        """(rows, styles, numbers) -> (rows, channels, size, size), about in [-1, 1]."""
        first, *others = w.unbind(dim=1)
        x: Tensor = self.input(first)
        for name, style in zip(self._names, others, strict=True):
            x = self.get_submodule(name)(x, style)
        return x * self._scale
