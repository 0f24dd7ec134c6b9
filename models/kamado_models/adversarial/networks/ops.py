"""What several generators are made of: filters that change the size, norms with stored statistics, spectral norms."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

SLOPE = 0.2
"""Of leaky rectifiers, below zero."""


def stored(*shape: int) -> nn.Parameter:
    """A place for a tensor of the checkpoint."""
    return nn.Parameter(torch.zeros(shape), requires_grad=False)


def resample(
    x: Tensor, taps: Tensor | None, *, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0), gain: float = 1.0
) -> Tensor:
    """Insert `up` - 1 zeros behind each pixel, pad (less than 0: crop) both dimensions alike, filter, keep every
    `down`-th pixel. x: (rows, channels, height, width); taps: (n, n), or (n,) for both dimensions in turn; None: a
    single one. After Karras et al. 2019, "Analyzing and Improving the Image Quality of StyleGAN", appendix B."""
    rows, channels, height, width = x.shape
    if up > 1:
        wide = x.new_zeros(rows, channels, height, up, width, up)
        wide[:, :, :, 0, :, 0] = x
        x = wide.view(rows, channels, height * up, width * up)
    if any(pad):
        x = functional.pad(x, (pad[0], pad[1], pad[0], pad[1]))
    if taps is None:
        x = x * gain if gain != 1.0 else x
    else:
        turned = (taps.to(x.dtype) * gain ** (taps.ndim / 2)).flip(list(range(taps.ndim)))
        if taps.ndim == 1:
            x = functional.conv2d(x, turned.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
            x = functional.conv2d(x, turned.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
        else:
            x = functional.conv2d(x, turned.expand(channels, 1, *turned.shape), groups=channels)
    return x[:, :, ::down, ::down] if down > 1 else x


def attended(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """What each place sees of all others: Zhang et al. 2018, "Self-Attention Generative Adversarial Networks", with
    keys and values of half the size. All (rows, channels, height, width); what comes out has the channels of the
    values."""
    size = queries.shape[2:]
    keys, values = (functional.max_pool2d(each, 2).flatten(2) for each in (keys, values))
    shares = (queries.flatten(2).transpose(1, 2) @ keys).softmax(dim=-1)
    seen: Tensor = (values @ shares.transpose(1, 2)).unflatten(2, size)
    return seen


def unit_length(x: Tensor) -> Tensor:
    """Rows of mean square 1. x: (rows, numbers)."""
    return x * (x.float().square().mean(dim=1, keepdim=True) + 1e-8).rsqrt().to(x.dtype)


class ScaledLinear(nn.Module):
    """A linear layer whose weights are stored large and scaled when they are used: "equalized learning rate", Karras et
    al. 2017."""

    def __init__(self, inputs: int, outputs: int, *, rate: float = 1.0, rectified: bool = False) -> None:
        """`rate`: of learning. `rectified`: a leaky rectifier of gain sqrt(2) follows."""
        super().__init__()
        self.weight = stored(outputs, inputs)
        self.bias = stored(outputs)
        self._gain = rate / math.sqrt(inputs)
        self._rate = rate
        self._rectified = rectified

    def forward(self, x: Tensor) -> Tensor:
        """(rows, inputs) -> (rows, outputs)."""
        x = functional.linear(x, self.weight) * self._gain + self.bias * self._rate
        return functional.leaky_relu(x, SLOPE) * math.sqrt(2) if self._rectified else x


class StoredNorm(nn.Module):
    """Batch normalization by stored statistics."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = stored(channels)
        self.bias = stored(channels)
        self.running_mean = stored(channels)
        self.running_var = stored(channels)
        self._eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x: (rows, channels, height, width)."""
        return functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self._eps)


class _Spectral(nn.Module):
    """A layer whose weight is divided by its largest singular value, as estimated by stored vectors u and v: Miyato et
    al. 2018, "Spectral Normalization for Generative Adversarial Networks"."""

    _outputs_at = 0
    """The dimension of the weight that is the rows of its matrix."""

    def __init__(self, shape: tuple[int, ...], form: str, bias: int) -> None:
        """`form`: what is stored: "plain" (the divided weight), "uv", "u" alone, or "u0": u by that name, which is one
        step of the power method behind; `bias`: how many numbers."""
        super().__init__()
        self._form = form
        rows = shape[self._outputs_at]
        if form in ("plain", "u0"):
            self.weight = stored(*shape)
        else:
            self.weight_orig = stored(*shape)
            self.weight_u = stored(rows)
        if form == "u0":
            self.u0 = stored(1, rows)
        if form == "uv":
            self.weight_v = stored(math.prod(shape) // rows)
        self.bias = stored(bias) if bias else None

    def _weight_and_norm(self) -> tuple[Tensor, Tensor | float]:
        if self._form == "plain":
            return self.weight, 1.0
        weight = self.weight if self._form == "u0" else self.weight_orig
        matrix = weight.transpose(0, self._outputs_at).flatten(1)
        if self._form == "u0":
            return weight, (matrix @ functional.normalize(matrix.t() @ self.u0[0], dim=0, eps=1e-12)).norm()
        v = self.weight_v if self._form == "uv" else functional.normalize(matrix.t() @ self.weight_u, dim=0, eps=1e-12)
        return weight, self.weight_u @ (matrix @ v)

    def _biased(self, x: Tensor) -> Tensor:
        if self.bias is None:
            return x
        return x + (self.bias.view(1, -1, 1, 1) if x.ndim == 4 else self.bias)


class SpectralLinear(_Spectral):
    """A linear layer."""

    def __init__(self, inputs: int, outputs: int, form: str, *, bias: bool = False) -> None:
        super().__init__((outputs, inputs), form, outputs if bias else 0)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, inputs) -> (rows, outputs)."""
        weight, norm = self._weight_and_norm()
        return self._biased(functional.linear(x, weight) / norm)


class SpectralConv(_Spectral):
    """A convolution."""

    def __init__(
        self, inputs: int, outputs: int, size: int, form: str, *, padding: int = 0, bias: bool = False
    ) -> None:
        super().__init__((outputs, inputs, size, size), form, outputs if bias else 0)
        self._padding = padding

    def forward(self, x: Tensor) -> Tensor:
        """(rows, inputs, height, width) -> (rows, outputs, height', width')."""
        weight, norm = self._weight_and_norm()
        return self._biased(functional.conv2d(x, weight, padding=self._padding) / norm)


class SpectralConvTranspose(_Spectral):
    """A transposed convolution of stride 1, without padding."""

    _outputs_at = 1

    def __init__(self, inputs: int, outputs: int, size: int, form: str) -> None:
        super().__init__((inputs, outputs, size, size), form, 0)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, inputs, height, width) -> (rows, outputs, height + size - 1, width + size - 1)."""
        weight, norm = self._weight_and_norm()
        return functional.conv_transpose2d(x, weight) / norm
