"""Random checkpoints of generators in their published layouts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

SIZES = (4, 8, 16)
CHANNELS = {4: 8, 8: 6, 16: 4}
Z, W = 5, 7


def random(shape: tuple[int, ...], generator: torch.Generator, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=generator)


def mapping(state: dict[str, Tensor], generator: torch.Generator, *, classes: int = 0, layers: int = 3) -> None:
    """Adds the mapping network."""
    for number in range(layers):
        inputs = W if number else Z + (W if classes else 0)
        state[f"mapping.fc{number}.weight"] = random((W, inputs), generator, 100.0)
        state[f"mapping.fc{number}.bias"] = random((W,), generator, 30.0)
    if classes:
        state["mapping.embed.weight"] = random((W, classes), generator)
        state["mapping.embed.bias"] = random((W,), generator)
    state["mapping.w_avg"] = random((W,), generator, 0.3)


def affine(state: dict[str, Tensor], name: str, size: int, generator: torch.Generator) -> None:
    state[f"{name}.affine.weight"] = random((size, W), generator)
    state[f"{name}.affine.bias"] = 1 + random((size,), generator, 0.1)


def stylegan2(*, classes: int = 0, form: str = "skip") -> dict[str, Tensor]:
    """In the authors' layout, 16 x 16. `form`: "skip", "orig" or "resnet"."""
    generator, state = torch.Generator().manual_seed(0), {}
    mapping(state, generator, classes=classes)
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    taps = torch.outer(taps, taps) / 64
    before = CHANNELS[4]
    for size in SIZES:
        block, channels = f"synthesis.b{size}", CHANNELS[size]
        state[f"{block}.resample_filter"] = taps.clone()
        if size == 4:
            state[f"{block}.const"] = random((channels, 4, 4), generator)
        for layer, inputs in (("conv0", before), ("conv1", channels))[size == 4 :]:
            name = f"{block}.{layer}"
            affine(state, name, inputs, generator)
            state[f"{name}.weight"] = random((channels, inputs, 3, 3), generator)
            state[f"{name}.bias"] = random((channels,), generator, 0.3)
            state[f"{name}.noise_const"] = random((size, size), generator)
            state[f"{name}.noise_strength"] = torch.tensor(0.4)
            state[f"{name}.resample_filter"] = taps.clone()
        if form == "skip" or size == SIZES[-1]:
            affine(state, f"{block}.torgb", channels, generator)
            state[f"{block}.torgb.weight"] = random((3, channels, 1, 1), generator)
            state[f"{block}.torgb.bias"] = random((3,), generator, 0.1)
        if form == "resnet" and size > 4:
            state[f"{block}.skip.weight"] = random((channels, before, 1, 1), generator)
            state[f"{block}.skip.resample_filter"] = taps.clone()
        before = channels
    return state


def ported(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same generator in the port's layout: other names, shapes and scales."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        if part == "mapping":
            if rest == "w_avg":
                found["latent_avg"] = tensor
            else:
                layer, _, kind = rest.partition(".")
                found[f"style.{int(layer[2:]) + 1}.{kind}"] = tensor
            continue
        block, _, rest = rest.partition(".")
        level = SIZES.index(int(block[1:]))
        layer, _, kind = rest.partition(".")
        if rest == "const":
            found["input.input"] = tensor[None]
        elif rest == "resample_filter":
            if level:
                found[f"to_rgbs.{level - 1}.upsample.kernel"] = tensor * 4
        elif layer == "torgb":
            place = f"to_rgbs.{level - 1}" if level else "to_rgb1"
            _put(found, place, kind, tensor, to_rgb=True)
        else:
            number = 2 * (level - 1) + int(layer[-1])
            place = f"convs.{number}" if level else "conv1"
            if kind == "noise_const":
                found[f"noises.noise_{number + 1 if level else 0}"] = tensor[None, None]
            elif kind == "resample_filter":
                if layer == "conv0":
                    found[f"{place}.conv.blur.kernel"] = tensor * 4
            else:
                _put(found, place, kind, tensor, to_rgb=False)
    return {name: tensor.contiguous() for name, tensor in found.items()}


def _put(found: dict[str, Tensor], place: str, kind: str, tensor: Tensor, *, to_rgb: bool) -> None:
    if kind == "weight":
        # The port scales by 1 / sqrt(inputs * area) when it runs, which demodulation takes back.
        found[f"{place}.conv.weight"] = tensor[None]
    elif kind.startswith("affine."):
        found[f"{place}.conv.modulation.{kind.partition('.')[2]}"] = tensor
    elif kind == "noise_strength":
        found[f"{place}.noise.weight"] = tensor[None]
    else:
        found[f"{place}.bias" if to_rgb else f"{place}.activate.bias"] = tensor.view(1, -1, 1, 1) if to_rgb else tensor


def saved(state: Mapping[str, Tensor], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, path)
    return path
