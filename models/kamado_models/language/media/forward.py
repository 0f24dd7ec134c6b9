"""A forward over pages of a model that sees or hears: its own modules, with the media of prompts put in."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..attention import PackedStep
from ..library_forward import LibraryForward
from ..pages import PageStore
from .decoder import InnerDecoder, Seen, seen_of


class MediaForward(LibraryForward):
    """See PagesForward. Only the language model inside is switched to pages; what sees and hears stays as it is."""

    def __init__(self, model: Any, store: PageStore) -> None:
        super().__init__(model, store)
        self._inner = InnerDecoder(model)
        self._takes = frozenset(inspect.signature(model.forward).parameters)
        self._placeholder = 0
        self._first_position = self._start_of_positions()

    def __call__(self, tokens: Tensor, positions: Tensor, step: PackedStep, keep: Tensor | None) -> Tensor:
        """See PagesForward."""
        positions = positions + self._first_position if self._first_position else positions
        if step.media:
            positions = _with_own_positions(positions, step)
        with self._inner.given(step.media):
            return super().__call__(self._known(tokens), positions, step, keep)

    def see(self, tokens: Sequence[int], inputs: Mapping[str, Tensor]) -> Seen:
        """What is kept of a prompt of `tokens`, where `inputs` are what its processor made of it."""
        device = self._model.get_input_embeddings().weight.device
        given = {name: self._placed(value, device) for name, value in inputs.items() if name in self._takes}
        ids = torch.tensor([list(tokens)], device=device)
        # Some models look at the mask for where their media stand.
        given = {"attention_mask": torch.ones_like(ids), **given, "input_ids": ids}
        with_media = self._inner.caught({**given, "use_cache": False})
        plain = {"input_ids": self._known(ids), "attention_mask": given["attention_mask"], "use_cache": False}
        return seen_of(list(tokens), with_media, self._inner.caught(plain))

    def close(self) -> None:
        """See PagesForward."""
        self._inner.close()
        super().close()

    def _switched(self) -> Any:
        text = self._model.config.get_text_config()
        names = [name for name in self._model.config.sub_configs if getattr(self._model.config, name, None) is text]
        return dict.fromkeys(names, self._name) if names else self._name

    def _switched_back(self) -> Any:
        text = self._model.config.get_text_config()
        names = [name for name in self._model.config.sub_configs if getattr(self._model.config, name, None) is text]
        former = text._attn_implementation
        return dict.fromkeys(names, former) if names else former

    def _known(self, tokens: Tensor) -> Tensor:
        """Without the numbers of placeholders that have no embedding."""
        rows = self._model.get_input_embeddings().weight.shape[0]
        return tokens.where(tokens < rows, self._placeholder)

    def _placed(self, value: Any, device: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(device, self._model.dtype) if value.is_floating_point() else value.to(device)

    def _start_of_positions(self) -> int:
        """The position of a prompt's first token: some models count from 1."""
        device = self._model.get_input_embeddings().weight.device
        ids = torch.zeros(1, 2, dtype=torch.long, device=device)
        with torch.inference_mode():
            stated = self._inner.caught({"input_ids": ids, "use_cache": False}).get("position_ids")
        return int(stated.flatten()[0]) if isinstance(stated, Tensor) else 0


def _with_own_positions(positions: Tensor, step: PackedStep) -> Tensor:
    """Three rows of positions where a prompt has such; `positions` (1, T) elsewhere."""
    runs = [run for run in step.media if run.seen.positions is not None]
    if not runs:
        return positions
    found = positions[None].repeat(3, 1, 1)
    for run in runs:
        own = run.seen.positions_of(run.first, run.first + run.count)
        found[:, 0, run.start : run.start + run.count] = own.to(found.device)
    return found
