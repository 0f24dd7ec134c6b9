"""Tensors are quantized as they are read: the right ones, one at a time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from kamado.quant import Quant
from kamado.weights.quantized.reading import quantizing
from kamado.weights.quantized.tensor import QuantTensor


class Stored:
    """A tensor of a file, and how many were in the making at once."""

    reading = 0
    most = 0
    _lock = threading.Lock()

    def __init__(self, name: str, value: torch.Tensor) -> None:
        self.name, self.nbytes, self.value = name, value.nbytes, value

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.value.dtype

    def read(self) -> torch.Tensor:
        with self._lock:
            Stored.reading += 1
            Stored.most = max(Stored.most, Stored.reading)
        threading.Event().wait(0.005)
        with self._lock:
            Stored.reading -= 1
        return self.value.clone()

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self.read()[index]


def stored(**values: torch.Tensor) -> dict[str, Any]:
    return {name.replace("__", "."): Stored(name, value) for name, value in values.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_those_that_have_a_form(dtype: torch.dtype) -> None:
    source = stored(
        l__0__q_proj__weight=torch.randn(64, 128),
        l__0__norm__weight=torch.randn(4096),
        l__0__gate__weight=torch.randn(64, 64),
        l__0__conv__weight=torch.randn(64, 64, 3, 3),
        counts__weight=torch.ones((64, 64), dtype=torch.int64),
    )
    found = {name: each.read() for name, each in quantizing(source, Quant(scheme="int4"), dtype).items()}
    weight, kernel = found["l.0.q_proj.weight"], found["l.0.conv.weight"]
    assert isinstance(weight, QuantTensor) and weight.dtype == dtype and weight.shape == (64, 128)
    assert isinstance(kernel, QuantTensor) and kernel.shape == (64, 64, 3, 3)
    for name in ("l.0.norm.weight", "l.0.gate.weight", "counts.weight"):
        assert torch.equal(found[name], source[name].value)


def test_names_with_a_prefix_and_indices() -> None:
    source = stored(q__weight=torch.randn(64, 64))
    quant = Quant(scheme="int8", skip=("vision/*",))
    (kept,) = quantizing(source, quant, torch.float32, prefix="vision/").values()
    assert not isinstance(kept.read(), QuantTensor)
    (other,) = quantizing(source, quant, torch.float32, prefix="text/").values()
    assert isinstance(other[...], QuantTensor)
    assert torch.equal(other[3:5], other[...].dequantize()[3:5])
    assert other.shape == (64, 64) and other.dtype == torch.float32 and other.nbytes == 64 * 64 * 4


def test_one_at_a_time() -> None:
    """So that beside what is finished there is never more than one tensor in full precision."""
    source = {f"l.{number}.q_proj.weight": Stored("", torch.randn(64, 64)) for number in range(12)}
    tensors = quantizing(source, Quant(scheme="int8"), torch.float32)
    Stored.most = 0
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda each: each.read(), tensors.values()))
    assert all(isinstance(each, QuantTensor) for each in found)
    assert Stored.most == 1


def test_a_weight_that_is_quantized_already_gets_the_form_that_was_asked_for() -> None:
    (first,) = quantizing(stored(q__weight=torch.randn(64, 64)), Quant(scheme="int8"), torch.float32).values()
    weight = first.read()

    class Packed(Stored):
        def read(self) -> torch.Tensor:
            return weight

    (second,) = quantizing({"q.weight": Packed("q", weight)}, Quant(scheme="nf4"), torch.float32).values()
    found = second.read()
    assert isinstance(found, QuantTensor) and found.packed.form == "codebook"
