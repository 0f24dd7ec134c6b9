"""The scratch memory that the sampler says it needs is an upper bound of what it takes."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kamado.sampling.sampler import Sampler
from kamado.sampling.scratch import MAX_CHUNK_ELEMENTS, scratch_bytes
from unit.sampling.rows import SAMPLINGS, random_logits, sequence


class Peak(TorchDispatchMode):
    """Bytes of all tensors made and still alive, at their highest."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: list[weakref.ref[torch.Tensor]] = []
        self.peak_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.alive += [weakref.ref(leaf) for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        tensors = [tensor for ref in self.alive if (tensor := ref()) is not None]
        self.alive = [weakref.ref(tensor) for tensor in tensors]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        self.peak_bytes = max(self.peak_bytes, sum(storages.values()))
        return result


@pytest.mark.parametrize(
    "samplings",
    [
        SAMPLINGS,
        [{"temperature": 50.0, "top_p": 0.99}] * 15 + [{"temperature": 1.0}],
        [{"temperature": 1.0, "typical_p": 0.5}] * 15 + [{"temperature": 1.0}],
    ],
    ids=["mixed", "flat top_p", "typical"],
)
def test_scratch_is_bounded(samplings: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # torch's dispatch modes set it for good
    vocab_size = 10_000
    rows = [sequence(made=[5], seed=i, logprobs=3, **values) for i, values in enumerate(samplings)]
    logits = random_logits(16, vocab_size).to(torch.bfloat16)
    with Peak() as whole:
        Sampler().draw(logits, rows)
    assert whole.peak_bytes <= scratch_bytes(16, vocab_size, "cpu")
    monkeypatch.setitem(MAX_CHUNK_ELEMENTS, "cpu", 4 * vocab_size)
    with Peak() as pieces:
        Sampler().draw(logits, rows)
    assert pieces.peak_bytes <= scratch_bytes(16, vocab_size, "cpu") < whole.peak_bytes
