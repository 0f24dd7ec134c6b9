"""Random numbers of a request, where a pipeline's code would take everybody's."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch.utils import _pytree as pytree


class _Own(DiagonalGaussianDistribution):
    """An encoded picture whose latents are drawn with a request's generator, unless another is given."""

    def __init__(self, like: DiagonalGaussianDistribution, generator: torch.Generator) -> None:
        self.__dict__.update(like.__dict__)
        self._generator = generator

    def sample(self, generator: torch.Generator | None = None) -> torch.Tensor:
        return super().sample(self._generator if generator is None else generator)


def with_own_draws(encoded: Any, generator: torch.Generator) -> Any:
    """The result of an autoencoder's `encode`, drawing from `generator` where the pipeline's code names none: some
    pipelines leave it out for a ControlNet's picture."""
    return pytree.tree_map(
        lambda leaf: _Own(leaf, generator) if isinstance(leaf, DiagonalGaussianDistribution) else leaf, encoded
    )
