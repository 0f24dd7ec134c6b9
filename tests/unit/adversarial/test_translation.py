"""Pictures of pictures: equal to the published generators, built anew of torch's own layers, with the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import kamado

from .published import shaken
from .weights import saved


def photo(width: int, height: int) -> Image.Image:
    coarse = numpy.random.default_rng(3).integers(0, 256, (4, 4, 3), dtype=numpy.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def oracle(network: nn.Module, image: Image.Image, mode: str = "RGB") -> Any:
    array = numpy.array(image.convert(mode)).reshape(image.height, image.width, -1)
    with torch.no_grad():
        made = network(torch.from_numpy(array).permute(2, 0, 1)[None] / 127.5 - 1)
    return ((made[0] + 1) / 2).permute(1, 2, 0).numpy()


class Block(nn.Module):
    """A level of pix2pix's UNet, as its authors nest them."""

    def __init__(self, outer: int, inner: int, below: nn.Module | None, *, top: int = 0, batch: bool = True) -> None:
        super().__init__()
        self.top = top

        def norm(channels: int) -> nn.Module:
            return nn.BatchNorm2d(channels) if batch else nn.InstanceNorm2d(channels)

        down = nn.Conv2d(top or outer, inner, 4, 2, 1, bias=not batch)
        up = nn.ConvTranspose2d(inner * (2 if below else 1), outer, 4, 2, 1, bias=bool(top) or not batch)
        if top:
            layers = [down, below, nn.ReLU(), up, nn.Tanh()]
        elif below is None:
            layers = [nn.LeakyReLU(0.2), down, nn.ReLU(), up, norm(outer)]
        else:
            layers = [nn.LeakyReLU(0.2), down, norm(inner), below, nn.ReLU(), up, norm(outer), nn.Dropout(0.5)]
        self.model = nn.Sequential(*layers)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) if self.top else torch.cat((x, self.model(x)), 1)  # type: ignore[no-any-return]


def unet(*, batch: bool = True) -> nn.Module:
    inside = Block(6, 6, Block(6, 6, None, batch=batch), batch=batch)
    network = nn.Module()
    network.model = Block(3, 4, Block(4, 6, inside, batch=batch), top=1, batch=batch)
    network.forward = lambda x: network.model(x)  # type: ignore[method-assign]
    return shaken(network)


class Residual(nn.Module):
    def __init__(self, channels: int, norm: Any, *, dropout: bool) -> None:
        super().__init__()
        layers = [nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), norm(channels), nn.ReLU()]
        layers += [nn.Dropout(0.5)] if dropout else []
        self.conv_block = nn.Sequential(
            *layers, nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), norm(channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)  # type: ignore[no-any-return]


def resnet(norm: Any = nn.InstanceNorm2d, *, dropout: bool = False) -> nn.Module:
    layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(3, 4, 7), norm(4), nn.ReLU()]
    for one, two in ((4, 6), (6, 8)):
        layers += [nn.Conv2d(one, two, 3, 2, 1), norm(two), nn.ReLU()]
    layers += [Residual(8, norm, dropout=dropout) for _ in range(3)]
    for one, two in ((8, 6), (6, 4)):
        layers += [nn.ConvTranspose2d(one, two, 3, 2, 1, output_padding=1), norm(two), nn.ReLU()]
    network = nn.Module()
    network.model = nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(4, 3, 7), nn.Tanh())
    network.forward = lambda x: network.model(x)  # type: ignore[method-assign]
    return shaken(network)


def stage(one: int, two: int, size: int = 3, stride: int = 1, pad: Any = None, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(one, two, size, stride, groups=groups, bias=groups > 1)
    pad = size // 2 if pad is None else pad
    return nn.Sequential(nn.ReflectionPad2d(pad), conv, nn.GroupNorm(1, two), nn.LeakyReLU(0.2))


class Inverted(nn.Module):
    def __init__(self, one: int, two: int) -> None:
        super().__init__()
        wide = 2 * one
        project = nn.Conv2d(wide, two, 1, bias=False)
        self.layers = nn.Sequential(stage(one, wide, 1), stage(wide, wide, groups=wide), project, nn.GroupNorm(1, two))
        self.same = one == two

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.same else self.layers(x)  # type: ignore[no-any-return]


class Anime(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        odd = (0, 1, 0, 1)
        self.block_a = nn.Sequential(stage(3, 4, 7), stage(4, 6, 3, 2, odd), stage(6, 6))
        self.block_b = nn.Sequential(stage(6, 8, 3, 2, odd), stage(8, 8))
        self.block_c = nn.Sequential(stage(8, 8), Inverted(8, 10), Inverted(10, 10), stage(10, 8))
        self.block_d = nn.Sequential(stage(8, 8), stage(8, 8))
        self.block_e = nn.Sequential(stage(8, 6), stage(6, 6), stage(6, 4, 7))
        self.out_layer = nn.Sequential(nn.Conv2d(4, 3, 1, bias=False), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        half = self.block_a(x)
        y = self.block_c(self.block_b(half))
        y = self.block_d(nn.Upsample(half.shape[-2:], mode="bilinear", align_corners=True)(y))
        y = self.block_e(nn.Upsample(x.shape[-2:], mode="bilinear", align_corners=True)(y))
        return self.out_layer(y)  # type: ignore[no-any-return]


NETWORKS = {
    "unet": unet, "unet-instance": lambda: unet(batch=False), "resnet": resnet,
    "resnet-batch": lambda: resnet(nn.BatchNorm2d, dropout=True), "anime": lambda: shaken(Anime()),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_the_published_generator(runtime: kamado.Runtime, tmp_path: Path, name: str) -> None:
    network = NETWORKS[name]()
    model = runtime.load(saved(network.state_dict(), tmp_path / f"{name}.safetensors"))
    mode = "L" if name.startswith("unet") else "RGB"
    found = model.generate(image=photo(48, 32))
    assert numpy.abs(found.pixels[0] - oracle(network, photo(48, 32), mode)).max() < 1e-4
    assert not found.notes and model.tasks == ("image-to-image",) and found.pixels[0].std() > 0.005


def test_old_instance_norms_and_prefixes(runtime: kamado.Runtime, tmp_path: Path) -> None:
    network = resnet()
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    state |= {"module.model.2.running_mean": torch.ones(4), "module.model.2.running_var": torch.ones(4)}
    found = runtime.load(saved(state, tmp_path / "old.safetensors")).generate(image=photo(16, 16))
    assert numpy.abs(found.pixels[0] - oracle(network, photo(16, 16))).max() < 1e-4


@pytest.mark.parametrize("size", [(1, 1), (50, 33)])
def test_sizes_that_do_not_fit_are_filled_up_and_cut(runtime: kamado.Runtime, tmp_path: Path, size: Any) -> None:
    network = unet()
    model = runtime.load(saved(network.state_dict(), tmp_path / "unet.safetensors"))
    image = photo(*size)
    found = model.generate(image=image)
    wide, high = (max(side + -side % 16, 16) for side in size)
    filled = numpy.pad(numpy.array(image), ((0, high - size[1]), (0, wide - size[0]), (0, 0)), mode="edge")
    expected = oracle(network, Image.fromarray(filled), "L")[: size[1], : size[0]]
    assert numpy.abs(found.pixels[0] - expected).max() < 1e-4 and "multiples of 16" in found.notes[0]


def test_alone_and_beside_others(runtime: kamado.Runtime, tmp_path: Path) -> None:
    model = runtime.load(saved(resnet().state_dict(), tmp_path / "resnet.safetensors"))
    images = [photo(16, 16), photo(16, 16).rotate(90), photo(20, 16)]
    alone = [model.generate(image=image).pixels[0] for image in images]
    crowd = model.generate_many([{"image": image} for image in images])
    assert all(numpy.abs(one - two.pixels[0]).max() < 1e-4 for one, two in zip(alone, crowd, strict=True))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "image"),
        ({"image": photo(8, 8), "prompt": "x"}, "takes no prompt"),
        ({"image": [photo(8, 8)] * 2}, "give one image"),
        ({"image": Image.new("L", (20_000, 20_000))}, "20000 x 20000"),
    ],
)
def test_bad_requests(runtime: kamado.Runtime, tmp_path: Path, options: dict[str, Any], says: str) -> None:
    model = runtime.load(saved(resnet().state_dict(), tmp_path / "resnet.safetensors"))
    with pytest.raises(kamado.InvalidRequest, match=says):
        model.generate(**options)
    with pytest.raises(kamado.DoesNotFit, match="8000 x 8000"):
        model.generate(image=Image.new("L", (8000, 8000)))
