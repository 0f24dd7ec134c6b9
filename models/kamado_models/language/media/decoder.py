"""The language model inside a model that sees or hears, and what that gives it: caught, kept, and given again.

transformers' classes differ in how pictures become embeddings, where these go, what positions and masks they get. They
agree in that all of it ends in one call of the language model inside. A prompt is run up to that call, once; the call's
arguments are what is kept of the media. Later forwards, which hold pieces of many prompts, are ordinary text ones whose
call gets back what belongs to the tokens in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..attention import MaskRule

_INNER = ("language_model", "text_model")


@dataclass(slots=True, kw_only=True, eq=False)
class Seen:
    """What the language model gets for one prompt beside its tokens. P prompt tokens, N of them with embeddings of
    another kind, H hidden size, L layers."""

    num_tokens: int
    """P."""
    places: Tensor
    """(N,) which tokens, ascending, on the CPU."""
    embeddings: Tensor
    """(N, H)"""
    deep: Tensor | None
    """(L, N, H) what is added behind the first layers (DeepStack, Meng et al. 2024)."""
    positions: Tensor | None
    """(3, P) on the CPU: time, height and width (M-RoPE, Wang et al. 2024). None: tokens are counted."""
    rules: Mapping[str, MaskRule] = field(default_factory=dict)
    """Which keys a query sees, by the kind of layer. Those that are missing: as without media."""
    blocks: tuple[tuple[int, int], ...] = ()
    """Stretches (first, end) of tokens that see each other, also ahead: they are computed together."""

    @property
    def nbytes(self) -> int:
        """What it takes on the device."""
        return self.embeddings.nbytes + (self.deep.nbytes if self.deep is not None else 0)

    @property
    def shift(self) -> int:
        """By how much the position of a token behind the prompt differs from its number."""
        return 0 if self.positions is None else int(self.positions.max()) + 1 - self.num_tokens

    def positions_of(self, start: int, end: int) -> Tensor:
        """(3, end - start) of tokens `start` to `end`, of the prompt or behind it."""
        assert self.positions is not None
        inside = self.positions[:, start : min(end, self.num_tokens)]
        behind = torch.arange(max(start, self.num_tokens), max(end, self.num_tokens)) + self.shift
        return torch.cat([inside, behind.expand(3, -1)], dim=1)

    def rule(self, plain: MaskRule) -> MaskRule:
        """What stands for `plain` in this sequence."""
        own = self.rules.get(plain.kind)
        if own is None:
            return plain
        last = self.num_tokens - 1

        def allows(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            inside = own.allows(batch, head, query.clamp(max=last), key.clamp(max=last))
            return torch.where((query <= last) & (key <= last), inside, plain.allows(batch, head, query, key))

        return MaskRule(allows, None, False)


@dataclass(frozen=True, slots=True)
class Run:
    """Tokens of one sequence in the packed row of a forward."""

    start: int
    """First of them in the row."""
    first: int
    """The same in the sequence."""
    count: int
    seen: Seen


class _Caught(Exception):
    """The call that was waited for."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.arguments = arguments


def inner_decoder(model: Any) -> Any | None:
    """The language model inside of transformers' `model`, without its head; None for one that is all text."""
    for outer in (getattr(model, "model", None), model):
        for name in _INNER:
            inner = getattr(outer, name, None)
            if isinstance(inner, torch.nn.Module):
                return inner
    return None


class InnerDecoder:
    """The way into the language model inside of `model`. `close` leaves it as it was."""

    def __init__(self, model: Any) -> None:
        inner = inner_decoder(model)
        assert inner is not None, "it is one that sees or hears"
        self._model = model
        self._inner = inner
        self._forward = inner.forward
        self._catches = False
        self._runs: tuple[Run, ...] = ()
        inner.forward = self._call

    def close(self) -> None:
        """Let the model call it directly again."""
        vars(self._inner).pop("forward", None)

    def caught(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """What the model would call the language model with, for `arguments` of its own."""
        self._catches = True
        try:
            self._model(**arguments)
        except _Caught as found:
            return found.arguments
        finally:
            self._catches = False
        raise TypeError(f"{type(self._model).__name__} does not call its language model")

    @contextmanager
    def given(self, runs: tuple[Run, ...]) -> Iterator[None]:
        """While inside, a forward's tokens get what the media of their prompts come to."""
        self._runs = runs
        try:
            yield
        finally:
            self._runs = ()

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        if self._catches:
            raise _Caught(kwargs)
        if isinstance(mask := kwargs.get("attention_mask"), MaskRule) and mask.causal:
            kwargs = {**kwargs, "attention_mask": None}  # it makes the same itself, and knows no other form
        if self._runs:
            kwargs = _with_media({**kwargs, "attention_mask": _named(kwargs.get("attention_mask"))}, self._runs)
        return self._forward(*args, **kwargs)


def _with_media(kwargs: dict[str, Any], runs: tuple[Run, ...]) -> dict[str, Any]:
    """The arguments of a packed forward, with the embeddings of its media."""
    embeddings: Tensor = kwargs["inputs_embeds"]
    index, rows, deep = [], [], []
    for run in runs:
        seen = run.seen
        low, high = torch.searchsorted(seen.places, torch.tensor([run.first, run.first + run.count])).tolist()
        if low < high:
            index.append(seen.places[low:high] - run.first + run.start)
            rows.append(seen.embeddings[low:high])
            deep.append(seen.deep[:, low:high] if seen.deep is not None else None)
    if not index:
        return kwargs
    order = torch.cat(index).to(embeddings.device)
    found = embeddings.clone()
    found[0].index_copy_(0, order, torch.cat(rows).to(embeddings.dtype))
    changed = {**kwargs, "inputs_embeds": found}
    if all(part is not None for part in deep):
        ranked = torch.argsort(order)  # the mask picks them in the row's order
        mask = torch.zeros(embeddings.shape[:2], dtype=torch.bool, device=embeddings.device)
        mask[0, order] = True
        joined = torch.cat([part for part in deep if part is not None], dim=1)[:, ranked]
        changed |= {"visual_pos_masks": mask, "deepstack_visual_embeds": list(joined)}
    return changed


def _named(masks: Any) -> Any:
    """Rules that say for which kind of layer they are, where a model has several."""
    if not isinstance(masks, Mapping):
        return masks
    return {
        kind: replace(rule, kind=kind) if isinstance(rule, MaskRule) and rule.kind != kind else rule
        for kind, rule in masks.items()
    }


def seen_of(tokens: list[int], with_media: Mapping[str, Any], without: Mapping[str, Any]) -> Seen:
    """What is kept of a prompt: its call of the language model `with_media`, and that for the same tokens `without`."""
    embeddings, plain = with_media["inputs_embeds"][0], without["inputs_embeds"][0]
    places = (embeddings != plain).any(-1).nonzero()[:, 0]
    return Seen(
        num_tokens=len(tokens),
        places=places.cpu(),
        embeddings=embeddings.index_select(0, places).clone(),
        deep=_deep(with_media, places, embeddings),
        positions=_positions(with_media.get("position_ids")),
        rules=(rules := _rules(with_media.get("attention_mask"))),
        blocks=_blocks(rules, len(tokens), embeddings.device),
    )


def _deep(arguments: Mapping[str, Any], places: Tensor, embeddings: Tensor) -> Tensor | None:
    layers, mask = arguments.get("deepstack_visual_embeds"), arguments.get("visual_pos_masks")
    if not layers or mask is None:
        return None
    dense = embeddings.new_zeros(len(layers), *embeddings.shape)
    for number, layer in enumerate(layers):
        dense[number, mask[0]] = layer.to(embeddings.dtype)
    return dense.index_select(1, places)


def _positions(stated: Tensor | None) -> Tensor | None:
    """Three rows of positions; a fourth in front of them counts the tokens. One row counts them as well."""
    return None if stated is None or stated.ndim != 3 else stated[-3:, 0].cpu()


def _rules(masks: Any) -> dict[str, MaskRule]:
    """Those that say more than which tokens came before, by the kind of layer."""
    named = masks if isinstance(masks, Mapping) else {"": masks}
    return {kind: rule for kind, rule in named.items() if isinstance(rule, MaskRule) and not rule.causal}


def _blocks(rules: Mapping[str, MaskRule], length: int, device: torch.device) -> tuple[tuple[int, int], ...]:
    """Where a token sees the next one, both stand in a stretch of tokens that see each other."""
    ahead = torch.zeros(max(length - 1, 0), dtype=torch.bool, device=device)
    zero = torch.zeros((), dtype=torch.long, device=device)
    places = torch.arange(length - 1, device=device)
    for rule in rules.values():
        ahead |= rule.allows(zero, zero, places, places + 1)
    blocks: list[tuple[int, int]] = []
    for place in ahead.nonzero()[:, 0].tolist():
        if blocks and blocks[-1][1] == place + 1:
            blocks[-1] = (blocks[-1][0], place + 2)
        else:
            blocks.append((place, place + 2))
    return tuple(blocks)
