"""Generators that make a picture of a picture as a kind of model. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kamado.checkpoint.types import Checkpoint
from kamado.errors import InvalidRequest
from kamado.options import Options, anything

from ..library.kinds import About, Generator, Part, num_parameters
from .translate_layouts import Translator, recognised

if TYPE_CHECKING:
    from ..library.loading import Loader

SIDE = 512
FEATURES = 256
"""About so many numbers for each pixel are in memory at a time."""


class TranslateKind:
    """See Kind."""

    name = "translation"
    about = About(
        architectures=("pix2pix (UNet)", "CycleGAN (ResNet)", "AnimeGANv2"),
        tasks=("image-to-image",),
        oracle="the published networks in another formulation, random weights; no published weights",
        batching="pictures of equal size share forwards",
    )

    def claims(self, checkpoint: Checkpoint) -> bool:
        """See Kind."""
        return recognised(checkpoint) is not None

    def tasks(self, checkpoint: Checkpoint) -> Sequence[str]:
        """See Kind."""
        return ("image-to-image",)

    def makes(self, checkpoint: Checkpoint) -> Sequence[str]:
        """See Kind."""
        return ("image",)

    def options(self, checkpoint: Checkpoint) -> Options:
        """See Kind."""
        what = f"a generator that makes a picture of a picture ({_found(checkpoint).name})"
        return Options(what=what, checks={"image": anything}, inputs={"image": "image"}, needs=("image",))

    def describe(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """See Kind."""
        found = _found(checkpoint)
        return {"architecture": found.name, "parameters": num_parameters(found.tensors)}

    def parts(self, checkpoint: Checkpoint) -> Mapping[str, Part]:
        """See Kind."""
        tensors = _found(checkpoint).tensors
        return {"generator": Part(tensors=tensors, activation_bytes=lambda size: SIDE**2 * FEATURES * size)}

    def check(self, checkpoint: Checkpoint, asked: Mapping[str, Any]) -> None:
        """See Kind."""
        if isinstance(asked["image"], (list, tuple)):
            raise InvalidRequest("give one image; several are several requests")

    def build(self, checkpoint: Checkpoint, loader: Loader) -> Generator:
        """See Kind."""
        from .translate_answers import Translated

        found = _found(checkpoint)
        module = loader.module("generator", found.build, found.tensors)
        return Translated(found, {"generator": module}, loader.plan)


def _found(checkpoint: Checkpoint) -> Translator:
    found = recognised(checkpoint)
    assert found is not None, "the kind claims it"
    return found
