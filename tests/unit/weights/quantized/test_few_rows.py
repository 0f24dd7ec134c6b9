"""Products of few rows on a GPU, as far as they can be had without one."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kamado.weights.quantized import few_rows


class OnGpu(torch.Tensor):
    """Says that it is on one."""

    device = torch.device("cuda")  # type: ignore[assignment]


def test_a_product_that_fails_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are tried with small matrices; larger ones may be too much for a GPU."""
    raised: list[Exception] = [ValueError("too little shared memory"), MemoryError()]

    def fails(*_: Any) -> Any:
        raise raised[0]

    x = torch.zeros(2, 64).as_subclass(OnGpu)
    values, scale = torch.zeros((8, 64), dtype=torch.int8), torch.ones(8, 2)
    monkeypatch.setitem(sys.modules, "kamado.kernels.gpu.products", SimpleNamespace(MAX_ROWS=64))  # type: ignore[arg-type]
    monkeypatch.setattr(few_rows, "_failed", set())
    monkeypatch.setattr(few_rows, "has_kernels", lambda device: True)
    monkeypatch.setattr(few_rows, "can_multiply", lambda *_: True)
    monkeypatch.setattr(few_rows, "_product", fails)
    assert few_rows.product(x, values, scale, None) is None
    raised.pop(0)
    assert few_rows.product(x, values, scale, None) is None, "not tried again"
    few_rows._failed.clear()
    with pytest.raises(MemoryError):
        few_rows.product(x, values, scale, None)
