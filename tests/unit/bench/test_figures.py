"""Figures of samples, and what a step costs."""

from __future__ import annotations

import statistics
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_bench import TimedModel
from fake_model import make_plan
from kamado.bench.figures import gaps, joint_rate, mean_and_deviation, peak_memory_bytes, percentile
from kamado.bench.traffic import text_traffic

VALUES = st.lists(st.floats(0, 1e6), min_size=1, max_size=50)


@given(VALUES, st.floats(0, 1))
def test_percentiles(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found is not None and min(values) <= found <= max(values)
    assert percentile(values, 0.0) == min(values) and percentile(values, 1.0) == max(values)
    assert percentile(values, 0.5) == pytest.approx(statistics.median(values))
    assert percentile([], share) is None


@given(VALUES)
def test_mean_and_deviation(values: list[float]) -> None:
    mean, deviation = mean_and_deviation(values)
    assert mean == pytest.approx(statistics.fmean(values)) and deviation >= 0
    assert mean_and_deviation([3.0]) == (3.0, 0.0)


def test_gaps() -> None:
    assert gaps([1.0, 1.5, 3.0]) == [0.5, 1.5] and gaps([1.0]) == [] == gaps([])


@given(st.integers(1, 6), st.integers(2, 40), st.floats(0.001, 1), st.floats(0, 0.9))
def test_joint_rate_of_streams_that_run_side_by_side(number: int, tokens: int, gap: float, offset: float) -> None:
    """However they are shifted against each other, and wherever the common time begins and ends."""
    streams = [[(i + offset * stream / number) * gap for i in range(tokens)] for stream in range(number)]
    assert joint_rate(streams) == pytest.approx(number / gap, rel=1e-6)


def test_joint_rate_counts_only_what_is_joint() -> None:
    alone = [0.1 * i for i in range(11)]  # 10 a second up to 1 s, then 2
    assert joint_rate([[*alone, 1.5, 2.0, 2.5, 3.0], [1.0, 1.5, 2.0, 2.5, 3.0]]) == pytest.approx(4.0)
    assert joint_rate([[0.0, 1.0], [1.0, 2.0]]) is None, "one after the other"
    assert joint_rate([[0.0]]) is None and joint_rate([]) is None


def test_peak_memory() -> None:
    before = peak_memory_bytes("cpu")
    held = bytearray(before + (64 << 20))
    assert peak_memory_bytes("cpu") >= before + (60 << 20) > 64 << 20
    del held


def traffic_of(info: dict[str, Any], **changes: Any) -> Any:
    model = TimedModel(plan=make_plan(kv_bytes_per_token=100, state_bytes_per_sequence=7), info=info)
    return text_traffic(model, {"weights": 1000}) if not changes else text_traffic(model, changes)  # type: ignore[arg-type]


def test_what_a_step_of_a_dense_model_reads() -> None:
    traffic = traffic_of({"parameters": 5000, "vocab_size": 20, "hidden_size": 10})
    assert traffic.step_bytes(1, 30) == 1000 + 30 * 100 + 7
    assert traffic.step_bytes(4, 30) == 1000 + 4 * (30 * 100 + 7)
    assert traffic.token_operations() == 2 * 5000, "the table is the output matrix"
    assert traffic.prefill_operations(100) == 2 * (100 * 4800 + 200), "logits of the last token alone"


def test_what_a_step_of_a_mixture_reads() -> None:
    """8 experts of 500 parameters, of which a token passes 2."""
    info = {"parameters": 5000, "active_parameters": 2000, "experts": 8, "experts_per_token": 2}
    traffic = traffic_of({**info, "vocab_size": 20, "hidden_size": 10})
    assert traffic.step_bytes(1, 0) == pytest.approx(1000 * 2000 / 5000 + 7)
    assert traffic.step_bytes(2, 0) == pytest.approx(1000 * (1 - 0.8 * 0.75**2) + 14)
    assert traffic.step_bytes(1000, 0) == pytest.approx(1000 + 7000)
    assert traffic.token_operations() == 2 * 2000


def test_sizes_that_are_not_known() -> None:
    assert traffic_of({"parameters": 5000}) is None
    model = TimedModel(loaded=SimpleNamespace(module=SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=True))))
    assert text_traffic(model, {}) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("tied", [True, False])
def test_a_table_that_is_not_the_output_matrix_is_not_read(tied: bool) -> None:
    import torch
    from torch import nn

    table, head = nn.Embedding(20, 10), nn.Linear(10, 20, bias=False)
    if tied:
        head.weight = table.weight
    module = SimpleNamespace(
        config=SimpleNamespace(tie_word_embeddings=tied),
        get_input_embeddings=lambda: table,
        get_output_embeddings=lambda: head,
    )
    info = {"parameters": 5000, "vocab_size": 20, "hidden_size": 10}
    model = TimedModel(info=info, loaded=SimpleNamespace(module=module), plan=make_plan(kv_bytes_per_token=0))
    traffic = text_traffic(model, {"weights": 20_000})  # type: ignore[arg-type]
    assert traffic is not None and torch.float32.itemsize == 4
    assert traffic.step_bytes(1, 9) == 20_000 - (0 if tied else 20 * 10 * 4)
    assert traffic.token_operations() == 2 * (5000 - (0 if tied else 200))
    assert sys.modules["torch"] is torch
