"""Generators that make a picture of a picture, by names and shapes of their tensors. Imports torch where networks are
built alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kamado.checkpoint.types import Checkpoint, TensorEntry

if TYPE_CHECKING:
    from torch import nn

Tensors = Mapping[str, TensorEntry]
_PREFIXES = ("", "module.", "netG.", "netG_A.", "G.", "generator.")
_BLOCKS = ("block_a", "block_b", "block_c", "block_d", "block_e")
_COUNTERS = ".num_batches_tracked"
_MAX_LEVELS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Translator:
    """A recognised generator."""

    name: str
    inputs: int
    outputs: int
    """Channels of pictures."""
    multiple: int
    """Of which height and width must be multiples."""
    tensors: Tensors = field(repr=False)
    """By the network's names."""
    build: Callable[[], nn.Module] = field(repr=False)


def recognised(checkpoint: Checkpoint) -> Translator | None:
    """The generator in a checkpoint; None: none that is known."""
    if checkpoint.layout != "safetensors":
        return None
    for prefix in _PREFIXES:
        tensors = {
            name[len(prefix) :]: entry
            for name, entry in checkpoint.tensors.items()
            if name.startswith(prefix) and not name.endswith(_COUNTERS)
        }
        for probe, recognise in _LAYOUTS.items():
            if probe in tensors:
                try:
                    found = recognise(tensors)
                except (KeyError, IndexError, ValueError):
                    continue  # names or shapes of another network
                if found is not None:
                    return found
    return None


def _unet(tensors: Tensors) -> Translator | None:
    levels, path = 1, "model.model.1"
    while f"{path}.model.1.weight" in tensors and levels < _MAX_LEVELS:
        levels, path = levels + 1, f"{path}.model.3"
    first, last = tensors["model.model.0.weight"].shape, tensors["model.model.3.weight"].shape
    if levels < 2 or first[2:] != (4, 4) or last[2:] != (4, 4):
        return None
    kept = _without_statistics(tensors)
    shapes = {name: entry.shape for name, entry in kept.items()}

    def build() -> nn.Module:
        from .networks.translating import UNet

        return UNet(shapes)

    return Translator(
        name="pix2pix (UNet)", inputs=first[1], outputs=last[1], multiple=2**levels, tensors=kept, build=build
    )


def _resnet(tensors: Tensors) -> Translator | None:
    blocks = {int(found[1]) for name in tensors if (found := re.match(r"model\.(\d+)\.conv_block\.1\.weight$", name))}
    if blocks != set(range(10, 10 + len(blocks))) or not blocks:
        return None
    first, last = tensors["model.1.weight"].shape, tensors[f"model.{10 + len(blocks) + 7}.weight"].shape
    if first[2:] != (7, 7) or last[2:] != (7, 7):
        return None
    kept = _without_statistics(tensors)
    shapes = {name: entry.shape for name, entry in kept.items()}

    def build() -> nn.Module:
        from .networks.translating import ResNet

        return ResNet(shapes, len(blocks))

    return Translator(
        name="CycleGAN (ResNet)", inputs=first[1], outputs=last[0], multiple=4, tensors=kept, build=build
    )  # fmt: skip


def _anime(tensors: Tensors) -> Translator | None:
    numbers = {
        block: sorted({name.split(".")[1] for name in tensors if name.startswith(f"{block}.")}, key=int)
        for block in _BLOCKS
    }
    first, last = tensors["block_a.0.1.weight"].shape, tensors["out_layer.0.weight"].shape
    if not all(numbers.values()) or last[2:] != (1, 1):
        return None
    shapes = {name: entry.shape for name, entry in tensors.items()}

    def build() -> nn.Module:
        from .networks.translating import Anime

        return Anime(shapes, numbers)

    return Translator(name="AnimeGANv2", inputs=first[1], outputs=last[0], multiple=4, tensors=tensors, build=build)


def _without_statistics(tensors: Tensors) -> Tensors:
    """Instance norms of old versions stored statistics that nothing uses: those without a weight beside them."""
    return {
        name: entry
        for name, entry in tensors.items()
        if not name.endswith((".running_mean", ".running_var")) or f"{name.rpartition('.')[0]}.weight" in tensors
    }


_LAYOUTS: Mapping[str, Callable[[Tensors], Translator | None]] = {
    "model.model.0.weight": _unet,
    "model.10.conv_block.1.weight": _resnet,
    "block_a.0.1.weight": _anime,
}
"""By a name that is in no other layout."""
