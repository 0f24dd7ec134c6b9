"""Generators of adversarial networks as a kind of model. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kamado.checkpoint.types import Checkpoint
from kamado.options import Options

from ..library.kinds import About, Generator, Part, num_parameters
from . import latent_options
from .layouts import Layout, recognised

if TYPE_CHECKING:
    from ..library.loading import Loader


class LatentKind:
    """See Kind."""

    name = "generator"
    about = About(
        architectures=(
            "DCGAN",
            "BigGAN",
            "BigGAN-deep",
            "StyleGAN2 (skip, orig, resnet)",
            "StyleGAN3 (T, R)",
            "FastGAN",
        ),
        tasks=("unconditional-image-generation",),
        oracle="the published networks in another formulation, random weights; no published weights",
        batching="pictures of several requests share forwards",
    )

    def claims(self, checkpoint: Checkpoint) -> bool:
        """See Kind."""
        return recognised(checkpoint) is not None

    def tasks(self, checkpoint: Checkpoint) -> Sequence[str]:
        """See Kind."""
        return ("unconditional-image-generation",)

    def makes(self, checkpoint: Checkpoint) -> Sequence[str]:
        """See Kind."""
        return ("image", "video")

    def options(self, checkpoint: Checkpoint) -> Options:
        """See Kind."""
        return latent_options.options(checkpoint, _layout(checkpoint))

    def describe(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """See Kind."""
        layout = _layout(checkpoint)
        return {
            "architecture": layout.name,
            "parameters": num_parameters(checkpoint.tensors),
            "picture": f"{layout.size[1]} x {layout.size[0]}",
            "latent": layout.z_size,
            **({"styles": layout.num_styles} if layout.num_styles else {}),
            **({"classes": layout.num_classes} if layout.num_classes else {}),
        }

    def parts(self, checkpoint: Checkpoint) -> Mapping[str, Part]:
        """See Kind."""
        layout = _layout(checkpoint)
        pixels = math.prod(layout.size)
        found = {}
        for name, tensors in layout.tensors.items():
            numbers = layout.w_size * 16 if name == "mapping" else pixels * layout.features
            found[name] = Part(tensors=tensors, activation_bytes=lambda size, numbers=numbers: numbers * size)  # type: ignore[misc]
        return found

    def check(self, checkpoint: Checkpoint, asked: Mapping[str, Any]) -> None:
        """See Kind."""
        latent_options.check(checkpoint, _layout(checkpoint), asked)

    def build(self, checkpoint: Checkpoint, loader: Loader) -> Generator:
        """See Kind."""
        from .latent_answers import Pictures

        layout = _layout(checkpoint)
        modules = {
            name: loader.module(name, layout.build[name], tensors) for name, tensors in layout.tensors.items()
        }  # fmt: skip
        return Pictures(checkpoint, layout, modules)


def _layout(checkpoint: Checkpoint) -> Layout:
    found = recognised(checkpoint)
    assert found is not None, "the kind claims it"
    return found
