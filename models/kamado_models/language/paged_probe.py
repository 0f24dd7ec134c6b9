"""Whether a model's attention can run over pages: found out on the model itself, not listed.

A model qualifies when transformers' plain cache of it holds ordinary keys and values in every layer, and when packed,
chunked and decoded tokens give the logits that plain forwards give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kamado.memory.blocks import BlockPool, PagedMemory
from kamado.memory.shortage import is_shortage
from kamado.requests import Sampling
from kamado.sequence import TextStep, TokenSequence
from kamado.weights.outside.tensors import device_of

from .paged import PagedLane
from .pages import LayerShape, PageStore

_BLOCK_TOKENS = 4
_LENGTHS = (12, 7)
_MAX_ERROR = {torch.float32: 1e-3}
_MAX_ERROR_HALF = 6e-2


def max_error(dtype: torch.dtype) -> float:
    """Of logits, relative, between two ways of computing the same in that precision."""
    return _MAX_ERROR.get(dtype, _MAX_ERROR_HALF)


@dataclass(frozen=True, slots=True)
class PagedVerdict:
    """`layers` of a model that can be paged; otherwise None, and why."""

    layers: tuple[LayerShape, ...] | None
    reason: str = ""


def probe_paged(model: Any, vocab_size: int, *, known: bool = False) -> PagedVerdict:
    """Judge the model by a few short forwards. It is left as it was; nothing random is drawn from global state.

    `known`: the logits of models of this type were compared by the tests; only the shapes are looked at.
    """
    if not model._can_set_attn_implementation():
        return PagedVerdict(None, "its attention is not behind transformers' interface")
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(0, vocab_size, (n,), generator=generator).tolist() for n in _LENGTHS]
    with torch.inference_mode():
        try:
            wanted, layers = _plain(model, prompts[0][: 1 if known else None])
        except Exception as error:  # whatever a model of an unknown kind raises
            if is_shortage(error):
                raise  # says nothing of the model
            return PagedVerdict(None, f"no plain key-value cache ({_brief(error)})")
        if not isinstance(layers, tuple) or known:
            return PagedVerdict(layers) if isinstance(layers, tuple) else PagedVerdict(None, layers)
        try:
            found = _packed(model, layers, prompts)
        except Exception as error:  # likewise
            if is_shortage(error):
                raise
            return PagedVerdict(None, f"packed tokens are not possible ({_brief(error)})")
        plain = (wanted, _plain(model, prompts[1])[0])
    worst = max(_relative_error(row, plain[which][position]) for which, position, row in found)
    if not worst <= max_error(model.dtype):
        return PagedVerdict(None, f"packed tokens give other logits (relative error {worst:.1g})")
    return PagedVerdict(layers)


def _plain(model: Any, tokens: list[int]) -> tuple[Tensor, tuple[LayerShape, ...] | str]:
    """Logits (T, vocab) of a plain forward, and the shapes of its cache's layers, or why these are not plain."""
    from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

    device = device_of(model)
    output = model(input_ids=torch.tensor([tokens], device=device), use_cache=True)
    cache = output.past_key_values
    logits: Tensor = output.logits[0].float()
    if not isinstance(cache, Cache) or not cache.layers:
        return logits, "no plain key-value cache"
    shapes = []
    # Chunks begin at certain positions, windows at none, though the cache has one kind of layer for both.
    chunks = getattr(model.config.get_text_config(), "attention_chunk_size", None)
    for layer in cache.layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            return logits, f"its cache has layers of kind {type(layer).__name__}"
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None or keys.ndim != 4 or values.ndim != 4:
            return logits, "its cache has layers without keys and values"
        shapes.append(LayerShape(keys.shape[1], keys.shape[3], values.shape[3], None if chunks else _window(layer)))
    return logits, tuple(shapes)


def _window(layer: Any) -> int | None:
    from transformers.cache_utils import DynamicSlidingWindowLayer

    return int(layer.sliding_window) if isinstance(layer, DynamicSlidingWindowLayer) else None


def _packed(model: Any, layers: Sequence[LayerShape], prompts: Sequence[list[int]]) -> list[tuple[int, int, Tensor]]:
    """(sequence, position, logits) over prefill, chunked prefill and decode of the sequences together."""
    num_blocks = sum(-(-len(prompt) // _BLOCK_TOKENS) for prompt in prompts)
    memory = PagedMemory(BlockPool(num_blocks), _BLOCK_TOKENS, salt=b"probe", share_prefixes=False)
    store = PageStore(layers, num_blocks, _BLOCK_TOKENS, model.dtype, str(device_of(model)))
    sequences = [_sequence(index, prompt, memory) for index, prompt in enumerate(prompts)]
    lane = PagedLane("probe", model, store, memory, step_budget=64, max_rows=2)
    found: list[tuple[int, int, Tensor]] = []
    try:
        for forward in ([(0, 7), (1, 6)], [(0, 4), (1, 1)], [(0, 1)]):
            logits = lane.forward([TextStep(sequences[which], num_new, True) for which, num_new in forward])
            for (which, num_new), row in zip(forward, logits, strict=True):
                sequences[which].num_computed += num_new
                found.append((which, sequences[which].num_computed - 1, row.float()))
    finally:
        lane.close()
    return found


def _relative_error(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm().clamp(min=1e-6))


def _sequence(index: int, tokens: list[int], memory: PagedMemory) -> TokenSequence:
    sequence = TokenSequence(id=str(index), tokens=tokens, num_prompt=1, sampling=Sampling(), seed=0)
    memory.attach(sequence)
    assert memory.acquire(sequence, len(tokens))
    return sequence


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120] if str(error).strip() else ''}"
