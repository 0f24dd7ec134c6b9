"""FastGAN: Liu et al. 2021, "Towards Faster and Stabilized GAN Training for High-fidelity Few-shot Image Synthesis",
also called lightweight GAN. Tensor names: those of the authors' PyTorch code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .ops import SpectralConv, SpectralConvTranspose, StoredNorm, stored

_SOURCES = {64: 4, 128: 8, 256: 16, 512: 32}
"""Which smaller features weigh the channels of larger ones."""
_SINGLE = (16, 64, 256, 1024)
"""Sizes whose blocks have one convolution; the others have two, with noise behind each."""
_SMALL = 512
"""Up to this size, the authors' generator ends without tanh."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FastGanShape:
    """From names and shapes of tensors."""

    z_size: int
    channels: Mapping[int, int]
    """Of the features of each size: 4, 8, 16, ..."""
    pictures: int
    """Channels of a picture."""
    form: str
    """Of the weights: see ops."""

    @property
    def size(self) -> int:
        """Height and width of a picture."""
        return max(self.channels)


def noise_sizes(sizes: Sequence[int]) -> list[int]:
    """Height and width of the noises of a generator with features of these sizes, in order."""
    return [size for size in sorted(sizes) if size > 4 and size not in _SINGLE for _ in range(2)]


def _gated(x: Tensor) -> Tensor:
    return functional.glu(x, dim=1)


class _Noise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = stored(1)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return x + self.weight * noise


class _Initial(nn.Module):
    def __init__(self, shape: FastGanShape) -> None:
        super().__init__()
        wide = 2 * shape.channels[4]
        self.init = nn.ModuleDict(
            {"0": SpectralConvTranspose(shape.z_size, wide, 4, shape.form), "1": StoredNorm(wide)}
        )

    def forward(self, z: Tensor) -> Tensor:
        return _gated(self.init["1"](self.init["0"](z[:, :, None, None])))


class _Up(nn.ModuleDict):
    """Twice the size, then one convolution, or two with noise."""

    def __init__(self, inputs: int, outputs: int, form: str, *, single: bool) -> None:
        convs = [("1", inputs)] if single else [("1", inputs), ("5", outputs)]
        parts: dict[str, nn.Module] = {}
        for name, channels in convs:
            parts[name] = SpectralConv(channels, 2 * outputs, 3, form, padding=1)
            if not single:
                parts[str(int(name) + 1)] = _Noise()
            parts[str(int(name) + (1 if single else 2))] = StoredNorm(2 * outputs)
        super().__init__(parts)
        self._single = single

    def forward(self, x: Tensor, noises: Sequence[Tensor]) -> Tensor:
        x = self["1"](functional.interpolate(x, scale_factor=2, mode="nearest"))
        if self._single:
            return _gated(self["2"](x))
        x = self._noisy(x, "2", noises, 0)
        x = self["5"](_gated(self["3"](x)))
        return _gated(self["7"](self._noisy(x, "6", noises, 1)))

    def _noisy(self, x: Tensor, name: str, noises: Sequence[Tensor], place: int) -> Tensor:
        return self[name](x, noises[place]) if noises else x


class _Excitation(nn.Module):
    """Channels of large features weighed by small ones."""

    def __init__(self, inputs: int, outputs: int, form: str) -> None:
        super().__init__()
        self.main = nn.ModuleDict(
            {"1": SpectralConv(inputs, outputs, 4, form), "3": SpectralConv(outputs, outputs, 1, form)}
        )

    def forward(self, small: Tensor, large: Tensor) -> Tensor:
        seen = self.main["1"](functional.adaptive_avg_pool2d(small, 4))
        return large * torch.sigmoid(self.main["3"](functional.silu(seen)))


class FastGan(nn.Module):
    """Latents to pictures."""

    def __init__(self, shape: FastGanShape) -> None:
        super().__init__()
        self._sizes = sorted(shape.channels)
        self.init = _Initial(shape)
        for before, size in zip(self._sizes, self._sizes[1:], strict=False):
            inputs, outputs = shape.channels[before], shape.channels[size]
            self.add_module(f"feat_{size}", _Up(inputs, outputs, shape.form, single=size in _SINGLE))
            if size in _SOURCES:
                self.add_module(f"se_{size}", _Excitation(shape.channels[_SOURCES[size]], outputs, shape.form))
        self.to_big = SpectralConv(shape.channels[shape.size], shape.pictures, 3, shape.form, padding=1)

    def forward(self, z: Tensor, noises: Sequence[Tensor]) -> Tensor:
        """z (rows, z); noises: none, or one (rows, 1, size, size) for each of `noise_sizes`
        -> (rows, channels, size, size), about in [-1, 1]."""
        features = {4: self.init(z)}
        left = list(noises)
        for before, size in zip(self._sizes, self._sizes[1:], strict=False):
            taken = 0 if size in _SINGLE or not noises else 2
            x = self.get_submodule(f"feat_{size}")(features[before], left[:taken])
            left = left[taken:]
            if size in _SOURCES:
                x = self.get_submodule(f"se_{size}")(features[_SOURCES[size]], x)
            features[size] = x
        picture: Tensor = self.to_big(features[self._sizes[-1]])
        return picture if self._sizes[-1] <= _SMALL else torch.tanh(picture)
