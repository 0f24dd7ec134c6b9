"""A whole forward in C against the same in torch: any sizes, scattered pages, answers and prompts, alone, in
company and in pieces."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kamado.kernels.native import Native
from kamado.kernels.step import DecoderStep, Run
from unit.kernels.step_case import FORMS, KEPT, MAX_ERROR, Case, as_kept, as_read, error, max_error, pools_of


@pytest.fixture(scope="module")
def fast(built: list[Native]) -> list[Native]:
    found = [kernels for kernels in built if kernels.step_functions() is not None]
    return found or pytest.skip("there are no steps for this CPU")


@st.composite
def cases(draw: st.DrawFn) -> Case:
    dim = draw(st.sampled_from([16, 32, 48, 64, 80, 128, 144]))
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    lengths = draw(st.lists(st.one_of(st.integers(1, 40), st.integers(120, 300)), min_size=1, max_size=4))
    return Case(
        lengths=lengths,
        counts=[draw(st.one_of(st.just(1), st.integers(1, 15))) for _ in lengths],
        kv_heads=kv_heads * (2 if dim % 32 and kv_heads * group % 2 else 1),
        group=group,
        dim=dim,
        hidden=draw(st.sampled_from([32, 64, 160])),
        inner=draw(st.sampled_from([32, 96])),
        vocab=draw(st.integers(1, 50)),
        page_tokens=draw(st.sampled_from([8, 16])),
        form=draw(st.sampled_from(list(FORMS))),
        scale=draw(st.sampled_from([0.05, 3.0])),
        head_norms=draw(st.booleans()),
        bias=draw(st.booleans()),
        kept=draw(st.sampled_from(KEPT)),
        seed=draw(st.integers(0, 1000)),
    )


@settings(deadline=None, max_examples=25)
@given(case=cases(), data=st.data())
def test_it_is_what_torch_computes(fast: list[Native], case: Case, data: st.DataObject) -> None:
    wanted, pages = case.expected()
    everybody = list(range(len(case.lengths)))
    for kernels in fast:
        found, written = case.run(kernels, everybody)
        assert error(found, wanted) <= max_error(case), kernels.name
        for its, theirs in zip(written, pages, strict=True):
            assert torch.equal(its.isnan(), theirs.isnan()), "something else was written"
            assert error(its.nan_to_num(), theirs.nan_to_num()) <= max_error(case)
        some = data.draw(st.lists(st.sampled_from(everybody), min_size=1, unique=True))
        again = case.run(kernels, some, threads=2)[0]
        rows = torch.cat([torch.arange(len(found))[case.rows(i)] for i in some])
        assert torch.equal(again, found[rows]), "company or threads matter"
        last = [case.rows(i).stop - 1 for i in everybody]
        for number, ends in enumerate(([], last)):
            fewer, kept = case.run(kernels, everybody, threads=3, wanted=number)
            assert torch.equal(fewer, found[ends]), "other rows' logits matter"
            for its, theirs in zip(kept, written, strict=True):
                assert torch.equal(its.nan_to_num(), theirs.nan_to_num()), "pages depend on what logits are wanted"


@pytest.mark.parametrize("form", FORMS)
def test_many_rows_and_wide_layers(fast: list[Native], form: str) -> None:
    """What the threads round for each other, and more rows than go over a matrix together."""
    case = Case(
        lengths=[*range(3, 33), 300], counts=[1] * 29 + [70, 1], hidden=256, inner=576, form=form, kv_heads=1, group=3
    )
    wanted, _ = case.expected()
    for kernels in fast:
        found, written = case.run(kernels, list(range(31)))
        assert max(map(error, found, wanted)) <= MAX_ERROR[form]
        for threads in (2, 3):
            again, its = case.run(kernels, list(range(31)), threads=threads)
            assert torch.equal(again, found)
            assert all(map(torch.equal, map(torch.nan_to_num, its), map(torch.nan_to_num, written)))
        for sequence in (0, 7, 29, 30):
            assert torch.equal(case.run(kernels, [sequence], threads=2)[0], found[case.rows(sequence)])


def test_sequences_share_pages(fast: list[Native]) -> None:
    """Two rows that begin with the same page, as with a prefix that both have."""
    case = Case(lengths=[19, 13])
    case.pages[1][0] = case.pages[0][0]
    wanted, _ = case.expected()
    for kernels in fast:
        assert error(case.run(kernels, [0, 1], threads=2)[0], wanted) <= MAX_ERROR["8x16"]


@settings(deadline=None, max_examples=15)
@given(
    start=st.integers(1, 300),
    pieces=st.lists(st.integers(1, 60), min_size=1, max_size=8),
    group=st.integers(1, 5),
    form=st.sampled_from(list(FORMS)),
    kept=st.sampled_from(KEPT),
)
def test_a_sequence_in_one_call_or_in_several(
    fast: list[Native], start: int, pieces: list[int], group: int, form: str, kept: str
) -> None:
    """As prompts are cut, and proposals made: bit for bit the same."""
    case = Case(lengths=[start], counts=[sum(pieces)], group=group, form=form, kept=kept)
    for kernels in fast:
        together, written = case.run(kernels, [0], threads=2)
        assert not bool(together.isnan().any())
        for threads in (1, 4):
            apart, pools = case.in_pieces(kernels, pieces, threads)
            assert torch.equal(apart, together)
            assert all(map(torch.equal, map(torch.nan_to_num, pools), map(torch.nan_to_num, written)))


def test_nan_stays_with_its_row(fast: list[Native]) -> None:
    case = Case(lengths=[9, 17, 4])
    for kernels in fast:
        sound = case.run(kernels, [0, 1, 2])[0]
        case.x[1, 3] = torch.nan
        found = case.run(kernels, [0, 1, 2], threads=2)[0]
        assert bool(found[1].isnan().all()) and torch.equal(found[::2], sound[::2])
        case.x[1, 3] = 0.5
        case.layers[1].keys[case.pages[1][0], 0] = torch.nan
        assert case.run(kernels, [0, 1, 2])[0].isnan().all(1).tolist() == [False, True, False]
        case.layers[1].keys[case.pages[1][0], 0] = 0.5


@pytest.mark.parametrize("kept", KEPT[1:])
def test_pages_hold_what_torch_would_put_there(fast: list[Native], kept: str) -> None:
    """What the first layer writes depends on no pages. To the last bit, very large and very small numbers too."""
    plain, other = (
        Case(lengths=[1, 1, 9], counts=[40, 3, 1], kept=each, bias=True, dim=48, kv_heads=4)
        for each in ("float32", kept)
    )
    for case in (plain, other):
        v, k = case.layers[0].v, case.layers[0].k
        assert v.bias is not None and k.bias is not None
        v.bias[:48] = torch.arange(48.0)  # halfway between two e4m3, where the largest number is 448
        v.bias[0] = 448
        v.bias[48:96] *= 1e-41
        v.bias[96:144] *= torch.logspace(-9, 5, 48)
        k.bias[:48] *= 1e5
        case.x[1] = 0
        case.x[2, 5] = torch.nan
    for kernels in fast:
        layers = []
        for case in (plain, other):
            step, (first, _) = case.step(kernels)
            run = Run(rows=40, keys=1, pages=case.pages[0])
            rows = case.rows(0)
            step(case.x[rows].clone(), case.cos[rows], case.sin[rows], [run], threads=2)
            layers.append(first)
        written = plain.pages[0]
        for found, wanted in zip(pools_of(layers[1]), pools_of(layers[0]), strict=True):
            numbers, scales = as_kept(wanted.numbers[written], kept)
            assert torch.equal(found.read()[written].nan_to_num(7.0), as_read(numbers, scales).nan_to_num(7.0))
            assert bool(found.read()[written].isnan().any()) and bool((found.read()[written] != 0).any())


def test_extreme_scores(fast: list[Native]) -> None:
    case = Case(lengths=[33, 2], scale=1e4)
    wanted, _ = case.expected()
    for kernels in fast:
        assert error(case.run(kernels, [0, 1])[0], wanted) <= MAX_ERROR["8x16"]


def test_no_rows(fast: list[Native]) -> None:
    assert Case(lengths=[3]).run(fast[0], [])[0].shape == (0, 50)


BAD: dict[str, Any] = {
    "no such page": {"pages": [99]},
    "a page below 0": {"pages": [-1]},
    "too few pages": {"keys": 9},
    "no keys": {"keys": 0},
    "more logits than rows": {"wanted": 2},
    "no pages": {"pages": []},
}


@pytest.mark.parametrize("name", BAD)
def test_nothing_is_read_out_of_bounds(fast: list[Native], name: str) -> None:
    case = Case(lengths=[3])
    step = DecoderStep(fast[0], case.decoder)
    run = Run(rows=1, keys=3, pages=case.pages[0])
    with pytest.raises(ValueError, match=r"pages|keys|logits"):
        step(case.x, case.cos, case.sin, [replace(run, **BAD[name])])
    with pytest.raises(ValueError, match="is wanted"):
        step(case.x[:, ::2], case.cos, case.sin, [run])
    with pytest.raises(ValueError, match="is wanted"):
        step(case.x, case.cos, case.sin, [run, run])


def test_sizes_that_do_not_fit_are_refused(fast: list[Native]) -> None:
    case = Case(lengths=[3])
    first, second = case.layers
    for layers in (
        [],
        [first, replace(second, q=second.k)],
        [first, replace(second, norm=second.norm.double())],
        [first, replace(second, keys=second.keys[:1])],
        [first, replace(second, keys=second.keys.half())],
        [first, replace(second, key_scales=second.keys[..., :1])],
        [replace(each, keys=each.keys.char(), values=each.values.char()) for each in case.layers],
        [replace(each, keys=each.keys.double(), values=each.values.double()) for each in case.layers],
        [first, replace(second, down=replace(second.down, scales=second.down.scales[:1]))],
    ):
        with pytest.raises(ValueError, match=r"decoder|matrix|wanted|panels"):
            DecoderStep(fast[0], replace(case.decoder, layers=layers))
    with pytest.raises(ValueError, match="no such kernels"):
        DecoderStep(fast[0], Case(lengths=[3], dim=24, kv_heads=4).decoder)


def test_without_steps(built: list[Native]) -> None:
    with pytest.raises(ValueError, match="no steps"):
        DecoderStep(built[-1], Case(lengths=[3]).decoder)
