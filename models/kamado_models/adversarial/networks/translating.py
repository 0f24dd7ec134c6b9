"""Generators that make a picture of a picture.

UNet     pix2pix: Isola et al. 2016, "Image-to-Image Translation with Conditional Adversarial Networks"
ResNet   CycleGAN: Zhu et al. 2017, "Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks"
Anime    AnimeGANv2: Chen et al. 2020, "AnimeGAN: A Novel Lightweight GAN for Photo Animation"

Tensor names: those of the authors' PyTorch code, and for the last one of its PyTorch port.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .ops import SLOPE, StoredNorm, stored

Shapes = Mapping[str, tuple[int, ...]]
"""Of the tensors of a checkpoint, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _How:
    """What a convolution does, besides what its tensors say."""

    stride: int = 1
    padding: int = 0
    transposed: bool = False
    reflect: bool = False
    grouped: bool = False


class _Conv(nn.Module):
    def __init__(self, name: str, shapes: Shapes, how: _How) -> None:
        super().__init__()
        self.weight = stored(*shapes[f"{name}.weight"])
        self.bias = stored(*shapes[f"{name}.bias"]) if f"{name}.bias" in shapes else None
        self._how = how

    def forward(self, x: Tensor) -> Tensor:
        how, padding = self._how, self._how.padding
        if how.transposed:
            # Of kernels of 3, one more row and column comes out: twice the size.
            more = 1 if self.weight.shape[-1] % 2 else 0
            return functional.conv_transpose2d(x, self.weight, self.bias, how.stride, padding, more)
        if how.reflect and padding:
            x, padding = functional.pad(x, (padding,) * 4, mode="reflect"), 0
        groups = len(self.weight) if how.grouped else 1
        return functional.conv2d(x, self.weight, self.bias, how.stride, padding, groups=groups)


class _Each(nn.Module):
    """Instance normalization: by what is in the picture alone. It has no tensors."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.instance_norm(x)


def _norm(name: str, shapes: Shapes) -> nn.Module:
    return StoredNorm(shapes[f"{name}.weight"][0]) if f"{name}.weight" in shapes else _Each()


class _Level(nn.Module):
    """One level of a UNet, with all that are below it."""

    def __init__(self, name: str, shapes: Shapes, *, is_top: bool) -> None:
        super().__init__()
        start = f"{name}.model"
        first, below = ("0", "1") if is_top else ("1", "3")
        self._is_top = is_top
        self._below = below if f"{start}.{below}.model.1.weight" in shapes else ""
        self._last = "3" if is_top or not self._below else "5"
        parts: dict[str, nn.Module] = {first: _Conv(f"{start}.{first}", shapes, _How(stride=2, padding=1))}
        if not is_top and self._below:
            parts["2"] = _norm(f"{start}.2", shapes)
        if self._below:
            parts[below] = _Level(f"{start}.{below}", shapes, is_top=False)
        parts[self._last] = _Conv(f"{start}.{self._last}", shapes, _How(stride=2, padding=1, transposed=True))
        if not is_top:
            after = str(int(self._last) + 1)
            parts[after] = _norm(f"{start}.{after}", shapes)
        self.model = nn.ModuleDict(parts)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.model
        if self._is_top:
            y = parts["0"](x)
        else:
            y = parts["1"](functional.leaky_relu(x, SLOPE))
            # The deepest level has no norm of its own, and the highest none at all.
            y = parts["2"](y) if self._below else y
        if self._below:
            y = parts[self._below](y)
        y = parts[self._last](functional.relu(y))
        if self._is_top:
            return torch.tanh(y)
        return torch.cat((x, parts[str(int(self._last) + 1)](y)), dim=1)


class UNet(nn.Module):
    """pix2pix; height and width must be multiples of 2 to the number of levels."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        self.model = _Level("model", shapes, is_top=True)

    def forward(self, picture: Tensor) -> Tensor:
        """(rows, channels, height, width) in [-1, 1] -> the same."""
        return self.model(picture)  # type: ignore[no-any-return]


class _Residual(nn.Module):
    def __init__(self, name: str, shapes: Shapes) -> None:
        super().__init__()
        start = f"{name}.conv_block"
        # Where it was trained with dropout, which does nothing here, that is a layer of its own.
        self._second = "5" if f"{start}.5.weight" in shapes and len(shapes[f"{start}.5.weight"]) == 4 else "6"
        self._after = str(int(self._second) + 1)
        how = _How(padding=1, reflect=True)
        self.conv_block = nn.ModuleDict(
            {
                "1": _Conv(f"{start}.1", shapes, how),
                "2": _norm(f"{start}.2", shapes),
                self._second: _Conv(f"{start}.{self._second}", shapes, how),
                self._after: _norm(f"{start}.{self._after}", shapes),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = self.conv_block
        y = functional.relu(parts["2"](parts["1"](x)))
        return x + parts[self._after](parts[self._second](y))  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """CycleGAN; height and width must be multiples of 4."""

    def __init__(self, shapes: Shapes, num_blocks: int) -> None:
        super().__init__()
        after = 10 + num_blocks
        convs = {
            1: _How(padding=3, reflect=True),
            4: _How(stride=2, padding=1),
            7: _How(stride=2, padding=1),
            after: _How(stride=2, padding=1, transposed=True),
            after + 3: _How(stride=2, padding=1, transposed=True),
        }
        parts: dict[str, nn.Module] = {}
        for number, how in convs.items():
            parts[str(number)] = _Conv(f"model.{number}", shapes, how)
            parts[str(number + 1)] = _norm(f"model.{number + 1}", shapes)
        blocks = {str(number): _Residual(f"model.{number}", shapes) for number in range(10, after)}
        last = {str(after + 7): _Conv(f"model.{after + 7}", shapes, _How(padding=3, reflect=True))}
        self.model = nn.ModuleDict(parts | blocks | last)
        self._down, self._blocks = ("1", "4", "7"), tuple(blocks)
        self._up, self._last = (str(after), str(after + 3)), str(after + 7)

    def forward(self, picture: Tensor) -> Tensor:
        """(rows, channels, height, width) in [-1, 1] -> the same."""
        x = picture
        for name in self._down:
            x = self._stage(name, x)
        for name in self._blocks:
            x = self.model[name](x)
        for name in self._up:
            x = self._stage(name, x)
        return torch.tanh(self.model[self._last](x))

    def _stage(self, name: str, x: Tensor) -> Tensor:
        return functional.relu(self.model[str(int(name) + 1)](self.model[name](x)))


class _Whole(nn.Module):
    """Normalization of all channels together."""

    def __init__(self, name: str, shapes: Shapes) -> None:
        super().__init__()
        self.weight, self.bias = stored(*shapes[f"{name}.weight"]), stored(*shapes[f"{name}.bias"])

    def forward(self, x: Tensor) -> Tensor:
        return functional.group_norm(x, 1, self.weight, self.bias)


class _Stage(nn.ModuleDict):
    """Reflection, convolution, norm, rectifier."""

    def __init__(self, name: str, shapes: Shapes, *, stride: int = 1) -> None:
        _, inputs, size, _ = shapes[f"{name}.1.weight"]
        # Of larger steps, only the last row and column are reflected; see forward.
        how = _How(
            stride=stride,
            padding=0 if stride > 1 else size // 2,
            reflect=True,
            grouped=inputs == 1 and ".layers." in name,
        )
        super().__init__({"1": _Conv(f"{name}.1", shapes, how), "2": _Whole(f"{name}.2", shapes)})
        self._stride = stride

    def forward(self, x: Tensor) -> Tensor:
        if self._stride > 1:
            x = functional.pad(x, (0, 1, 0, 1), mode="reflect")
        return functional.leaky_relu(self["2"](self["1"](x)), SLOPE)


class _Inverted(nn.Module):
    def __init__(self, name: str, shapes: Shapes) -> None:
        super().__init__()
        start = f"{name}.layers"
        self.layers = nn.ModuleDict(
            {
                "0": _Stage(f"{start}.0", shapes),
                "1": _Stage(f"{start}.1", shapes),
                "2": _Conv(f"{start}.2", shapes, _How()),
                "3": _Whole(f"{start}.3", shapes),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for part in self.layers.values():
            y = part(y)
        return x + y if x.shape == y.shape else y


class Anime(nn.Module):
    """AnimeGANv2."""

    def __init__(self, shapes: Shapes, blocks: Mapping[str, Sequence[str]]) -> None:
        """`blocks`: the numbers of the layers of each (`block_a` to `block_e`)."""
        super().__init__()
        for block, numbers in blocks.items():
            made: dict[str, nn.Module] = {}
            for number in numbers:
                name = f"{block}.{number}"
                if f"{name}.layers.0.1.weight" in shapes:
                    made[number] = _Inverted(name, shapes)
                else:
                    stride = 2 if name in ("block_a.1", "block_b.0") else 1
                    made[number] = _Stage(name, shapes, stride=stride)
            self.add_module(block, nn.ModuleDict(made))
        self.out_layer = nn.ModuleDict({"0": _Conv("out_layer.0", shapes, _How())})

    def forward(self, picture: Tensor) -> Tensor:
        """(rows, 3, height, width) in [-1, 1] -> the same."""
        half = self._block("block_a", picture)
        x = self._block("block_c", self._block("block_b", half))
        x = self._block("block_d", _resized(x, half))
        x = self._block("block_e", _resized(x, picture))
        return torch.tanh(self.out_layer["0"](x))

    def _block(self, name: str, x: Tensor) -> Tensor:
        for part in self.get_submodule(name).children():
            x = part(x)
        return x


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return functional.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=True)
