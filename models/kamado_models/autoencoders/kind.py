"""Autoencoders of diffusers as models of their own. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kamado.checkpoint.types import Checkpoint
from kamado.options import Options

from ..library.kinds import About, Generator, Part, num_parameters
from . import options as of_requests
from .layouts import LAYOUTS, facts, known

if TYPE_CHECKING:
    from ..library.loading import Loader

PART = "autoencoder"
SIDE = 512
"""Of the picture that activations are estimated for."""
COPIES = 6
"""About so many times are all features of full size in memory."""


class AutoencoderKind:
    """See Kind."""

    name = "autoencoder"
    about = About(
        architectures=tuple(LAYOUTS),
        tasks=("image-feature-extraction", "image-to-image", "video-to-video"),
        oracle="diffusers' encode and decode, tiny random checkpoints",
        batching="calls of equal shape share forwards",
    )

    def claims(self, checkpoint: Checkpoint) -> bool:
        """See Kind."""
        return known(checkpoint)

    def tasks(self, checkpoint: Checkpoint) -> Sequence[str]:
        """See Kind."""
        return ("image-feature-extraction", "video-to-video" if facts(checkpoint).is_video else "image-to-image")

    def makes(self, checkpoint: Checkpoint) -> Sequence[str]:
        """See Kind."""
        first = ("video", "image") if facts(checkpoint).is_video else ("image", "video")
        return (*first, "embedding", "scores")

    def options(self, checkpoint: Checkpoint) -> Options:
        """See Kind."""
        return of_requests.options(facts(checkpoint))

    def describe(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """See Kind."""
        about = facts(checkpoint)
        return {
            "architecture": about.name,
            "parameters": num_parameters(checkpoint.tensors),
            "latents": f"{about.channels} channels, of {about.spatial} x {about.spatial} pixels"
            + (f" and {about.temporal} frames" if about.is_video and about.has_frames else ""),
            "does": ", ".join(of_requests.tasks(about)),
        }

    def parts(self, checkpoint: Checkpoint) -> Mapping[str, Part]:
        """See Kind."""
        numbers = SIDE**2 * facts(checkpoint).features * COPIES
        return {PART: Part(tensors=checkpoint.tensors, activation_bytes=lambda size: numbers * size)}

    def check(self, checkpoint: Checkpoint, asked: Mapping[str, Any]) -> None:
        """See Kind."""
        of_requests.task_of(facts(checkpoint), asked)

    def build(self, checkpoint: Checkpoint, loader: Loader) -> Generator:
        """See Kind."""
        from .answers import Coded

        model = loader.diffusers_model(PART, checkpoint.config, checkpoint.tensors)
        return Coded(facts(checkpoint), {PART: model}, loader.plan)
