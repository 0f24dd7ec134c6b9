"""Random numbers of a request, where a pipeline's code would take everybody's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_oobleck import OobleckDiagonalGaussianDistribution
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch.utils import _pytree as pytree

from .related import call_parameters


class _Drawing:
    """Draws its latents with a request's generator, unless another is given."""

    def __init__(self, like: Any, generator: torch.Generator) -> None:
        self.__dict__.update(like.__dict__)
        self._generator = generator

    def sample(self, generator: torch.Generator | None = None) -> torch.Tensor:
        drawn: torch.Tensor = super().sample(self._generator if generator is None else generator)  # type: ignore[misc]
        return drawn


class _Picture(_Drawing, DiagonalGaussianDistribution):
    """An encoded picture, video or spectrogram."""


class _Sound(_Drawing, OobleckDiagonalGaussianDistribution):
    """An encoded sound."""


_OWN: Mapping[type, type[_Drawing]] = {
    DiagonalGaussianDistribution: _Picture,
    OobleckDiagonalGaussianDistribution: _Sound,
}


def with_own_draws(encoded: Any, generator: torch.Generator) -> Any:
    """The result of an autoencoder's `encode`, drawing from `generator` where the pipeline's code names none: some
    pipelines leave it out for a ControlNet's picture, and ACE-Step for every sound."""
    return pytree.tree_map(
        lambda leaf: _OWN[type(leaf)](leaf, generator) if type(leaf) in _OWN else leaf,
        encoded,
    )


def seed_noise(pipeline: Any, seed: int) -> None:
    """Have a scheduler that makes its noise from a seed of its own make it from the request's."""
    scheduler: Any = getattr(pipeline, "scheduler", None)
    if hasattr(scheduler, "noise_sampler_seed") and scheduler.noise_sampler_seed is None:
        scheduler.noise_sampler_seed = seed


def missing_labels(
    kind: Any, models: Mapping[str, Any], arguments: Mapping[str, Any], generator: torch.Generator
) -> dict[str, Any]:
    """`{"class_labels": [number]}`, drawn, for a pipeline class that would draw it itself, without the seed."""
    parameter = call_parameters(kind).get("class_labels")
    if parameter is None or parameter.default is not None or arguments.get("class_labels") is not None:
        return {}
    config = getattr(models.get("unet"), "config", {})
    classes = config.get("num_class_embeds")
    if not isinstance(classes, int):
        return {}
    return {"class_labels": [int(torch.randint(0, classes, (1,), generator=generator))]}
