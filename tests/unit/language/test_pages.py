"""Keys and values in 8 bits: how far a number is off, and that nothing but its own vector changes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kamado.memory.plan import KV_DTYPES
from kamado_models.language import pages
from kamado_models.language.pages import EIGHT_BITS, EightBitPageStore, EightBits, LayerShape, PageStore, page_store

LAYERS = (LayerShape(2, 12, 8), LayerShape(1, 20, 4, window=5))
FORMS = pytest.mark.parametrize("form", EIGHT_BITS.values(), ids=EIGHT_BITS)


def _round_trip(form: EightBits, vectors: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    codes, scales = form.encode(vectors)
    seen = torch.empty(vectors.shape, dtype=dtype)
    form.decode(codes, scales, seen)
    return seen


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


numbers = st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=20)
magnitudes = st.integers(-30, 30).map(lambda power: 10.0**power)


@FORMS
@given(numbers=numbers, magnitude=magnitudes)
def test_every_number_is_within_the_bound(form: EightBits, numbers: list[float], magnitude: float) -> None:
    vector = torch.tensor([numbers]) * magnitude
    largest = float(vector.abs().max())
    error = float((_round_trip(form, vector) - vector).abs().max())
    assert error <= form.max_error * largest * (1 + 1e-5) + 128 * torch.finfo(torch.float32).tiny


def test_floats_are_finer_for_small_numbers() -> None:
    """A number a hundredth of the vector's largest: 3 bits behind the leading one against one step of 127."""
    vector = torch.cat([torch.ones(1), torch.full((15,), 0.0108)])[None]
    off = {name: float(((_round_trip(form, vector) - vector) / vector).abs()[0, 1:].max()) for name, form in
           EIGHT_BITS.items()}  # fmt: skip
    assert off["fp8"] <= 1 / 16 < off["int8"]


@FORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_in_half_precision_the_error_is_that_of_both_roundings(form: EightBits, dtype: torch.dtype) -> None:
    vectors = _random(50, 24).to(dtype)
    seen = _round_trip(form, vectors, dtype)
    bound = (form.max_error + torch.finfo(dtype).eps) * vectors.float().abs().amax(-1, keepdim=True)
    assert bool(((seen.float() - vectors.float()).abs() <= bound).all())


@FORMS
@given(seed=st.integers(0, 1000), num=st.integers(1, 9))
def test_company_changes_nothing(form: EightBits, seed: int, num: int) -> None:
    vectors = _random(num, 2, 12, seed=seed) * torch.logspace(-3, 3, num)[:, None, None]
    codes, scales = form.encode(vectors)
    for index in range(num):
        alone = form.encode(vectors[index : index + 1])
        assert torch.equal(alone[0][0], codes[index]) and torch.equal(alone[1][0], scales[index])


@FORMS
def test_zeros_stay_zeros_and_nan_stays_nan(form: EightBits) -> None:
    assert not _round_trip(form, torch.zeros(3, 8)).any()
    for bad in (float("nan"), float("inf"), -float("inf")):
        vectors = _random(2, 8)
        vectors[1, 3] = bad
        seen = _round_trip(form, vectors)
        assert bool(seen[0].isfinite().all())
        assert not bool(seen[1].isfinite().any())


@FORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_code_is_read_as_torch_reads_it(form: EightBits, dtype: torch.dtype) -> None:
    codes = torch.arange(-128, 128, dtype=torch.int8).view(16, 16)
    wanted = codes.view(form.code).to(torch.float32)
    for scale in (1.0, 2.0**-20, 0.3):
        seen = torch.empty(codes.shape, dtype=dtype)
        form.decode(codes, torch.full((16, 1), scale), seen)
        number = wanted.isfinite()  # two codes of 8-bit floats are no number, and are never written with a finite scale
        assert torch.equal(seen[number], (wanted * torch.tensor(scale)).to(dtype)[number])


def _filled(kv_dtype: str, num_blocks: int = 6) -> tuple[PageStore, list[tuple[Tensor, Tensor]]]:
    """A store whose every slot was written, and what writing said of each layer: (1, K, slots, D)."""
    store = page_store(LAYERS, num_blocks, 4, torch.float32, "cpu", kv_dtype)
    seen = []
    for index, layer in enumerate(LAYERS):
        keys = _random(1, layer.num_heads, num_blocks * 4, layer.key_dim, seed=index)
        values = _random(1, layer.num_heads, num_blocks * 4, layer.value_dim, seed=10 + index)
        order = torch.randperm(num_blocks * 4, generator=torch.Generator().manual_seed(3))
        first = store.write(index, range(7), keys[:, :, :7], values[:, :, :7])
        later = order[order >= 7]
        second = store.write(index, later, keys[:, :, later], values[:, :, later])
        made = [torch.empty_like(keys), torch.empty_like(values)]
        for at, (one, two) in enumerate(zip(first, second, strict=True)):
            made[at][:, :, :7], made[at][:, :, later] = one, two
        seen.append((made[0], made[1]))
    return store, seen


@pytest.mark.parametrize("piece", [1, 100, 1 << 18])
@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_what_is_written_is_what_is_read(kv_dtype: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In runs of pages and in any order, in pieces of any size: bit for bit what the writer saw."""
    monkeypatch.setitem(pages._PIECE, "cpu", piece)
    store, seen = _filled(kv_dtype)
    table = torch.tensor([[5, 0, 3], [2, 2, 1]])
    slots = (table[:, :, None] * 4 + torch.arange(4)).flatten(1)
    for layer, (keys, values) in enumerate(seen):
        for got, written in zip(store.read(layer, range(1, 4), 9), (keys, values), strict=True):
            assert torch.equal(got, written[:, :, 4:13])
        for got, written in zip(store.read(layer, table), (keys, values), strict=True):
            assert torch.equal(got, written[0].transpose(0, 1)[slots].transpose(1, 2))


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_bytes_are_those_of_the_shapes(kv_dtype: str) -> None:
    store, _ = _filled(kv_dtype)
    assert store.nbytes == 6 * 4 * sum(layer.bytes_per_token(torch.float32, kv_dtype) for layer in LAYERS)


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_a_cleared_page_holds_no_nan(kv_dtype: str) -> None:
    store, seen = _filled(kv_dtype)
    for index, layer in enumerate(LAYERS):
        keys = torch.full((1, layer.num_heads, 1, layer.key_dim), float("nan"))
        values = torch.full((1, layer.num_heads, 1, layer.value_dim), float("nan"))
        store.write(index, range(9, 10), keys, values)
    store.clear([2])
    for index, (keys, _) in enumerate(seen):
        got = store.read(index, range(6))[0]
        assert not got[:, :, 8:12].any()
        assert torch.equal(got[:, :, :8], keys[:, :, :8]) and torch.equal(got[:, :, 12:], keys[:, :, 12:])


def test_pages_that_nobody_wrote_are_zeros() -> None:
    store: Any = page_store(LAYERS, 3, 4, torch.bfloat16, "cpu", "fp8")
    assert isinstance(store, EightBitPageStore)
    keys, values = store.read(0, torch.tensor([[2, 0]]))
    assert keys.dtype == values.dtype == torch.bfloat16
    assert not keys.any() and not values.any()
