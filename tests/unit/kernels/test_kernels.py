"""The kernels in C against the same in torch: every implementation that this CPU can run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kamado.kernels import native as loader
from kamado.kernels.native import Native, implementations, native
from kamado.kernels.tiles import GROUP, from_tiles, rounded, to_tiles

SOURCE = Path(loader.__file__).parent / "source"
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
FORMS = [(8, 8), (8, 16), (4, 8)]
"""Bits of weights and of activations."""


def drawn(out: int, columns: int, bits: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values int8 (out, in), the extremes among them, and scales."""
    generator = torch.Generator().manual_seed(seed)
    least, most = (-128, 127) if bits == 8 else (-8, 7)
    values = torch.randint(least, most + 1, (out, columns), generator=generator, dtype=torch.int8)
    values[0], values[-1] = most, least
    return values, (torch.rand(out, columns // GROUP, generator=generator) * 0.01).half()


def product(
    kernels: Native, x: torch.Tensor, tiles: tuple[torch.Tensor, torch.Tensor], out: int, *forms: int
) -> torch.Tensor:
    return kernels.linear(x, *tiles, out, weight_bits=forms[0], activation_bits=forms[1])


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("out", [1, 16, 50])
def test_tiles_and_back(bits: int, out: int) -> None:
    values, scales = drawn(out, 96, bits, 0)
    tiles = to_tiles(values, scales, bits)
    assert sum(part.nbytes for part in tiles) == -(-out // 16) * 16 * (96 * bits // 8 + 3 * 2)
    index = torch.tensor([out - 1, 0, out // 2])
    found, found_scales = from_tiles(*tiles, index)
    assert torch.equal(found, values[index]) and torch.equal(found_scales, scales[index])


@settings(max_examples=25)
@given(
    out=st.integers(1, 70),
    groups=st.integers(1, 5),
    rows=st.integers(0, 30),
    seed=st.integers(0, 9),
    bias=st.booleans(),
)
@pytest.mark.parametrize(("weight_bits", "bits"), FORMS)
def test_as_in_torch(
    built: list[Native], weight_bits: int, bits: int, out: int, groups: int, rows: int, seed: int, bias: bool
) -> None:
    values, scales = drawn(out, groups * GROUP, weight_bits, seed)
    tiles = to_tiles(values, scales, weight_bits)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, groups * GROUP + 3, generator=generator)[:, :-3]  # rows that are not side by side
    x[rows // 2 :] *= 1e-4
    added = torch.randn(out, generator=generator) if bias else None
    weight = (values.view(out, groups, GROUP).double() * scales.double().unsqueeze(-1)).view(out, -1)
    wanted = rounded(x, bits).double() @ weight.t()
    if added is not None:
        wanted += added
    room = (rounded(x, bits).double().abs() @ weight.abs().t()) * 1e-6 + 1e-6
    for kernels in built:
        found = kernels.linear(x, *tiles, out, weight_bits=weight_bits, activation_bits=bits, bias=added)
        assert found.dtype == torch.float32 and found.shape == (rows, out)
        assert bool(((found.double() - wanted).abs() <= room).all()), kernels.name


@pytest.mark.parametrize(("weight_bits", "bits"), FORMS)
def test_a_row_is_the_same_in_any_company(built: list[Native], weight_bits: int, bits: int) -> None:
    tiles = to_tiles(*drawn(100, 640, weight_bits, 1), weight_bits)
    x = torch.randn(200, 640, generator=torch.Generator().manual_seed(1))
    for kernels in built:
        alone = torch.cat([product(kernels, row[None], tiles, 100, weight_bits, bits) for row in x])
        for rows in (2, 6, 7, 13, 64, 200):
            assert torch.equal(product(kernels, x[:rows], tiles, 100, weight_bits, bits), alone[:rows]), kernels.name


@pytest.mark.parametrize(("weight_bits", "bits"), FORMS)
def test_cpus_agree_to_the_last_bit(built: list[Native], weight_bits: int, bits: int) -> None:
    tiles = to_tiles(*drawn(48, 320, weight_bits, 2), weight_bits)
    for rows in (9, 100):
        x = torch.randn(rows, 320, generator=torch.Generator().manual_seed(2))
        found = [product(each, x, tiles, 48, weight_bits, bits) for each in built if each.is_fast]
        assert all(torch.equal(each, found[0]) for each in found)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("rows", [5, 100])
@pytest.mark.parametrize("x", [127.0, -127.0])
def test_the_largest_sums_fit(built: list[Native], bits: int, rows: int, x: float) -> None:
    """All weights -128, all activations at an end of their range: what saturates or overflows shows."""
    tiles = to_tiles(torch.full((16, 64), -128, dtype=torch.int8), torch.ones(16, 2).half(), 8)
    for kernels in built:
        found = product(kernels, torch.full((rows, 64), x), tiles, 16, 8, bits)
        assert found.tolist() == [[-64 * 128 * x] * 16] * rows


@pytest.mark.parametrize(("weight_bits", "bits"), FORMS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_seen_in_their_row_alone(
    built: list[Native], weight_bits: int, bits: int, bad: float
) -> None:
    tiles = to_tiles(*drawn(16, 64, weight_bits, 3), weight_bits)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(3))
    x[1, 40] = bad
    for kernels in built:
        found = product(kernels, x, tiles, 16, weight_bits, bits)
        assert found.isnan().all(1).tolist() == [False, True, False] and bool(found[::2].isfinite().all()), kernels.name


@pytest.mark.parametrize("bits", [8, 16])
def test_rounding(bits: int) -> None:
    x = torch.randn(3, 4, 64, generator=torch.Generator().manual_seed(4))
    x[0, 0] = 0.0
    x[0, 1] *= 1e-35
    found = rounded(x, bits)
    assert found.shape == x.shape and bool((found[0, :2] == 0).all())
    largest = x.unflatten(-1, (-1, GROUP)).abs().amax(-1, keepdim=True)
    error = (found - x).unflatten(-1, (-1, GROUP)).abs()
    assert bool((error <= largest * (0.501 / (127 if bits == 8 else 32767)) + 1e-30).all())


def test_threads_change_nothing(built: list[Native]) -> None:
    tiles = to_tiles(*drawn(333, 320, 8, 5), 8)
    before = torch.get_num_threads()
    try:
        for rows in (1, 20, 150):
            x = torch.randn(rows, 320, generator=torch.Generator().manual_seed(5))
            found = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                found.append(product(built[0], x, tiles, 333, 8, 16))
            assert all(torch.equal(each, found[0]) for each in found)
    finally:
        torch.set_num_threads(before)


def test_a_library_of_another_version_is_not_used(
    built: list[Native], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = Path(built[0]._library._name)
    assert implementations(tmp_path / "none.so") == []
    monkeypatch.setattr(loader, "FORMS", -1)
    assert implementations(path) == []


def test_what_is_installed_is_fast_or_not_used() -> None:
    found = native()
    assert found is None or found.is_fast


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_in_full_precision(built: list[Native], bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    least, most = (-127, 127) if bits == 8 else (-8, 7)
    whole = torch.randint(least, most + 1, (50, 96), generator=generator, dtype=torch.int8)
    scales = torch.randn(50, 3, generator=generator).half()
    scales[7] = 3e-6  # below the smallest normal number of 16 bits
    tiles = to_tiles(whole, scales, bits)
    wanted = (whole.view(50, 3, 32) * scales.float()[..., None]).view(50, 96)
    index = torch.tensor([49, 0, 7, 7, 16], dtype=torch.int32)
    for kernels in built:
        assert torch.equal(kernels.rows(*tiles, 50, index), wanted[index])
        assert kernels.rows(*tiles, 50, index[:0]).shape == (0, 96)
        for bad in (-1, 50):
            with pytest.raises(IndexError, match="not within the 50"):
                kernels.rows(*tiles, 50, torch.tensor([0, bad]))
