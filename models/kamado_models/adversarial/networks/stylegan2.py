"""StyleGAN2: Karras et al. 2019, "Analyzing and Improving the Image Quality of StyleGAN", and 2020, "Training
Generative Adversarial Networks with Limited Data". Tensor names: those of the authors' PyTorch code (ADA);
`stylegan2_names` brings those of the other widespread PyTorch port to them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .ops import SLOPE, ScaledLinear, resample, stored

_CLAMP = 256.0
"""Where the authors' later code cuts features off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StyleGan2Shape:
    """From names and shapes of tensors."""

    w_size: int
    channels: Mapping[int, int]
    """Of the features of each size: 4, 8, 16, ..."""
    pictures: int
    """Channels of a picture."""
    taps: int
    """Of the filter that doubles sizes, in one dimension."""
    noise: bool
    """Whether noise is stored."""
    form: str
    """How sizes follow each other: "skip" (each adds to the picture of the one before), "resnet" (its features to
    those of the one before), "orig" (neither)."""
    ported: bool
    """Whether shapes and scales of the tensors are those of the port."""

    @property
    def size(self) -> int:
        """Height and width of a picture."""
        return max(self.channels)

    @property
    def num_styles(self) -> int:
        """How many styles a picture takes."""
        return 2 * len(self.channels)


class _Modulated(nn.Module):
    """A convolution whose input channels are weighed by a style."""

    def __init__(self, inputs: int, outputs: int, size: int, shape: StyleGan2Shape) -> None:
        super().__init__()
        self.affine = ScaledLinear(shape.w_size, inputs)
        dims = (outputs, inputs, size, size)
        self.weight = stored(1, *dims) if shape.ported else stored(*dims)
        self._dims = dims
        self._clamp = None if shape.ported else _CLAMP

    def _clamped(self, x: Tensor) -> Tensor:
        return x if self._clamp is None else x.clamp(-self._clamp, self._clamp)


class _Layer(_Modulated):
    def __init__(self, inputs: int, outputs: int, size: int, shape: StyleGan2Shape, *, up: bool) -> None:
        """`size`: height and width of what comes out."""
        super().__init__(inputs, outputs, 3, shape)
        self.bias = stored(outputs)
        self.noise_strength = stored(1) if shape.ported else stored()
        if shape.noise:
            self.noise_const = stored(1, 1, size, size) if shape.ported else stored(size, size)
        if up or not shape.ported:
            self.resample_filter = stored(shape.taps, shape.taps)
        self._up = up
        # The port's weights are scaled when they are used, and its filters hold the gain.
        self._gain = 1 / math.sqrt(inputs * 9) if shape.ported else 1.0
        self._filter_gain = 1.0 if shape.ported else 4.0

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None, gain: float = 1.0) -> Tensor:
        weight, style = self.weight.view(self._dims) * self._gain, self.affine(w)
        norm = (style.square() @ weight.square().sum(dim=(2, 3)).t() + 1e-8).rsqrt()
        x = x * style[:, :, None, None]
        if self._up:
            taps = self.resample_filter
            before, behind = (taps.shape[0] - 1) // 2, (taps.shape[0] - 2) // 2
            x = functional.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
            x = resample(x, taps, pad=(before, behind), gain=self._filter_gain)
        else:
            x = functional.conv2d(x, weight, padding=1)
        x = x * norm[:, :, None, None]
        if noise is not None:
            x = x + noise * self.noise_strength
        x = functional.leaky_relu(x + self.bias[:, None, None], SLOPE) * math.sqrt(2)
        return self._clamped(x) * gain if gain != 1.0 else self._clamped(x)


class _ToPicture(_Modulated):
    def __init__(self, inputs: int, shape: StyleGan2Shape) -> None:
        super().__init__(inputs, shape.pictures, 1, shape)
        self.bias = stored(1, shape.pictures, 1, 1) if shape.ported else stored(shape.pictures)
        self._gain = 1 / math.sqrt(inputs)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        style = self.affine(w) * self._gain
        x = functional.conv2d(x * style[:, :, None, None], self.weight.view(self._dims))
        return self._clamped(x + self.bias.view(1, -1, 1, 1))


def _doubled(x: Tensor, taps: Tensor, gain: float) -> Tensor:
    """Twice the size."""
    return resample(x, taps, up=2, pad=((taps.shape[0] + 1) // 2, (taps.shape[0] - 2) // 2), gain=gain)


class _Straight(nn.Module):
    """Past the convolutions of a block ("resnet")."""

    def __init__(self, inputs: int, outputs: int, taps: int) -> None:
        super().__init__()
        self.weight = stored(outputs, inputs, 1, 1)
        self.resample_filter = stored(taps, taps)
        self._gain = 1 / math.sqrt(inputs)

    def forward(self, x: Tensor) -> Tensor:
        return _doubled(functional.conv2d(x, self.weight * self._gain), self.resample_filter, 4.0)


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, size: int, shape: StyleGan2Shape) -> None:
        super().__init__()
        if size == 4:
            self.const = stored(1, outputs, 4, 4) if shape.ported else stored(outputs, 4, 4)
        else:
            self.conv0 = _Layer(inputs, outputs, size, shape, up=True)
        if size > 4 or not shape.ported:
            self.resample_filter = stored(shape.taps, shape.taps)
        self.conv1 = _Layer(outputs, outputs, size, shape, up=False)
        self.torgb = _ToPicture(outputs, shape) if shape.form == "skip" or size == shape.size else None
        self.skip = _Straight(inputs, outputs, shape.taps) if shape.form == "resnet" and size > 4 else None

    def forward(self, x: Tensor, styles: Sequence[Tensor], noises: Sequence[Tensor | None]) -> Tensor:
        """x (rows, inputs, size / 2, size / 2) -> (rows, outputs, size, size). styles, noises: of its two layers; the
        smallest block has one, and takes no x."""
        if not hasattr(self, "conv0"):
            x = self.const.view(1, -1, 4, 4).expand(len(styles[0]), -1, -1, -1)
            return self.conv1(x, styles[0], noises[0])  # type: ignore[no-any-return]
        if self.skip is None:
            return self.conv1(self.conv0(x, styles[0], noises[0]), styles[1], noises[1])  # type: ignore[no-any-return]
        half = math.sqrt(0.5)
        straight = self.skip(x) * half
        added: Tensor = self.conv1(self.conv0(x, styles[0], noises[0]), styles[1], noises[1], gain=half)
        return straight + added  # type: ignore[no-any-return]


class Synthesis(nn.Module):
    """Styles to pictures."""

    def __init__(self, shape: StyleGan2Shape) -> None:
        super().__init__()
        self._sizes = sorted(shape.channels)
        self._filter_gain = 1.0 if shape.ported else 4.0
        for before, size in zip([4, *self._sizes], self._sizes, strict=False):
            self.add_module(f"b{size}", _Block(shape.channels[before], shape.channels[size], size, shape))

    def noises(self) -> list[Tensor]:
        """Those that are stored, each (1, 1, size, size)."""
        layers = [module for module in self.modules() if isinstance(module, _Layer)]
        return [layer.noise_const.view(1, 1, *layer.noise_const.shape[-2:]) for layer in layers]

    def forward(self, w: Tensor, noises: Sequence[Tensor]) -> Tensor:
        """w (rows, styles, numbers); noises: none, or one (rows, 1, size, size) for each layer (4, 8, 8, 16, 16, ...)
        -> (rows, channels, size, size), about in [-1, 1]."""
        picture: Tensor | None = None
        x = torch.empty(0)
        styles = w.unbind(dim=1)
        left: Sequence[Tensor | None] = noises or [None] * len(styles)
        for place, size in enumerate(self._sizes):
            block = self.get_submodule(f"b{size}")
            assert isinstance(block, _Block)
            start = max(2 * place - 1, 0)
            x = block(x, styles[start : start + 2], left[start : start + 2])
            if picture is not None:
                picture = _doubled(picture, block.resample_filter, self._filter_gain)
            if block.torgb is not None:
                added = block.torgb(x, styles[2 * place + 1])
                picture = added if picture is None else picture + added
        assert picture is not None
        return picture
