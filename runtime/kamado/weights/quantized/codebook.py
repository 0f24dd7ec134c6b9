"""4-bit codes into a table of 16 numbers, a scale for each block of a row: bitsandbytes' nf4 and fp4.

Method: Dettmers, Pagnoni, Holtzman, Zettlemoyer, "QLoRA: Efficient Finetuning of Quantized LLMs" (2023), section 3.
Codes, scales and restored weights are those of bitsandbytes (0.50), bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from . import bitsandbytes_gpu
from .lookup import look_up, pairs_of_nibbles
from .packed import Packed, scaled

_NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""Quantiles of the normal distribution, scaled to [-1, 1], with an exact zero."""
_FP4 = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
"""A sign, two bits of exponent, one of mantissa; as the codes 0 to 7 have them, in twelfths. 8 to 15: the same, less
than zero."""
_MXFP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The same numbers in the order of their bits, as MXFP4 has them."""
_BITSANDBYTES = frozenset({"nf4", "fp4"})
_LEAST_SCALE = 1e-38
"""What a block of zeros is divided by."""
_PIECE_VALUES = 1 << 22
"""Values that are quantized at once: bounds the temporaries."""


class Codebook(Packed):
    """`weight = scale * table[code]`.

    Parts: `values`, uint8 (out, in / 2), the even column in the high half; `scale`, float32 or bfloat16 (out, in /
    block); `table`, float32 (16). `kind`: `nf4`, `fp4` (bitsandbytes) or `mxfp4` where it is one that `table_of` has,
    else empty.
    """

    form = "codebook"
    shared = frozenset({"table"})

    def __init__(self, shape: tuple[int, int], parts: Mapping[str, Tensor], *, kind: str = "") -> None:
        super().__init__(shape, parts)
        self.kind = kind
        self._pairs: Tensor | None = None

    @property
    def block_size(self) -> int:
        """Values of a row that share a scale."""
        return self.shape[1] // self.parts["scale"].shape[1]

    def rows(self, index: slice | Tensor, dtype: torch.dtype) -> Tensor:
        """See Packed."""
        values, scale = self.parts["values"][index], self.parts["scale"][index]
        numbers = look_up(values, self._table_of_pairs())
        return scaled(numbers.view(*scale.shape, self.block_size), scale, dtype).view(numbers.shape)

    @property
    def settings(self) -> Mapping[str, Any]:
        """See Packed."""
        return {"kind": self.kind}

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """See Packed."""
        if self.kind in _BITSANDBYTES and x.numel() and bitsandbytes_gpu.can_multiply(x.device, x.dtype, self.kind):
            return bitsandbytes_gpu.linear(x, self, bias)
        return super().linear(x, bias)

    def _table_of_pairs(self) -> Tensor:
        if self.kind:
            return _kind_pairs(self.kind, self.device)
        if self._pairs is None:
            self._pairs = pairs_of_nibbles(self.parts["table"], high_first=True)
        return self._pairs


def quantize_codebook(weight: Tensor, *, kind: str, block_size: int) -> Codebook:
    """Round `weight` (out, in) to the nearest of the numbers of `kind` (`nf4`, `fp4`) times the largest magnitude of
    each `block_size` values of a row. A block with NaN or an infinity has no number left afterwards."""
    rows, columns = weight.shape
    bounds, order = _bounds(kind, weight.device)
    scale = torch.empty((rows, columns // block_size), dtype=torch.float32, device=weight.device)
    values = torch.empty((rows, columns // 2), dtype=torch.uint8, device=weight.device)
    step = max(1, _PIECE_VALUES // columns)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        piece = weight[part].float().view(-1, columns // block_size, block_size)
        largest = piece.abs().amax(-1)
        scale[part] = largest
        portion = piece * (1.0 / largest.clamp(min=_LEAST_SCALE)).unsqueeze(-1)
        places = torch.bucketize(portion.clamp_(-1.0, 1.0).view(-1, columns), bounds, out_int32=True)
        codes = order[places]
        values[part] = (codes[:, 0::2] << 4) | codes[:, 1::2]
    parts = {"values": values, "scale": scale, "table": table_of(kind, weight.device)}
    return Codebook((rows, columns), parts, kind=kind)


@cache
def table_of(kind: str, device: torch.device) -> Tensor:
    """The numbers that the codes 0 to 15 stand for: float32 (16), the largest magnitude 1, of MXFP4 6. One tensor for
    all."""
    if kind == "mxfp4":
        return torch.tensor([*_MXFP4, *(-each for each in _MXFP4)], dtype=torch.float32, device=device)
    if kind == "nf4":
        return torch.tensor(_NF4, dtype=torch.float32, device=device)
    numbers = torch.tensor([*_FP4, *(-each for each in _FP4)], dtype=torch.float32, device=device)
    return numbers / numbers.abs().max()


@cache
def _kind_pairs(kind: str, device: torch.device) -> Tensor:
    return pairs_of_nibbles(table_of(kind, device), high_first=True)


@cache
def _bounds(kind: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """The middles between neighbouring numbers, and the codes in the order of the numbers (uint8)."""
    table = table_of(kind, torch.device("cpu"))
    order = torch.argsort(table)
    middles = (table[order[:-1]] + table[order[1:]]) / 2
    return middles.to(device), order.to(torch.uint8).to(device)
