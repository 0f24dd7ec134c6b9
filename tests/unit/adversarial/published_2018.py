"""BigGAN of 2018 as the authors' PyTorch release has it, in another formulation, and random weights in its layout."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

State = Mapping[str, Tensor]
PART = 4
"""Latents of the first layer, and of each block."""


class _Making:
    """Tensors by name."""

    def __init__(self, *, spectral: bool, own_norm: bool) -> None:
        self.found: dict[str, Tensor] = {}
        self._generator = torch.Generator().manual_seed(0)
        self._spectral, self._own_norm = spectral, own_norm

    def random(self, *shape: int) -> Tensor:
        return 0.4 * torch.randn(shape, generator=self._generator)

    def layer(self, name: str, *shape: int, bias: bool = True) -> None:
        self.found[f"{name}.weight"] = self.random(*shape)
        if bias:
            self.found[f"{name}.bias"] = self.random(shape[0])
        if self._spectral:
            self.found[f"{name}.u0"], self.found[f"{name}.sv0"] = self.random(1, shape[0]), torch.ones(1)

    def norm(self, name: str, channels: int) -> None:
        between, count = (f"{name}.bn", 4) if self._own_norm else (name, 1)
        self.found[f"{between}.stored_mean"] = count * self.random(channels)
        self.found[f"{between}.stored_var"] = count * (0.5 + self.random(channels).abs())
        if self._own_norm:
            self.found[f"{between}.accumulation_counter"] = torch.full((1,), float(count))

    def attention(self, name: str, channels: int) -> None:
        for part, one, two in (("theta", 8, 1), ("phi", 8, 1), ("g", 2, 1), ("o", 1, 2)):
            self.layer(f"{name}.{part}", channels // one, channels // two, 1, 1, bias=False)
        self.found[f"{name}.gamma"] = torch.tensor(0.7)


def state(
    *,
    classes: int = 3,
    shared: int = 6,
    split: bool = True,
    spectral: bool = True,
    attention: tuple[int, ...] = (1,),
    own_norm: bool = False,
) -> dict[str, Tensor]:
    """16 x 16: blocks of 16 and 8 channels. `own_norm`: statistics as sums over 4 batches."""
    made = _Making(spectral=spectral, own_norm=own_norm)
    if shared:
        made.found["shared.weight"] = made.random(classes, shared)
    made.layer("linear", 16 * 16, PART)
    for place, (inputs, outputs) in enumerate(((16, 16), (16, 8))):
        block = f"blocks.{place}.0"
        made.layer(f"{block}.conv1", outputs, inputs, 3, 3)
        made.layer(f"{block}.conv2", outputs, outputs, 3, 3)
        made.layer(f"{block}.conv_sc", outputs, inputs, 1, 1)
        for name, channels in ((f"{block}.bn1", inputs), (f"{block}.bn2", outputs)):
            made.norm(name, channels)
            for kind in (f"{name}.gain", f"{name}.bias"):
                if shared:
                    made.layer(kind, channels, shared + (PART if split else 0), bias=False)
                else:
                    made.found[f"{kind}.weight"] = made.random(classes, channels)
        if place in attention:
            made.attention(f"blocks.{place}.1", outputs)
    made.norm("output_layer.0", 8)
    made.found["output_layer.0.gain"], made.found["output_layer.0.bias"] = made.random(8), made.random(8)
    made.layer("output_layer.2", 3, 8, 3, 3)
    return made.found


def divided(state: State, name: str) -> Tensor:
    """The weight by its largest singular value: as the release's evaluation, one step of the power method from u0."""
    weight = state[f"{name}.weight"]
    if f"{name}.u0" not in state:
        return weight
    matrix = weight.reshape(len(weight), -1).double()
    v = state[f"{name}.u0"].double() @ matrix
    v = v / v.norm()
    u = v @ matrix.T
    u = u / u.norm()
    return (weight.double() / (v @ matrix.T @ u.T).item()).float()


def conv(state: State, name: str, x: Tensor) -> Tensor:
    weight = divided(state, name)
    return functional.conv2d(x, weight, state.get(f"{name}.bias"), padding=weight.shape[-1] // 2)


def normed(state: State, name: str, x: Tensor, condition: Tensor | int | None, eps: float) -> Tensor:
    inner = name if f"{name}.stored_mean" in state else f"{name}.bn"
    count = state.get(f"{inner}.accumulation_counter", torch.ones(1))
    mean, var = state[f"{inner}.stored_mean"] / count, state[f"{inner}.stored_var"] / count
    x = (x - mean[:, None, None]) / (var[:, None, None] + eps).sqrt()
    if condition is None:
        return x * state[f"{name}.gain"][:, None, None] + state[f"{name}.bias"][:, None, None]
    if isinstance(condition, int):  # a row for each class
        gain, bias = (state[f"{name}.{kind}.weight"][condition][None] for kind in ("gain", "bias"))
    else:
        gain, bias = (condition @ divided(state, f"{name}.{kind}").T for kind in ("gain", "bias"))
    return x * (1 + gain[..., None, None]) + bias[..., None, None]


def attended(state: State, name: str, x: Tensor) -> Tensor:
    rows, channels, high, wide = x.shape
    theta = conv(state, f"{name}.theta", x).reshape(rows, channels // 8, -1)
    phi, g = (functional.max_pool2d(conv(state, f"{name}.{part}", x), 2).flatten(2) for part in ("phi", "g"))
    beta = torch.einsum("bcq,bck->bqk", theta, phi).softmax(-1)
    seen = torch.einsum("bck,bqk->bcq", g, beta).reshape(rows, channels // 2, high, wide)
    return state[f"{name}.gamma"] * conv(state, f"{name}.o", seen) + x


def picture(state: State, z: Tensor, number: int, eps: float = 1e-5) -> Tensor:
    """(1, 3, height, width) of latents (1, z) and the number of a class."""
    condition: Tensor | int = number
    if "shared.weight" in state:
        condition = state["shared.weight"][number][None]
    x = z[:, :PART] @ divided(state, "linear").T + state["linear.bias"]
    x = x.reshape(len(z), -1, 4, 4)
    for place in range(2):
        block, own = f"blocks.{place}.0", condition
        if z.shape[1] > PART and isinstance(condition, Tensor):
            own = torch.cat((condition, z[:, PART * (place + 1) : PART * (place + 2)]), 1)
        h = normed(state, f"{block}.bn1", x, own, eps).relu()
        h, x = (each.repeat_interleave(2, 2).repeat_interleave(2, 3) for each in (h, x))
        h = normed(state, f"{block}.bn2", conv(state, f"{block}.conv1", h), own, eps).relu()
        x = conv(state, f"{block}.conv2", h) + conv(state, f"{block}.conv_sc", x)
        if f"blocks.{place}.1.gamma" in state:
            x = attended(state, f"blocks.{place}.1", x)
    return conv(state, "output_layer.2", normed(state, "output_layer.0", x, None, eps).relu()).tanh()
