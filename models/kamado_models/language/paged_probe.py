"""Whether a model's attention can run over pages: found out on the model itself, not listed.

A model qualifies when transformers' plain cache of it holds ordinary keys and values in every layer, and when packed,
chunked and decoded tokens give the logits that plain forwards give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from kamado.memory.blocks import BlockPool, PagedMemory
from kamado.requests import Sampling
from kamado.tasks.sequence import TextStep, TokenSequence
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from .attention import LayerShape, PageStore
from .paged import PagedLane

_BLOCK_TOKENS = 4
_LENGTHS = (11, 6)
_MAX_ERROR = {torch.float32: 1e-3}
_MAX_ERROR_HALF = 6e-2


@dataclass(frozen=True, slots=True)
class PagedVerdict:
    """`layers` of a model that can be paged; otherwise None, and why."""

    layers: tuple[LayerShape, ...] | None
    reason: str = ""


def probe_paged(model: Any, vocab_size: int) -> PagedVerdict:
    """Judge the model by a few short forwards. It is left as it was; nothing random is drawn from global state."""
    if not model._can_set_attn_implementation():
        return PagedVerdict(None, "its attention is not behind transformers' interface")
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(0, vocab_size, (n + 1,), generator=generator).tolist() for n in _LENGTHS]
    with torch.inference_mode():
        try:
            layers = _layers(model, prompts[0][0])
        except Exception as error:
            return PagedVerdict(None, f"no plain key-value cache ({_brief(error)})")
        if not isinstance(layers, tuple):
            return PagedVerdict(None, layers)
        try:
            error_size = _largest_error(model, layers, prompts)
        except Exception as error:
            return PagedVerdict(None, f"packed tokens are not possible ({_brief(error)})")
    allowed = _MAX_ERROR.get(model.dtype, _MAX_ERROR_HALF)
    if not error_size <= allowed:
        return PagedVerdict(None, f"packed tokens give other logits (relative error {error_size:.1g})")
    return PagedVerdict(layers)


def _layers(model: Any, token: int) -> tuple[LayerShape, ...] | str:
    """Shapes of the plain cache's layers, or why they are not plain."""
    device = next(model.parameters()).device
    cache = model(input_ids=torch.tensor([[token]], device=device), use_cache=True).past_key_values
    if not isinstance(cache, Cache) or not cache.layers:
        return "no plain key-value cache"
    shapes = []
    for layer in cache.layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            return f"its cache has layers of kind {type(layer).__name__}"
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None or keys.ndim != 4 or values.ndim != 4:
            return "its cache has layers without keys and values"
        shapes.append(LayerShape(keys.shape[1], keys.shape[3], values.shape[3]))
    return tuple(shapes)


def _largest_error(model: Any, layers: Sequence[LayerShape], prompts: Sequence[list[int]]) -> float:
    """Relative to the size of the logits, over prefill, chunked prefill and decode of two sequences together."""
    num_blocks = sum(-(-len(prompt) // _BLOCK_TOKENS) for prompt in prompts)
    memory = PagedMemory(BlockPool(num_blocks), _BLOCK_TOKENS, salt=b"probe", share_prefixes=False)
    store = PageStore(layers, num_blocks, _BLOCK_TOKENS, model.dtype, str(next(model.parameters()).device))
    long, short = (_sequence(index, prompt, memory) for index, prompt in enumerate(prompts))
    lane = PagedLane("probe", model, store, step_budget=64, max_rows=2)
    found: list[tuple[list[int], Tensor]] = []
    try:
        for forward in ([(long, 7), (short, 6)], [(long, 4), (short, 1)], [(long, 1)]):
            logits = lane.forward([TextStep(sequence, num_new, True) for sequence, num_new in forward])
            for (sequence, num_new), row in zip(forward, logits, strict=True):
                sequence.num_computed += num_new
                found.append((sequence.tokens[: sequence.num_computed], row.float()))
    finally:
        lane.close()
    return max(_relative_error(row, _plain(model, tokens)) for tokens, row in found)


def _relative_error(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm().clamp(min=1e-6))


def _plain(model: Any, tokens: list[int]) -> Tensor:
    device = next(model.parameters()).device
    logits: Tensor = model(input_ids=torch.tensor([tokens], device=device), use_cache=False).logits
    return logits[0, -1].float()


def _sequence(index: int, tokens: list[int], memory: PagedMemory) -> TokenSequence:
    sequence = TokenSequence(id=str(index), tokens=tokens, num_prompt=1, sampling=Sampling(), seed=0)
    memory.attach(sequence)
    assert memory.acquire(sequence, len(tokens))
    return sequence


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120] if str(error).strip() else ''}"
