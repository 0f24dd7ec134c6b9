"""StyleGAN3 and FastGAN in another formulation, as oracles, with random checkpoints of them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import spectral_norm

from .published import linear, modulated, spread
from .weights import affine, mapping, random

SIZE, NUM_LAYERS = 32, 4


def design() -> list[tuple[int, int]]:
    """(sampling rate, size) of each layer of a generator of SIZE pixels, as the paper has them."""
    found = []
    for place in range(NUM_LAYERS + 1):
        share = min(place / (NUM_LAYERS - 2), 1)
        stopband = 2**2.1 * (SIZE / 2 * 2**0.3 / 2**2.1) ** share
        rate = 2 ** math.ceil(math.log2(min(2 * stopband, SIZE)))
        found.append((rate, SIZE if place >= NUM_LAYERS - 1 else rate + 20))
    return found


def stylegan3(*, radial: bool, kernel: int) -> dict[str, Tensor]:
    """A random generator; `radial` filters and kernels of 1: R, else T."""
    generator, state, channels = torch.Generator().manual_seed(1), {}, [6, 6, 5, 4, 3]
    mapping(state, generator, layers=2)
    first = "synthesis.input"
    state[f"{first}.weight"], state[f"{first}.freqs"] = random((6, 6), generator), random((6, 2), generator)
    state[f"{first}.phases"], state[f"{first}.transform"] = torch.rand(6, generator=generator) - 0.5, torch.eye(3)
    state[f"{first}.transform"][0, 2] = 0.1
    affine(state, first, 4, generator)
    layers = design()
    for place, (rate, size) in enumerate(layers):
        is_last = place == NUM_LAYERS
        name, inputs, own = (
            f"synthesis.L{place}_{size}_{channels[place]}",
            channels[max(place - 1, 0)],
            1 if is_last else kernel,
        )
        before = layers[max(place - 1, 0)][0]
        fine = max(rate, before) * (1 if is_last else 2)
        affine(state, name, inputs, generator)
        state[f"{name}.weight"] = random((channels[place], inputs, own, own), generator)
        state[f"{name}.bias"] = random((channels[place],), generator, 0.2)
        state[f"{name}.magnitude_ema"] = torch.tensor(1.7)
        if fine > before and not is_last:
            state[f"{name}.up_filter"] = torch.rand(6 * fine // before, generator=generator) / 6
        if fine > rate and not is_last:
            taps = torch.rand(6 * fine // rate, generator=generator) / 6
            is_radial = radial and place < NUM_LAYERS - 2
            state[f"{name}.down_filter"] = torch.outer(taps, taps.flip(0)) if is_radial else taps
    return state


def stylegan3_picture(state: Mapping[str, Tensor], w: Tensor) -> Tensor:
    """Synthesis; w: (rows, styles, numbers)."""
    names = sorted({".".join(name.split(".")[:2]) for name in state if name.startswith("synthesis.L")})
    layers = design()
    x = _waves(state, w[:, 0], layers[0])
    for place, name in enumerate(names):
        rate, size = layers[place]
        before, old_size = layers[max(place - 1, 0)]
        is_last, weight = place == len(names) - 1, state[f"{name}.weight"]
        kernel = weight.shape[-1]
        fine = max(rate, before) * (1 if is_last else 2)
        style = linear(state, f"{name}.affine", w[:, place + 1])
        if is_last:
            style = style / math.sqrt(weight[0].numel())
        else:
            weight = weight / weight.square().mean((1, 2, 3), keepdim=True).sqrt()
            style = style / style.square().mean(1, keepdim=True).sqrt()
        gain = state[f"{name}.magnitude_ema"].rsqrt()
        x = gain * modulated(x, weight, style, demodulate=not is_last, padding=kernel - 1)
        x = x + state[f"{name}.bias"][:, None, None]
        up, down = fine // before, fine // rate
        one = torch.ones(1)
        taps, last_taps = state.get(f"{name}.up_filter", one), state.get(f"{name}.down_filter", one)
        total = (size - 1) * down + 1 - (old_size + kernel - 1) * up + len(taps) + len(last_taps) - 2
        low = (total + up) // 2
        x = spread(x, taps, up, (low, total - low), up**2)
        x = (x if is_last else torch.where(x > 0, x, 0.2 * x) * math.sqrt(2)).clamp(-256, 256)
        x = spread(x, last_taps, 1, (0, 0), 1.0)[:, :, ::down, ::down]
    return 0.25 * x


def _waves(state: Mapping[str, Tensor], w: Tensor, first: tuple[int, int]) -> Tensor:
    rate, size = first
    made = []
    for cos, sin, right, down in linear(state, "synthesis.input.affine", w):
        length = (cos**2 + sin**2).sqrt()
        turn = torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, length]]) / length
        move = torch.tensor([[1, 0, -right / length], [0, 1, -down / length], [0, 0, 1]])
        whole = turn @ move @ state["synthesis.input.transform"]
        freqs = state["synthesis.input.freqs"]
        phases = state["synthesis.input.phases"] + freqs @ whole[:2, 2]
        freqs = freqs @ whole[:2, :2]
        theta = torch.tensor([[[0.5 * size / rate, 0, 0], [0, 0.5 * size / rate, 0]]])
        grid = functional.affine_grid(theta, [1, 1, size, size], align_corners=False)[0]
        waves = torch.sin(2 * math.pi * (grid @ freqs.T + phases))
        waves = waves * (1 - (freqs.norm(dim=1) - 2) / (rate / 2 - 2)).clamp(0, 1)
        made.append((waves @ (state["synthesis.input.weight"] / math.sqrt(len(freqs))).T).movedim(2, 0))
    return torch.stack(made)


class _Noise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.noise: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        return x if self.noise is None else x + self.weight * self.noise


def _conv(*sizes: int) -> nn.Module:
    return spectral_norm(nn.Conv2d(*sizes, bias=False))


def _block(inputs: int, outputs: int, *, single: bool) -> nn.Sequential:
    parts: list[nn.Module] = [nn.Upsample(scale_factor=2, mode="nearest"), _conv(inputs, 2 * outputs, 3, 1, 1)]
    end: list[nn.Module] = [nn.BatchNorm2d(2 * outputs), nn.GLU(1)]
    if single:
        return nn.Sequential(*parts, *end)
    again: list[nn.Module] = [_conv(outputs, 2 * outputs, 3, 1, 1), _Noise(), nn.BatchNorm2d(2 * outputs), nn.GLU(1)]
    return nn.Sequential(*parts, _Noise(), *end, *again)


def _weigh(inputs: int, outputs: int) -> nn.Module:
    found = nn.Module()
    found.main = nn.Sequential(
        nn.AdaptiveAvgPool2d(4),
        _conv(inputs, outputs, 4, 1, 0),
        nn.SiLU(),
        _conv(outputs, outputs, 1, 1, 0),
        nn.Sigmoid(),
    )
    return found


class FastGan(nn.Module):
    """256 x 256."""

    def __init__(self, z: int = 6) -> None:
        super().__init__()
        channels = {4: 16, 8: 8, 16: 4, 32: 2, 64: 2, 128: 2, 256: 2}
        self.init = nn.Module()
        first = spectral_norm(nn.ConvTranspose2d(z, 32, 4, 1, 0, bias=False))
        self.init.init = nn.Sequential(first, nn.BatchNorm2d(32), nn.GLU(1))
        for size in (8, 16, 32, 64, 128, 256):
            single = size in (16, 64, 256)
            setattr(self, f"feat_{size}", _block(channels[size // 2], channels[size], single=single))
        for small, large in ((4, 64), (8, 128), (16, 256)):
            setattr(self, f"se_{large}", _weigh(channels[small], channels[large]))
        self.to_128, self.to_big = _conv(2, 3, 1, 1, 0), _conv(2, 3, 3, 1, 1)

    def forward(self, z: Tensor) -> Tensor:
        x8 = self.feat_8(x4 := self.init.init(z[..., None, None]))
        x16 = self.feat_16(x8)
        x64 = self.feat_64(self.feat_32(x16)) * self.se_64.main(x4)
        x128 = self.feat_128(x64) * self.se_128.main(x8)
        return self.to_big(self.feat_256(x128) * self.se_256.main(x16))
