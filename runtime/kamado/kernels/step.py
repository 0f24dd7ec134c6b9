"""A whole forward of a Llama-like decoder for a few new tokens of some sequences, as one call of the library in C.

Shapes: R rows, H hidden, K key-value heads, D head size, V vocabulary. `source/step.c` says how threads share the work;
a row's result depends neither on their number nor on the rows of other sequences.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .native import Native
from .tiles import GROUP, PANEL

PAGE_MULTIPLE = 8
"""Tokens of a page are a multiple of that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A linear layer in the layout of `to_tiles`."""

    values: Tensor
    scales: Tensor
    out_features: int
    in_features: int
    bits: int
    """Of the weights: 8 or 4."""
    activation_bits: int
    bias: Tensor | None = None
    """float32 (out)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Attention and a gated perceptron, each behind a root mean square norm and added to its input."""

    norm: Tensor
    inner_norm: Tensor
    q: Matrix
    k: Matrix
    v: Matrix
    o: Matrix
    gate: Matrix
    up: Matrix
    down: Matrix
    keys: Tensor
    """float32 (pages, page tokens, K, D), contiguous, as `values`."""
    values: Tensor
    q_norm: Tensor | None = None
    """float32 (D): of each head, before it turns."""
    k_norm: Tensor | None = None

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        return (self.q, self.k, self.v, self.o, self.gate, self.up, self.down)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """All of a model but its token table."""

    layers: Sequence[Layer]
    norm: Tensor
    head: Matrix
    heads: int
    eps: float
    """Of all norms."""
    scale: float
    """What products of queries and keys are multiplied with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Where the rows of a step are: of each, pages in order, and keys with the new one, whose place is the last."""

    pages: Sequence[Sequence[int]]
    lengths: Sequence[int]
    linked: bool = False
    """Whether some are of one sequence, with lengths one above the other, and see each other's keys."""


class _Matrix(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("values", "scales", "bias")),
        *((name, ctypes.c_int32) for name in ("out", "bits", "x_bits")),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("norm", "inner_norm", "q_norm", "k_norm")),
        *((name, _Matrix) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        ("layers", ctypes.c_void_p),
        ("norm", ctypes.c_void_p),
        ("head", _Matrix),
        *((n, ctypes.c_int32) for n in ("num_layers", "hidden", "heads", "kv_heads", "dim", "inner", "page_tokens")),
        ("eps", ctypes.c_float),
        ("scale", ctypes.c_float),
    ]


class DecoderStep:
    """A decoder, ready to be run. It holds the tensors of `decoder`; they must stay where they are."""

    def __init__(self, kernels: Native, decoder: Decoder) -> None:
        """Raises ValueError for sizes that do not fit each other or the library, or where the library has no steps."""
        found = kernels.step_functions()
        if found is None:
            raise ValueError(f"the kernels ({kernels.name}) have no steps for this CPU")
        self._which, self._space, self._run = found
        _check(decoder)
        self._decoder = decoder
        first = decoder.layers[0]
        pages, page_tokens, kv_heads, dim = first.keys.shape
        self.num_pages, self.page_tokens, self.dim = pages, page_tokens, dim
        self.hidden, self.vocab_size = first.q.in_features, decoder.head.out_features
        self._layers = (_Layer * len(decoder.layers))(*map(_layer, decoder.layers))
        self._model = _Model(
            ctypes.addressof(self._layers),
            decoder.norm.data_ptr(),
            _matrix(decoder.head),
            len(decoder.layers),
            self.hidden,
            decoder.heads,
            kv_heads,
            dim,
            first.gate.out_features,
            page_tokens,
            decoder.eps,
            decoder.scale,
        )

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, rows: Rows, *, threads: int | None = None) -> Tensor:
        """Logits float32 (R, V) of `x` float32 (R, H), which is changed, at angles `cos` and `sin` float32 (R, D); the
        new keys and values are in the pages then. `threads`: torch's by default. Raises ValueError for what would be
        read or written out of bounds."""
        count = len(rows.lengths)
        self._check_rows(x, cos, sin, rows)
        logits = torch.empty((count, self.vocab_size), dtype=torch.float32)
        if not count:
            return logits
        width, longest = max(map(len, rows.pages)), max(rows.lengths)
        tables, slots = array("i"), array("i")
        for pages, length in zip(rows.pages, rows.lengths, strict=True):
            tables.extend(pages)
            tables.extend([0] * (width - len(pages)))
            last = length - 1
            slots.append(pages[last // self.page_tokens] * self.page_tokens + last % self.page_tokens)
        lengths = array("i", rows.lengths)
        threads = torch.get_num_threads() if threads is None else threads
        model = ctypes.addressof(self._model)
        space = torch.empty(self._space(model, count, longest, threads), dtype=torch.uint8)
        self._run(
            self._which,
            model,
            count,
            x.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            *(numbers.buffer_info()[0] for numbers in (lengths, slots, tables)),
            width,
            longest,
            rows.linked,
            logits.data_ptr(),
            space.data_ptr(),
            threads,
        )
        return logits

    def _check_rows(self, x: Tensor, cos: Tensor, sin: Tensor, rows: Rows) -> None:
        count = len(rows.lengths)
        for tensor, width in ((x, self.hidden), (cos, self.dim), (sin, self.dim)):
            if not _is_plain(tensor, (count, width)):
                raise ValueError(f"contiguous float32 ({count}, {width}) is wanted, and {_brief(tensor)} was given")
        if len(rows.pages) != count:
            raise ValueError(f"{count} lengths and {len(rows.pages)} lists of pages")
        for pages, length in zip(rows.pages, rows.lengths, strict=True):
            if not 0 < length <= len(pages) * self.page_tokens:
                raise ValueError(f"{length} keys are not in {len(pages)} pages of {self.page_tokens}")
            if min(pages) < 0 or max(pages) >= self.num_pages:
                raise ValueError(f"pages {min(pages)} to {max(pages)} are not within the {self.num_pages} there are")


def _layer(layer: Layer) -> _Layer:
    return _Layer(
        layer.norm.data_ptr(),
        layer.inner_norm.data_ptr(),
        *(None if norm is None else norm.data_ptr() for norm in (layer.q_norm, layer.k_norm)),
        *map(_matrix, layer.matrices),
        layer.keys.data_ptr(),
        layer.values.data_ptr(),
    )


def _matrix(matrix: Matrix) -> _Matrix:
    bias = None if matrix.bias is None else matrix.bias.data_ptr()
    return _Matrix(
        matrix.values.data_ptr(),
        matrix.scales.data_ptr(),
        bias,
        matrix.out_features,
        matrix.bits,
        matrix.activation_bits,
    )


def _check(decoder: Decoder) -> None:
    if not decoder.layers:
        raise ValueError("a decoder without layers")
    first = decoder.layers[0]
    hidden, inner = first.q.in_features, first.gate.out_features
    _, page_tokens, kv_heads, dim = first.keys.shape
    if dim % PANEL or page_tokens % PAGE_MULTIPLE or decoder.heads % kv_heads:
        raise ValueError(f"heads {decoder.heads} and {kv_heads} of {dim}, pages of {page_tokens}: no such kernels")
    queries, kept = decoder.heads * dim, kv_heads * dim
    for layer in decoder.layers:
        shapes = {
            (hidden, queries): (layer.q,),
            (hidden, kept): (layer.k, layer.v),
            (queries, hidden): (layer.o,),
            (hidden, inner): (layer.gate, layer.up),
            (inner, hidden): (layer.down,),
        }
        for shape, matrices in shapes.items():
            for matrix in matrices:
                _check_matrix(matrix, *shape)
        if len({each.activation_bits for each in (layer.q, layer.k, layer.v)}) > 1:
            raise ValueError("q, k and v read activations of different bits")
        if layer.gate.activation_bits != layer.up.activation_bits:
            raise ValueError("gate and up read activations of different bits")
        for tensor, wanted in (
            (layer.norm, (hidden,)),
            (layer.inner_norm, (hidden,)),
            (layer.q_norm, (dim,)),
            (layer.k_norm, (dim,)),
            (layer.keys, tuple(first.keys.shape)),
            (layer.values, tuple(first.keys.shape)),
        ):
            _check_plain(tensor, wanted)
    _check_plain(decoder.norm, (hidden,))
    _check_matrix(decoder.head, hidden, decoder.head.out_features)


def _check_matrix(matrix: Matrix, columns: int, out: int) -> None:
    if (matrix.in_features, matrix.out_features) != (columns, out):
        raise ValueError(f"({matrix.out_features}, {matrix.in_features}) in place of a matrix ({out}, {columns})")
    if (matrix.bits, matrix.activation_bits) not in ((8, 8), (8, 16), (4, 8)):
        raise ValueError(f"no product of {matrix.bits} with {matrix.activation_bits} bits")
    panels = -(-out // PANEL)
    for tensor, size in ((matrix.values, panels * PANEL * columns * matrix.bits // 8), (matrix.scales, None)):
        wanted = panels * PANEL * columns // GROUP if size is None else size
        if columns % GROUP or tensor.numel() != wanted or not tensor.is_contiguous() or tensor.device.type != "cpu":
            raise ValueError(f"{_brief(tensor)} is not ({out}, {columns}) of {matrix.bits} bits in panels")
    _check_plain(matrix.bias, (out,))


def _check_plain(tensor: Tensor | None, shape: tuple[int, ...]) -> None:
    if tensor is not None and not _is_plain(tensor, shape):
        raise ValueError(f"contiguous float32 {shape} is wanted, and {_brief(tensor)} was given")


def _is_plain(tensor: Tensor, shape: tuple[int, ...]) -> bool:
    return (
        tuple(tensor.shape) == shape
        and tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and tensor.is_contiguous()
    )


def _brief(tensor: Any) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"
