"""A whole forward of a Llama-like decoder for new tokens of some sequences, as one call of the library in C.

Shapes: R rows, H hidden, K key-value heads, D head size, V vocabulary. `source/step.c` says how threads share the work;
a row's result depends neither on their number nor on the rows of other sequences.
"""

from __future__ import annotations

import ctypes
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .native import Native
from .threads import ThreadCount
from .tiles import GROUP, PANEL

PAGE_MULTIPLE = 8
"""Tokens of a page are a multiple of that."""
KEPT = (torch.float32, torch.float16, torch.int8, torch.float8_e4m3fn)
"""What pages may hold, in the order of `source/attention.h`."""
SHORT_ROWS = 64
"""Calls of more rows take all threads, whatever else runs."""


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
    """(pages, page tokens, K, D), contiguous, of one of KEPT, as `values`."""
    values: Tensor
    key_scales: Tensor | None = None
    """float32 (pages, page tokens, K, 1), contiguous, of numbers in 8 bits; None of others."""
    value_scales: Tensor | None = None
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
class Run:
    """New tokens of one sequence, one behind the other."""

    rows: int
    keys: int
    """That the first of them sees, its own with them."""
    pages: Sequence[int]
    """Of the sequence, in order."""
    wanted: int = 1
    """Of how many of the last ones the logits are wanted."""


class _Matrix(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("values", "scales", "bias")),
        *((name, ctypes.c_int32) for name in ("out", "bits", "x_bits")),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("norm", "inner_norm", "q_norm", "k_norm")),
        *((name, _Matrix) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        *((name, ctypes.c_void_p) for name in ("keys", "key_scales", "values", "value_scales")),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        ("layers", ctypes.c_void_p),
        ("norm", ctypes.c_void_p),
        ("head", _Matrix),
        *((n, ctypes.c_int32) for n in ("num_layers", "hidden", "heads", "kv_heads", "dim", "inner", "page_tokens")),
        ("kept", ctypes.c_int32),
        ("eps", ctypes.c_float),
        ("scale", ctypes.c_float),
    ]


class _Batch(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("rows", "num_runs", "table_width", "num_wanted")),
        *((name, ctypes.c_void_p) for name in ("x", "cos", "sin", "runs", "tables", "wanted", "logits")),
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
        self._threads = ThreadCount()
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
            KEPT.index(first.keys.dtype),
            decoder.eps,
            decoder.scale,
        )

    def __call__(
        self, x: Tensor, cos: Tensor, sin: Tensor, runs: Sequence[Run], *, threads: int | None = None
    ) -> Tensor:
        """Logits float32 (wanted, V), in order, of `x` float32 (R, H), the rows of the runs one behind the other, which
        are changed, at angles `cos` and `sin` float32 (R, D); the new keys and values are in the pages then. `threads`:
        by default torch's, or one where that is faster for few rows. Raises ValueError for what would be read or
        written out of bounds."""
        rows = sum(run.rows for run in runs)
        self._check_rows(x, cos, sin, rows, runs)
        logits = torch.empty((sum(run.wanted for run in runs), self.vocab_size), dtype=torch.float32)
        if not rows:
            return logits
        width = max(len(run.pages) for run in runs)
        table, tables, wanted, first = array("i"), array("i"), array("i"), 0
        for run in runs:
            table.extend((first, run.rows, run.keys))
            tables.extend(run.pages)
            tables.extend([0] * (width - len(run.pages)))
            first += run.rows
            wanted.extend(range(first - run.wanted, first))
        addresses = (numbers.buffer_info()[0] for numbers in (table, tables, wanted))
        batch = _Batch(
            rows,
            len(runs),
            width,
            len(wanted),
            x.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            *addresses,
            logits.data_ptr(),
        )
        if threads is not None or rows > SHORT_ROWS:
            self._call(batch, threads or torch.get_num_threads())
            return logits
        kind, most = rows.bit_length(), torch.get_num_threads()
        threads = self._threads.choose(kind, most)
        begin = time.perf_counter()
        self._call(batch, threads)
        self._threads.took(kind, threads, most, time.perf_counter() - begin)
        return logits

    def _call(self, batch: _Batch, threads: int) -> None:
        model, given = ctypes.addressof(self._model), ctypes.addressof(batch)
        space = torch.empty(self._space(model, given, threads), dtype=torch.uint8)
        self._run(self._which, model, given, space.data_ptr(), threads)

    def _check_rows(self, x: Tensor, cos: Tensor, sin: Tensor, rows: int, runs: Sequence[Run]) -> None:
        for tensor, width in ((x, self.hidden), (cos, self.dim), (sin, self.dim)):
            if not _is_plain(tensor, (rows, width)):
                raise ValueError(f"contiguous float32 ({rows}, {width}) is wanted, and {_brief(tensor)} was given")
        for run in runs:
            if run.rows < 1 or not 0 <= run.wanted <= run.rows:
                raise ValueError(f"logits of {run.wanted} of {run.rows} rows")
            keys = run.keys + run.rows - 1
            if run.keys < 1 or keys > len(run.pages) * self.page_tokens:
                raise ValueError(f"keys {run.keys} to {keys} are not in {len(run.pages)} pages of {self.page_tokens}")
            if min(run.pages) < 0 or max(run.pages) >= self.num_pages:
                raise ValueError(
                    f"pages {min(run.pages)} to {max(run.pages)} are not within the {self.num_pages} there are"
                )


def _layer(layer: Layer) -> _Layer:
    return _Layer(
        *map(_address, (layer.norm, layer.inner_norm, layer.q_norm, layer.k_norm)),
        *map(_matrix, layer.matrices),
        *map(_address, (layer.keys, layer.key_scales, layer.values, layer.value_scales)),
    )


def _matrix(matrix: Matrix) -> _Matrix:
    return _Matrix(
        *map(_address, (matrix.values, matrix.scales, matrix.bias)),
        matrix.out_features,
        matrix.bits,
        matrix.activation_bits,
    )


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


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
        ):
            _check_plain(tensor, wanted)
        for numbers, scales in ((layer.keys, layer.key_scales), (layer.values, layer.value_scales)):
            _check_kept(numbers, scales, like=first.keys)
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


def _check_kept(numbers: Tensor, scales: Tensor | None, *, like: Tensor) -> None:
    if like.dtype not in KEPT:
        raise ValueError(f"pages of {like.dtype} are wanted nowhere")
    if not _is_plain(numbers, tuple(like.shape), like.dtype):
        raise ValueError(f"contiguous {like.dtype} {tuple(like.shape)} is wanted, and {_brief(numbers)} was given")
    if (scales is None) == (numbers.dtype.itemsize == 1):
        raise ValueError(f"scales are wanted beside {_brief(numbers)} exactly where it has 8 bits")
    _check_plain(scales, (*like.shape[:3], 1))


def _check_plain(tensor: Tensor | None, shape: tuple[int, ...]) -> None:
    if tensor is not None and not _is_plain(tensor, shape):
        raise ValueError(f"contiguous float32 {shape} is wanted, and {_brief(tensor)} was given")


def _is_plain(tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> bool:
    return (
        tuple(tensor.shape) == shape
        and tensor.dtype == dtype
        and tensor.device.type == "cpu"
        and tensor.is_contiguous()
    )


def _brief(tensor: Any) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"
