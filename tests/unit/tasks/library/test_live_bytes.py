"""Watching temporary tensors: exact figures, nothing kept alive, nothing changed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kamado.quant import Quant
from kamado.tasks.library.live_bytes import LiveBytes, measuring
from kamado.weights.quantized.forms import quantize
from kamado.weights.quantized.tensor import QuantTensor

KIB = 1024


def _numbers(count: int) -> Tensor:
    return torch.zeros(count // 4)


@pytest.mark.parametrize("inference", [True, False])
def test_the_most_that_lives_at_once_counts(inference: bool) -> None:
    given = _numbers(64 * KIB)
    with torch.inference_mode(inference), LiveBytes() as live:
        first = given + 1  # 64
        second = torch.cat([first, first])  # 192
        del first  # 128
        third = second[: len(second) // 2] * 2  # 192
        view = second.view(2, -1)
        view.add_(1)
        given.mul_(2)  # was there before
        del second, third
        assert live.left() == 128 * KIB
        del view
    assert live.bytes == 192 * KIB
    assert live.left() == 0


def test_nothing_is_kept_alive() -> None:
    with LiveBytes() as live:
        made = _numbers(KIB) + 1
        gone = weakref.ref(made)
        del made
        assert gone() is None
    assert live.bytes == 2 * KIB


def test_outputs_and_results_of_several_tensors_count_once() -> None:
    out = _numbers(KIB)
    with LiveBytes() as live:
        torch.add(out, 1, out=out)
        parts = out.split(16)
        values, indexes = torch.max(torch.ones(256, 2), dim=1)
    assert live.bytes == 2 * KIB + KIB + 2 * KIB  # ones, values, indexes
    assert len(parts) == 16
    assert values.shape == indexes.shape


def test_quantized_weights_show_what_their_products_lay_out() -> None:
    """Tensors of many parts do their work out of sight of a mode that does not let them."""
    scheme = Quant(scheme="int8").scheme_for("layers.0.weight", (256, 256))
    assert scheme is not None
    weight = QuantTensor(quantize(torch.randn(256, 256), scheme), torch.float32)
    rows = torch.randn(4, 256)
    with torch.inference_mode():
        plain = functional.linear(rows, weight)
        with LiveBytes() as live:
            watched = functional.linear(rows, weight)
            full = weight + 0
    assert torch.equal(plain, watched)
    assert live.bytes >= 2 * full.nbytes + watched.nbytes  # it was made from another one in full precision


def test_results_are_bit_equal_and_own_settings_stay() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 6 * 6, 5)).eval()
    pixels = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        plain = model(pixels)
        with measuring("cpu") as found:
            watched = model(pixels)
    assert torch.equal(plain, watched)
    assert found.bytes is not None
    assert found.bytes > found.left >= watched.nbytes


def test_what_raises_is_not_measured_and_the_next_one_is() -> None:
    with pytest.raises(RuntimeError), measuring("cpu") as found:
        torch.ones(2) + 1
        raise RuntimeError
    assert found.bytes is None
    with measuring("cpu") as found:
        torch.ones(256)
    assert found.bytes == KIB


@pytest.mark.parametrize(
    ("after", "expected"),
    [((300, 5 * KIB), 5 * KIB - 100), ((300, 4 * KIB), 2 * KIB), ((300, 4 * KIB + 1), 4 * KIB + 1 - 100)],
)
def test_on_a_gpu_the_allocators_mark_counts_once_it_rises(
    after: tuple[int, int], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, it says only that the forward took no more than something else did."""
    marks = iter([(100, 4 * KIB), after])
    monkeypatch.setattr("kamado.tasks.library.live_bytes._marks", lambda device: next(marks))
    with measuring("cuda:0") as found:
        torch.ones(512)
    assert found.bytes == expected


def test_threads_do_not_see_each_other_and_only_one_measures() -> None:
    inside, leave, seen = threading.Event(), threading.Event(), []

    def first() -> None:
        with measuring("cpu") as found:
            torch.ones(256)
            inside.set()
            leave.wait(10)
        seen.append(found.bytes)

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait(10)
    with measuring("cpu") as other:
        torch.ones(4096)
    leave.set()
    thread.join()
    assert other.bytes is None
    assert seen == [KIB]


def test_it_loads_no_compiler_and_leaves_the_environment_alone() -> None:
    code = """
import os, sys, torch
before = dict(os.environ)
from kamado.tasks.library.live_bytes import measuring
with measuring("cpu") as found:
    torch.ones(256) + 1
assert found.bytes == 2048, found.bytes
assert dict(os.environ) == before
assert "torch._dynamo" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
