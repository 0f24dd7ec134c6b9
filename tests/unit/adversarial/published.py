"""The published generators in another formulation than that of `kamado_models.adversarial.networks`, as oracles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import spectral_norm

State = Mapping[str, Tensor]


def dcgan(z: int = 6, width: int = 4, channels: int = 3) -> nn.Sequential:
    """PyTorch's example, 16 x 16."""
    layers: list[nn.Module] = [
        nn.ConvTranspose2d(z, 2 * width, 4, 1, 0, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
    ]
    layers += [nn.ConvTranspose2d(2 * width, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    layers += [nn.ConvTranspose2d(width, channels, 4, 2, 1, bias=False), nn.Tanh()]
    return nn.Sequential(*layers)


def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights and statistics at random, so that each of them counts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(0.5 + noise.abs() if name.endswith(("running_var", "running_vars")) else 0.4 * noise)
    return module.eval()


class BigGan(nn.Module):
    """BigGAN-deep with torch's own spectral norm and batch norm; forward(z, number of a class, truncation)."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.embeddings = nn.Linear(config["num_classes"], config["z_dim"], bias=False)
        self.generator = nn.Module()
        width, wide = config["channel_width"], 2 * config["z_dim"]
        self.generator.gen_z = spectral_norm(nn.Linear(wide, 256 * width), eps=1e-4)
        self.generator.layers = nn.ModuleList()
        for place, (_, inputs, outputs) in enumerate(config["layers"]):
            if place == config["attention_layer_position"]:
                self.generator.layers.append(self._attention(inputs * width))
            self.generator.layers.append(self._block(inputs * width, outputs * width, wide))
        self.generator.bn = self._norm(width, 0)
        self.generator.conv_to_rgb = spectral_norm(nn.Conv2d(width, width, 3, padding=1), eps=1e-4)

    def _norm(self, channels: int, wide: int) -> nn.Module:
        norm = nn.Module()
        norm.register_buffer("running_means", torch.zeros(self.config["n_stats"], channels))
        norm.register_buffer("running_vars", torch.ones(self.config["n_stats"], channels))
        if wide:
            norm.scale = spectral_norm(nn.Linear(wide, channels, bias=False), eps=1e-4)
            norm.offset = spectral_norm(nn.Linear(wide, channels, bias=False), eps=1e-4)
        else:
            norm.weight, norm.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        return norm

    def _block(self, inputs: int, outputs: int, wide: int) -> nn.Module:
        block, middle = nn.Module(), inputs // 4
        sizes = [(inputs, middle, 1), (middle, middle, 3), (middle, middle, 3), (middle, outputs, 1)]
        for number, (one, two, size) in enumerate(sizes):
            setattr(block, f"bn_{number}", self._norm(one, wide))
            setattr(block, f"conv_{number}", spectral_norm(nn.Conv2d(one, two, size, padding=size // 2), eps=1e-4))
        return block

    def _attention(self, channels: int) -> nn.Module:
        part = nn.Module()
        for name, one, two in (("theta", 1, 8), ("phi", 1, 8), ("g", 1, 2), ("o_conv", 2, 1)):
            conv = nn.Conv2d(channels // one, channels // two, 1, bias=False)
            setattr(part, f"snconv1x1_{name}", spectral_norm(conv, eps=1e-4))
        part.gamma = nn.Parameter(torch.zeros(1))
        return part

    def _normed(self, norm: Any, x: Tensor, truncation: float, condition: Tensor) -> Tensor:
        place = truncation * (self.config["n_stats"] - 1)
        start, share = int(place), place - int(place)
        near = min(start + 1, self.config["n_stats"] - 1)
        first = share if share else 1.0
        mean, var = (
            stats[start] * first + stats[near] * (1 - first) for stats in (norm.running_means, norm.running_vars)
        )
        if hasattr(norm, "weight"):
            return functional.batch_norm(x, mean, var, norm.weight, norm.bias, eps=self.config["eps"])
        x = functional.batch_norm(x, mean, var, eps=self.config["eps"])
        return x * (1 + norm.scale(condition))[..., None, None] + norm.offset(condition)[..., None, None]

    def forward(self, z: Tensor, number: int, truncation: float) -> Tensor:
        embedded = self.embeddings.weight[:, number][None]
        condition = torch.cat((z, embedded), 1)
        x = self.generator.gen_z(condition).reshape(-1, 4, 4, 16 * self.config["channel_width"]).movedim(3, 1)
        ups = iter(self.config["layers"])
        for layer in self.generator.layers:
            if hasattr(layer, "gamma"):
                x = self._attended(layer, x)
                continue
            up, _, _ = next(ups)
            rest = x
            for number in range(4):
                x = self._normed(getattr(layer, f"bn_{number}"), x, truncation, condition).relu()
                if number == 1 and up:
                    x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
                x = getattr(layer, f"conv_{number}")(x)
            if up:
                rest = rest.repeat_interleave(2, 2).repeat_interleave(2, 3)
            x = rest[:, : x.shape[1]] + x
        x = self.generator.conv_to_rgb(self._normed(self.generator.bn, x, truncation, condition).relu())
        return x[:, :3].tanh()

    def _attended(self, part: Any, x: Tensor) -> Tensor:
        rows, channels, high, wide = x.shape
        theta = part.snconv1x1_theta(x).reshape(rows, channels // 8, high * wide).mT
        phi = nn.MaxPool2d(2)(part.snconv1x1_phi(x)).reshape(rows, channels // 8, -1)
        g = nn.MaxPool2d(2)(part.snconv1x1_g(x)).reshape(rows, channels // 2, -1)
        out = torch.einsum("bck,bqk->bcq", g, torch.softmax(theta @ phi, -1)).reshape(rows, channels // 2, high, wide)
        return x + part.gamma * part.snconv1x1_o_conv(out)


def spread(x: Tensor, taps: Tensor, up: int, pad: Sequence[int], gain: float) -> Tensor:
    """Zeros put in by a transposed convolution, then one dense filter in float64."""
    one = torch.zeros(1, 1, up, up, dtype=x.dtype)
    one[..., 0, 0] = 1
    x = torch.stack([functional.conv_transpose2d(each[:, None], one, stride=up)[:, 0] for each in x])
    x = functional.pad(x, (pad[0], pad[1], pad[0], pad[1]))
    dense = (taps if taps.ndim == 2 else torch.outer(taps, taps)).to(x.dtype) * gain
    flipped = dense.flip(0, 1)[None, None]
    return torch.stack([functional.conv2d(each[:, None], flipped)[:, 0] for each in x])


def linear(state: State, name: str, x: Tensor, rate: float = 1.0) -> Tensor:
    weight = state[f"{name}.weight"]
    return x @ (weight * (rate / math.sqrt(weight.shape[1]))).T + state[f"{name}.bias"] * rate


def rectified(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.2 * x) * math.sqrt(2)


def style_of(state: State, z: Tensor, classes: Tensor | None = None) -> Tensor:
    """The mapping network of StyleGAN2 and 3."""
    x = z / (z.square().mean(1, keepdim=True) + 1e-8).sqrt()
    if classes is not None:
        y = linear(state, "mapping.embed", classes)
        x = torch.cat((x, y / (y.square().mean(1, keepdim=True) + 1e-8).sqrt()), 1)
    number = 0
    while f"mapping.fc{number}.weight" in state:
        x = rectified(linear(state, f"mapping.fc{number}", x, 0.01))
        number += 1
    return x


def modulated(x: Tensor, weight: Tensor, style: Tensor, *, demodulate: bool, padding: int) -> Tensor:
    """Each row's own demodulated weights, as an ordinary convolution."""
    made = []
    for row, scales in zip(x, style, strict=True):
        own = weight * scales[None, :, None, None]
        if demodulate:
            own = own / (own.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        made.append(functional.conv2d(row[None], own, padding=padding))
    return torch.cat(made)


def stylegan2(state: State, w: Tensor, *, noise: bool = True) -> Tensor:
    """Synthesis of StyleGAN2 (ADA), one style for all layers or (rows, styles, numbers)."""
    sizes = sorted({int(name.split(".")[1][1:]) for name in state if name.startswith("synthesis.b")})
    x, picture, place = state["synthesis.b4.const"][None].repeat(len(w), 1, 1, 1), None, 0
    for size in sizes:
        block, straight = f"synthesis.b{size}", None
        if f"{block}.skip.weight" in state:  # "resnet"
            weight = state[f"{block}.skip.weight"] / math.sqrt(x.shape[1])
            straight = functional.conv2d(spread(x, state[f"{block}.skip.resample_filter"], 2, (2, 1), 4.0), weight)
        for layer in ("conv0", "conv1"):
            name = f"{block}.{layer}"
            if f"{name}.weight" not in state:
                continue
            weight, style = state[f"{name}.weight"], linear(state, f"{name}.affine", w[:, place])
            if layer == "conv0":
                x = spread(x, state[f"{name}.resample_filter"], 2, (3, 2), 4.0)
                x = modulated(x, weight.flip(2, 3), style, demodulate=True, padding=0)
            else:
                x = modulated(x, weight, style, demodulate=True, padding=1)
            if noise:
                x = x + state[f"{name}.noise_const"] * state[f"{name}.noise_strength"]
            x = rectified(x + state[f"{name}.bias"][:, None, None]).clamp(-256, 256)
            place += 1
        if straight is not None:
            x = (x + straight) / math.sqrt(2)
        if f"{block}.torgb.weight" not in state:  # "orig", "resnet"
            continue
        style = linear(state, f"{block}.torgb.affine", w[:, place]) / math.sqrt(x.shape[1])
        added = modulated(x, state[f"{block}.torgb.weight"], style, demodulate=False, padding=0)
        added = (added + state[f"{block}.torgb.bias"][:, None, None]).clamp(-256, 256)
        picture = (
            added if picture is None else added + spread(picture, state[f"{block}.resample_filter"], 2, (2, 1), 4.0)
        )
    assert picture is not None
    return picture
