"""Whether a model's native forward is what its modules compute: two short sequences are run both ways at loading.

And whether a stand-in for the modules is, bit for bit, with which later loads can do without transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kamado.memory.blocks import BlockPool, PagedMemory
from kamado.requests import Sampling
from kamado.sequence import TextStep, TokenSequence

from .decoder import stand_in
from .native_step import NativeStep, recognised
from .paged import PagedLane
from .pages import LayerShape, PageStore

_LENGTHS = (5, 3)
_TOKENS = 2
"""Of each sequence, one after the other."""
MAX_ERROR = {16: 2e-3, 8: 5e-2}
"""Of logits, relative, by the bits of activations. Both ways round these, and a few fall to the other side of a half; a
term that is left out does more."""


@dataclass(frozen=True, slots=True)
class NativeVerdict:
    """What was found out of a model."""

    step: NativeStep | None = None
    """Its native forward; None where it has none, or where that computes something else than the modules."""
    sizes: Mapping[str, Any] | None = None
    """Of its stand-in (see `decoder.DecoderSizes`); None likewise."""


def native_verdict(
    model: Any, store: PageStore, layers: Sequence[LayerShape], *, stands_in: bool = False
) -> NativeVerdict:
    """Judge the model by a few short forwards. The pages of `store` are not touched; nothing random is drawn from
    global state. `stands_in`: look for a stand-in as well."""
    found = recognised(model, store)
    if found is None:
        return NativeVerdict()
    with torch.inference_mode():
        by_modules = _logits(model, layers, store.block_tokens, is_native=False)
        natively = _logits(model, layers, store.block_tokens, is_native=True)
        other = stand_in(model, layers[0].key_dim, layers[0].num_heads) if stands_in else None
        sizes = None
        if other is not None:
            others = _logits(other, layers, store.block_tokens, is_native=False)
            sizes = other.sizes.as_json() if torch.equal(others, by_modules) else None
    error = float((natively - by_modules).norm() / by_modules.norm().clamp(min=1e-6))
    return NativeVerdict(found if error <= MAX_ERROR[found.activation_bits] else None, sizes)


def _logits(model: Any, layers: Sequence[LayerShape], block_tokens: int, *, is_native: bool) -> Tensor:
    """Of the last tokens of all sequences after each step: both at once, and then token by token."""
    num_blocks = sum(-(-(length + _TOKENS) // block_tokens) for length in _LENGTHS)
    store = PageStore(layers, num_blocks, block_tokens, torch.float32, "cpu")
    memory = PagedMemory(BlockPool(num_blocks), block_tokens, salt=b"probe", share_prefixes=False)
    generator = torch.Generator().manual_seed(0)
    vocab_size = int(model.get_input_embeddings().weight.shape[0])
    sequences = []
    for index, length in enumerate(_LENGTHS):
        tokens = torch.randint(0, vocab_size, (length + _TOKENS,), generator=generator).tolist()
        sequence = TokenSequence(id=str(index), tokens=tokens, num_prompt=1, sampling=Sampling(), seed=0)
        memory.attach(sequence)
        assert memory.acquire(sequence, len(tokens))
        sequences.append(sequence)
    native = recognised(model, store) if is_native else None
    lane = PagedLane("probe", model, store, memory, step_budget=64, max_rows=2, native=native)
    found = []
    try:
        for counts in (_LENGTHS, *[(1, 1)] * _TOKENS):
            found.append(lane.forward([TextStep(s, n, True) for s, n in zip(sequences, counts, strict=True)]))
            for sequence, count in zip(sequences, counts, strict=True):
                sequence.num_computed += count
    finally:
        lane.close()
    return torch.cat(found)
