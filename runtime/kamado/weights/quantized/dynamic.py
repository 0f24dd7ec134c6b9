"""8-bit integers that meet activations rounded to 8-bit integers, each row for itself; products of integers are exact.

Method of the outliers: Dettmers, Lewis, Belkada, Zettlemoyer, "LLM.int8()" (2022), section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...kernels.tiles import rounded
from .integers import Integers, quantize_integers, round_to
from .packed import PIECE_VALUES, scaled

OUTLIER = 6.0
"""Activations from this magnitude on keep their precision, under LLM.int8."""
MOST_COLUMNS = 1 << 17
"""Sums of that many products of 8-bit integers fit into 32 bits, whatever they are."""
_EXACT_COLUMNS = 1024
"""... into the 24 bits that float32 has."""
_FEW_ROWS, _LARGE = 4, 1 << 20
"""Products with a matrix of so many values lay it out anew for each call, but for one row: so few are faster singly."""
_GPU_ROWS = 32
"""CUDA's product of integers takes no fewer than 17 rows, and sizes that are whole multiples of 8."""


class DynamicIntegers(Integers):
    """8-bit integers, a scale for each row or for each group of one; see `Integers`. Activations are rounded, each row
    or group for itself. `outlier`, of those with a scale a row: activations of this magnitude or more are not rounded,
    but multiplied in full precision; 0: all are rounded."""

    form = "dynamic-integers"

    def __init__(
        self, shape: tuple[int, int], parts: Mapping[str, Tensor], *, bits: int = 8, outlier: float = 0.0
    ) -> None:
        super().__init__(shape, parts, bits=bits)
        assert bits == 8 and "order" not in self.parts and "offset" not in self.parts
        assert not outlier or self.group_size == shape[1]
        self.outlier = outlier

    @property
    def settings(self) -> Mapping[str, Any]:
        """See Packed."""
        return {"outlier": self.outlier}

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """See Packed."""
        if self.group_size < self.shape[1]:
            return super().linear(rounded(x, 8, self.group_size).to(x.dtype), bias)
        rows = x.reshape(-1, self.shape[1])
        full = rows.float()
        outliers = full.abs() >= self.outlier if self.outlier else None
        usual = full if outliers is None else full.masked_fill(outliers, 0.0)
        row_scale = usual.abs().amax(-1, keepdim=True) / 127
        result = integer_product(round_to(usual, row_scale), self.parts["values"]).float()
        result.mul_(row_scale).mul_(self.parts["scale"].view(1, -1))
        if outliers is not None and bool(outliers.any()):
            result += self._outlying(full, outliers)
        if bias is not None:
            result += bias
        return result.to(x.dtype).view(*x.shape[:-1], self.shape[0])

    def _outlying(self, x: Tensor, outliers: Tensor) -> Tensor:
        """What the outliers add: float32 (rows, out). Columns without one are left out."""
        columns = outliers.any(0).nonzero().view(-1)
        kept = x.masked_fill(~outliers, 0.0)[:, columns]
        weight = scaled(self.parts["values"][:, columns].unsqueeze(1), self.parts["scale"], torch.float32)
        return functional.linear(kept, weight.squeeze(1))


def quantize_dynamic(weight: Tensor, *, group_size: int = 0, outlier: float = 0.0) -> Integers:
    """Round `weight` (out, in) as `quantize_integers` does, with a float32 scale a row, or a float16 scale for each
    `group_size` values of one. For more than MOST_COLUMNS columns and a scale a row the result leaves activations as
    they are."""
    scale_dtype = torch.float16 if group_size else torch.float32
    made = quantize_integers(weight, bits=8, group_size=group_size, scale_dtype=scale_dtype)
    if weight.shape[1] > MOST_COLUMNS and not group_size:
        return made
    return DynamicIntegers(made.shape, made.parts, outlier=outlier)


def integer_product(left: Tensor, right: Tensor) -> Tensor:
    """int8 (rows, in) times int8 (out, in), transposed: the exact sums, int32 (rows, out). All magnitudes up to 127."""
    rows, (out, columns) = len(left), right.shape
    # oneDNN reads a single column with wrong strides, up to torch 2.13 at least.
    if not rows or columns == 1 or not can_multiply(left.device):
        return _float_product(left, right)
    if left.device.type == "cpu":
        if rows <= _FEW_ROWS and out * columns >= _LARGE:
            return torch.cat([torch._int_mm(row, right.t()) for row in left.split(1)])
        return torch._int_mm(left, right.t())
    if out % 8 or columns % 8:
        return _float_product(left, right)
    if rows < _GPU_ROWS:
        left = functional.pad(left, (0, 0, 0, _GPU_ROWS - rows))
    return torch._int_mm(left, right.t())[:rows]


@cache
def can_multiply(device: torch.device) -> bool:
    """Whether the device has products of 8-bit integers that are exact.

    Without instructions for whole sums (VNNI), a CPU's kernels add pairs in 16 bits, and what is too large for that is
    cut off.
    """
    rows = (1, 2, 33) if device.type == "cpu" else (_GPU_ROWS,)
    generator = torch.Generator("cpu").manual_seed(0)
    right = torch.randint(-127, 128, (48, 256), generator=generator, dtype=torch.int8, device="cpu")
    right[0], right[1] = 127, -127
    try:
        for number in rows:
            left = torch.randint(-127, 128, (number, 256), generator=generator, dtype=torch.int8, device="cpu")
            left[0] = 127
            found = torch._int_mm(left.to(device), right.to(device).t()).cpu()
            if not torch.equal(found, left.int() @ right.int().t()):
                return False
    except (RuntimeError, AttributeError):
        return False
    return True


def _float_product(left: Tensor, right: Tensor) -> Tensor:
    """The same, where there are no instructions for it: float32 is exact for so many columns at a time."""
    result = torch.zeros((len(left), len(right)), dtype=torch.int32, device=left.device)
    step = max(1, PIECE_VALUES["cpu" if left.device.type == "cpu" else "cuda"] // _EXACT_COLUMNS)
    for start in range(0, right.shape[1], _EXACT_COLUMNS):
        part = slice(start, start + _EXACT_COLUMNS)
        given = left[:, part].float()
        for first in range(0, len(right), step):
            piece = right[first : first + step, part].float()
            result[:, first : first + step] += functional.linear(given, piece).to(torch.int32)
    return result
