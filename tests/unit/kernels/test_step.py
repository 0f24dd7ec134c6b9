"""A whole forward in C against the same in torch: any sizes, scattered pages, answers and prompts, alone, in
company and in pieces."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from kamado.kernels.native import Native
from kamado.kernels.step import Decoder, DecoderStep, Layer, Matrix, Run
from kamado.kernels.tiles import GROUP, from_tiles, rounded, to_tiles

FORMS = {"8x16": (8, 8, 16), "8x8": (8, 8, 8), "4x8": (4, 4, 8), "mixed": (8, 4, 8)}
"""Bits of the weights, of those of v and up, and of activations."""
MAX_ERROR = {"8x16": 2e-4, "8x8": 5e-2, "4x8": 5e-2, "mixed": 5e-2}
"""Of logits, relative: of activations that are rounded to 8 bits, some fall to the other side."""


@pytest.fixture(scope="module")
def fast(built: list[Native]) -> list[Native]:
    found = [kernels for kernels in built if kernels.step_functions() is not None]
    return found or pytest.skip("there are no steps for this CPU")


class Case:
    """A drawn model, some sequences with new tokens, and pages full of NaN but for what they have before."""

    def __init__(
        self,
        *,
        lengths: list[int],
        counts: list[int] | None = None,
        kv_heads: int = 2,
        group: int = 2,
        dim: int = 64,
        hidden: int = 64,
        inner: int = 96,
        vocab: int = 50,
        page_tokens: int = 8,
        form: str = "8x16",
        scale: float = 0.125,
        head_norms: bool = False,
        bias: bool = False,
        seed: int = 0,
    ) -> None:
        """`lengths`: keys of each sequence with the first of its new tokens, `counts`: these, one by default."""
        self.generator = torch.Generator().manual_seed(seed)
        self.form, self.lengths, self.counts = form, lengths, counts or [1] * len(lengths)
        needed = [-(-(length + new - 1) // page_tokens) for length, new in zip(lengths, self.counts, strict=True)]
        numbers = torch.randperm(sum(needed) + 3, generator=self.generator).tolist()
        ends = [sum(needed[: i + 1]) for i in range(len(needed))]
        self.pages = [numbers[start:end] for start, end in pairwise([0, *ends])]
        heads = kv_heads * group
        shapes = {
            "q": (heads * dim, hidden),
            "k": (kv_heads * dim, hidden),
            "v": (kv_heads * dim, hidden),
            "o": (hidden, heads * dim),
            "gate": (inner, hidden),
            "up": (inner, hidden),
            "down": (hidden, inner),
        }
        store = (len(numbers), page_tokens, kv_heads, dim)
        self.layers = [
            Layer(
                norm=self.drawn(hidden) + 1,
                inner_norm=self.drawn(hidden) + 1,
                q_norm=self.drawn(dim) + 1 if head_norms else None,
                k_norm=self.drawn(dim) + 1 if head_norms else None,
                keys=torch.full(store, torch.nan),
                values=torch.full(store, torch.nan),
                **{name: self.matrix(name, *shape, bias=bias) for name, shape in shapes.items()},
            )
            for _ in range(2)
        ]
        self.decoder = Decoder(
            layers=self.layers,
            norm=self.drawn(hidden) + 1,
            head=self.matrix("head", vocab, hidden, bias=False),
            heads=heads,
            eps=1e-5,
            scale=scale,
        )
        self.fill()
        self.x = self.drawn(sum(self.counts), hidden)
        angles = self.drawn(sum(self.counts), dim)
        self.cos, self.sin = angles.cos(), angles.sin()

    def fill(self) -> None:
        """Keys and values of what the sequences have before."""
        for pool in (pool for layer in self.layers for pool in (layer.keys, layer.values)):
            for pages, length in zip(self.pages, self.lengths, strict=True):
                for at in range(length - 1):
                    pool[pages[at // pool.shape[1]], at % pool.shape[1]] = self.drawn(*pool.shape[2:])

    def drawn(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def matrix(self, name: str, out: int, columns: int, *, bias: bool) -> Matrix:
        bits, other_bits, activation_bits = FORMS[self.form]
        bits = other_bits if name in ("v", "up") else bits
        least, most = (-127, 127) if bits == 8 else (-8, 7)
        values = torch.randint(least, most + 1, (out, columns), generator=self.generator, dtype=torch.int8)
        scales = torch.rand(out, columns // GROUP, generator=self.generator).half() / (most * columns**0.5)
        tiles = to_tiles(values, scales, bits)
        return Matrix(
            values=tiles[0],
            scales=tiles[1],
            out_features=out,
            in_features=columns,
            bits=bits,
            activation_bits=activation_bits,
            bias=self.drawn(out) if bias else None,
        )

    def rows(self, sequence: int) -> slice:
        start = sum(self.counts[:sequence])
        return slice(start, start + self.counts[sequence])

    def run(
        self, kernels: Native, sequences: list[int], threads: int = 1, *, wanted: int | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits of all new tokens of some of the sequences, or of the last ones of each, and all pages afterwards; the
        case stays as it is."""
        step, pools = self.step(kernels)
        runs = [
            Run(rows=n, keys=self.lengths[i], pages=self.pages[i], wanted=n if wanted is None else min(wanted, n))
            for i in sequences
            for n in (self.counts[i],)
        ]
        rows = [row for i in sequences for row in range(len(self.x))[self.rows(i)]]
        return step(self.x[rows], self.cos[rows], self.sin[rows], runs, threads=threads), pools

    def in_pieces(self, kernels: Native, pieces: list[int], threads: int) -> tuple[Tensor, list[Tensor]]:
        """The same of the first sequence, whose new tokens come in several calls."""
        step, pools = self.step(kernels)
        found, at = [], 0
        for count in pieces:
            part = slice(at, at + count)
            run = Run(rows=count, keys=self.lengths[0] + at, pages=self.pages[0], wanted=count)
            found.append(step(self.x[part].clone(), self.cos[part], self.sin[part], [run], threads=threads))
            at += count
        return torch.cat(found), pools

    def step(self, kernels: Native) -> tuple[DecoderStep, list[Tensor]]:
        """Over pages of its own."""
        layers = [replace(each, keys=each.keys.clone(), values=each.values.clone()) for each in self.layers]
        pools = [pool for each in layers for pool in (each.keys, each.values)]
        return DecoderStep(kernels, replace(self.decoder, layers=layers)), pools

    def expected(self) -> tuple[Tensor, list[Tensor]]:
        """The same in torch, one token after the other."""
        layers = [replace(each, keys=each.keys.clone(), values=each.values.clone()) for each in self.layers]
        places = [
            (pages, length + i)
            for pages, length, new in zip(self.pages, self.lengths, self.counts, strict=True)
            for i in range(new)
        ]
        decoder, found = self.decoder, []
        dim, kv_heads = layers[0].keys.shape[3], layers[0].keys.shape[2]
        weights_of = {id(m): restored(m) for m in (decoder.head, *(m for layer in layers for m in layer.matrices))}

        def linear(matrix: Matrix, x: Tensor) -> Tensor:
            return functional.linear(rounded(x, matrix.activation_bits), weights_of[id(matrix)], matrix.bias)

        for start, cos, sin, (pages, length) in zip(self.x, self.cos, self.sin, places, strict=True):
            x = start
            for layer in layers:
                h = norm(x, layer.norm)
                q, k, v = (linear(m, h).view(-1, dim) for m in (layer.q, layer.k, layer.v))
                if layer.q_norm is not None and layer.k_norm is not None:
                    q, k = norm(q, layer.q_norm), norm(k, layer.k_norm)
                page, offset = pages[(length - 1) // layer.keys.shape[1]], (length - 1) % layer.keys.shape[1]
                layer.keys[page, offset], layer.values[page, offset] = turned(k, cos, sin), v
                read = [pool[pages].flatten(0, 1)[:length].transpose(0, 1) for pool in (layer.keys, layer.values)]
                grouped = turned(q, cos, sin).view(kv_heads, -1, dim)
                weights = (grouped @ read[0].transpose(1, 2) * decoder.scale).softmax(-1)
                x = x + linear(layer.o, (weights @ read[1]).flatten())
                h = norm(x, layer.inner_norm)
                x = x + linear(layer.down, functional.silu(linear(layer.gate, h)) * linear(layer.up, h))
            found.append(linear(decoder.head, norm(x, decoder.norm)))
        return torch.stack(found), [pool for each in layers for pool in (each.keys, each.values)]


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return functional.rms_norm(x, weight.shape, weight, 1e-5)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def restored(matrix: Matrix) -> Tensor:
    values, scales = from_tiles(matrix.values, matrix.scales, torch.arange(matrix.out_features))
    return (values.view(*scales.shape, GROUP) * scales.float()[..., None]).view(values.shape)


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


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
        seed=draw(st.integers(0, 1000)),
    )


@settings(deadline=None, max_examples=25)
@given(case=cases(), data=st.data())
def test_it_is_what_torch_computes(fast: list[Native], case: Case, data: st.DataObject) -> None:
    wanted, pages = case.expected()
    everybody = list(range(len(case.lengths)))
    for kernels in fast:
        found, written = case.run(kernels, everybody)
        assert error(found, wanted) <= MAX_ERROR[case.form], kernels.name
        for its, theirs in zip(written, pages, strict=True):
            assert torch.equal(its.isnan(), theirs.isnan()), "something else was written"
            assert error(its.nan_to_num(), theirs.nan_to_num()) <= MAX_ERROR[case.form]
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
)
def test_a_sequence_in_one_call_or_in_several(
    fast: list[Native], start: int, pieces: list[int], group: int, form: str
) -> None:
    """As prompts are cut, and proposals made: bit for bit the same."""
    case = Case(lengths=[start], counts=[sum(pieces)], group=group, form=form)
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
        [first, replace(second, down=replace(second.down, scales=second.down.scales[:1]))],
    ):
        with pytest.raises(ValueError, match=r"decoder|matrix|wanted|panels"):
            DecoderStep(fast[0], replace(case.decoder, layers=layers))
    with pytest.raises(ValueError, match="no such kernels"):
        DecoderStep(fast[0], Case(lengths=[3], dim=24, kv_heads=4).decoder)


def test_without_steps(built: list[Native]) -> None:
    with pytest.raises(ValueError, match="no steps"):
        DecoderStep(built[-1], Case(lengths=[3]).decoder)
