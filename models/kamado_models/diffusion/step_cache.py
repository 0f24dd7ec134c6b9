"""Fewer calls of the denoiser: where its input has hardly changed, its last prediction serves once more.

Like TeaCache (Liu et al. 2024, "Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model") and the
first-block cache of ParaAttention, but judged by the input alone and at the door of the model: shared models hold no
state of any request, and every denoiser is served.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from kamado.errors import InvalidRequest
from kamado.tasks.library.standin import ModelCall

from .pipelines import PipelineFactory
from .table import runs_alone

_DENOISERS = ("unet", "transformer", "transformer_2")


@dataclass(frozen=True, slots=True)
class _Kept:
    """A call that was made."""

    input: list[Tensor]
    result: Any


class StepCache:
    """The predictions of one picture's denoiser."""

    def __init__(self, threshold: float) -> None:
        """`threshold`: the mean change of an input since the last call, relative to its mean size, from which on the
        call is made."""
        self.made = 0
        self.skipped = 0
        self._threshold = threshold
        self._kept: dict[Hashable, _Kept] = {}
        self._place = 0
        """Of the next call within its step: with and without the prompt, say."""
        self._is_last = False

    def begin(self) -> None:
        """A pipeline starts."""
        self._kept.clear()
        self.next_step(None)

    def next_step(self, steps_left: int | None) -> None:
        """The scheduler has made a step; so many are left, where that is known. All calls of the last one are made."""
        self._place = 0
        self._is_last = steps_left is not None and steps_left <= 1

    def call(self, component: str, call: ModelCall, make: Callable[[], Any]) -> Any:
        """The result of `call`, which `make` makes, or the one before it."""
        latents = _latents(call)
        if component not in _DENOISERS or call.method != "forward" or not latents:
            return make()
        place = (component, self._place, *((tensor.shape, tensor.dtype) for tensor in latents))
        self._place += 1
        kept = self._kept.get(place)
        if kept is not None and not self._is_last and _change(kept.input, latents) < self._threshold:
            self.skipped += 1
            return _copied(kept.result)  # some pipelines write into it
        result = make()
        self.made += 1
        self._kept[place] = _Kept(_copied(latents), _copied(result))
        return result

    def notes(self) -> list[str]:
        """What came of it."""
        return [f"step_cache left out {self.skipped} of {self.made + self.skipped} calls of the denoiser"]


def check_step_cache(kind: Any, factory: PipelineFactory) -> None:
    """Raise InvalidRequest where the calls of a pipeline of class `kind` are not seen."""
    if not any(name in factory.models for name in _DENOISERS):
        raise InvalidRequest(f"{factory.reference} has no denoiser of a kind that step_cache knows; leave it out")
    if runs_alone(kind.__name__):
        raise InvalidRequest(f"{kind.__name__} uses its models in ways of its own; leave step_cache out")


def _latents(call: ModelCall) -> list[Tensor]:
    """What is to be denoised: the first argument that is a tensor, or a list of some."""
    for value in (*call.positional, *call.arguments.values()):
        listed = value if isinstance(value, (list, tuple)) else [value]
        if listed and all(isinstance(each, Tensor) and each.is_floating_point() for each in listed):
            return list(listed)
    return []


def _change(before: list[Tensor], now: list[Tensor]) -> float:
    size = torch.stack([tensor.float().abs().sum() for tensor in before]).sum()
    pairs = zip(before, now, strict=True)
    difference = torch.stack([(new.float() - old.float()).abs().sum() for old, new in pairs]).sum()
    return float(difference / size.clamp(min=torch.finfo(torch.float32).tiny))


def _copied(result: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, result)
