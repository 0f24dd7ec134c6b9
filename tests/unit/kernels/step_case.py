"""Drawn decoders with pages, and their forward in torch, for `test_step`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kamado.kernels.native import Native
from kamado.kernels.step import Decoder, DecoderStep, Layer, Matrix, Run
from kamado.kernels.tiles import GROUP, from_tiles, rounded, to_tiles
from kamado_models.language.pages import EIGHT_BITS

FORMS = {"8x16": (8, 8, 16), "8x8": (8, 8, 8), "4x8": (4, 4, 8), "mixed": (8, 4, 8)}
"""Bits of the weights, of those of v and up, and of activations."""
MAX_ERROR = {"8x16": 2e-4, "8x8": 5e-2, "4x8": 5e-2, "mixed": 5e-2}
"""Of logits, relative: of activations that are rounded to 8 bits, some fall to the other side."""

KEPT = ("float32", "float16", *EIGHT_BITS)
"""How pages hold numbers."""
PAGES = ("keys", "key_scales", "values", "value_scales")
KEPT_ERROR = {"float32": 0.0, "float16": 1e-3, "int8": 2e-2, "fp8": 1e-1}
"""More than that: some numbers fall to the other side when they are put to their page."""


def as_kept(vectors: Tensor, kept: str) -> tuple[Tensor, Tensor | None]:
    """Numbers as pages hold them, and their scales."""
    if kept in EIGHT_BITS:
        codes, scales = EIGHT_BITS[kept].encode(vectors)
        return codes.view(EIGHT_BITS[kept].code), scales
    most = torch.finfo(getattr(torch, kept)).max
    return vectors.clamp(-most, most).to(getattr(torch, kept)), None


def empty_pages(shape: tuple[int, ...], kept: str) -> dict[str, Any]:
    keys, values = (as_kept(torch.full(shape, torch.nan), kept) for _ in range(2))
    return dict(zip(PAGES, (*keys, *values), strict=True))


def as_read(numbers: Tensor, scales: Tensor | None) -> Tensor:
    return numbers.float() if scales is None else numbers.float() * scales


@dataclass
class Pool:
    """The keys or the values of a layer."""

    numbers: Tensor
    scales: Tensor | None

    def put(self, page: int, offset: int, vectors: Tensor, kept: str) -> None:
        numbers, scales = as_kept(vectors, kept)
        self.numbers.view(torch.uint8)[page, offset] = numbers.view(torch.uint8)
        if self.scales is not None and scales is not None:
            self.scales[page, offset] = scales

    def read(self) -> Tensor:
        return as_read(self.numbers, self.scales)


def pools_of(layer: Layer) -> tuple[Pool, Pool]:
    return Pool(layer.keys, layer.key_scales), Pool(layer.values, layer.value_scales)


def with_own_pages(layer: Layer) -> Layer:
    return replace(layer, **{name: None if (it := getattr(layer, name)) is None else it.clone() for name in PAGES})


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
        kept: str = "float32",
        seed: int = 0,
    ) -> None:
        """`lengths`: keys of each sequence with the first of its new tokens, `counts`: these, one by default."""
        self.generator, self.kept = torch.Generator().manual_seed(seed), kept
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
                **empty_pages(store, kept),
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
        _, page_tokens, *shape = self.layers[0].keys.shape
        for pool in (pool for layer in self.layers for pool in pools_of(layer)):
            for pages, length in zip(self.pages, self.lengths, strict=True):
                for at in range(length - 1):
                    pool.put(pages[at // page_tokens], at % page_tokens, self.drawn(*shape), self.kept)

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
        step, layers = self.step(kernels)
        runs = [
            Run(rows=n, keys=self.lengths[i], pages=self.pages[i], wanted=n if wanted is None else min(wanted, n))
            for i in sequences
            for n in (self.counts[i],)
        ]
        rows = [row for i in sequences for row in range(len(self.x))[self.rows(i)]]
        found = step(self.x[rows], self.cos[rows], self.sin[rows], runs, threads=threads)
        return found, [pool.read() for each in layers for pool in pools_of(each)]

    def in_pieces(self, kernels: Native, pieces: list[int], threads: int) -> tuple[Tensor, list[Tensor]]:
        """The same of the first sequence, whose new tokens come in several calls."""
        step, layers = self.step(kernels)
        found, at = [], 0
        for count in pieces:
            part = slice(at, at + count)
            run = Run(rows=count, keys=self.lengths[0] + at, pages=self.pages[0], wanted=count)
            found.append(step(self.x[part].clone(), self.cos[part], self.sin[part], [run], threads=threads))
            at += count
        return torch.cat(found), [pool.read() for each in layers for pool in pools_of(each)]

    def step(self, kernels: Native) -> tuple[DecoderStep, list[Layer]]:
        """Over pages of its own."""
        layers = [with_own_pages(each) for each in self.layers]
        return DecoderStep(kernels, replace(self.decoder, layers=layers)), layers

    def expected(self) -> tuple[Tensor, list[Tensor]]:
        """The same in torch, one token after the other."""
        layers = [with_own_pages(each) for each in self.layers]
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
                for pool, vectors in zip(pools_of(layer), (turned(k, cos, sin), v), strict=True):
                    pool.put(page, offset, vectors, self.kept)
                read = [pool.read()[pages].flatten(0, 1)[:length].transpose(0, 1) for pool in pools_of(layer)]
                grouped = turned(q, cos, sin).view(kv_heads, -1, dim)
                weights = (grouped @ read[0].transpose(1, 2) * decoder.scale).softmax(-1)
                x = x + linear(layer.o, (weights @ read[1]).flatten())
                h = norm(x, layer.inner_norm)
                x = x + linear(layer.down, functional.silu(linear(layer.gate, h)) * linear(layer.up, h))
            found.append(linear(decoder.head, norm(x, decoder.norm)))
        return torch.stack(found), [pool.read() for each in layers for pool in pools_of(each)]


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return functional.rms_norm(x, weight.shape, weight, 1e-5)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def restored(matrix: Matrix) -> Tensor:
    values, scales = from_tiles(matrix.values, matrix.scales, torch.arange(matrix.out_features))
    return (values.view(*scales.shape, GROUP) * scales.float()[..., None]).view(values.shape)


def max_error(case: Case) -> float:
    return MAX_ERROR[case.form] + KEPT_ERROR[case.kept]


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())
