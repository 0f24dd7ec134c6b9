"""8-bit floats (e4m3: 4 bits of exponent, 3 of mantissa, no infinities), a scale for each group of a row."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from . import few_rows
from .lookup import float8_values
from .packed import Packed, scaled

LARGEST = 448.0
"""Of e4m3."""
_MULTIPLE = 16
"""GPU products of 8-bit floats take sizes that are whole multiples of this."""
_PIECE_VALUES = 1 << 22
"""Values that are quantized at once: bounds the temporaries."""


class Floats(Packed):
    """`weight = scale * value`.

    Parts: `values`, float8_e4m3fn (out, in); `scale`, float32 (out, in / group). Scales of a whole matrix or of blocks
    of rows are repeated for each row.
    """

    form = "floats"

    def rows(self, index: slice | Tensor, dtype: torch.dtype) -> Tensor:
        """See Packed."""
        # As bytes, since not every operation knows the 8-bit floats.
        values = self.parts["values"].view(torch.uint8)[index].view(torch.float8_e4m3fn)
        scale = self.parts["scale"][index]
        group = self.shape[1] // self.parts["scale"].shape[1]
        return scaled(float8_values(values).view(*scale.shape, group), scale, dtype).view(values.shape)

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """See Packed. Few rows meet the numbers as they are stored, on a GPU."""
        found = few_rows.product(x, self.parts["values"], self.parts["scale"], bias)
        return super().linear(x, bias) if found is None else found


class DynamicFloats(Floats):
    """8-bit floats with one scale a row, for GPUs that compute in them: activations are rounded too, each row for
    itself. Where there is no such product, the same numbers are multiplied in full precision."""

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """See Packed."""
        in_floats = x.numel() > 0 and self.computes_in_floats(x.device)
        by_rows = in_floats and can_scale_rows(x.device)
        values, scale = self.parts["values"], self.parts["scale"]
        return dynamic_product(x, values, scale, bias, in_floats=in_floats, by_rows=by_rows)

    def computes_in_floats(self, device: torch.device) -> bool:
        """Whether the device has a product for this matrix."""
        return not (self.shape[0] % _MULTIPLE or self.shape[1] % _MULTIPLE) and can_multiply(device)


def dynamic_product(
    x: Tensor, values: Tensor, scale: Tensor, bias: Tensor | None, *, in_floats: bool, by_rows: bool
) -> Tensor:
    """`x` (..., in), each row rounded to e4m3, times the transposed matrix `scale * values` (out, in). `in_floats`: the
    device multiplies these numbers; `by_rows`: and takes the scales on the way. torch's compiler can look into this."""
    flat = x.reshape(-1, values.shape[1])
    rounded, row_scale = round_rows(flat)
    if in_floats and by_rows and x.dtype == torch.bfloat16:
        product: Tensor = torch._scaled_mm(rounded, values.t(), row_scale, scale.view(1, -1), out_dtype=torch.bfloat16)
    else:
        if in_floats:
            product = _product(rounded, values)
        else:
            product = torch.nn.functional.linear(rounded.float(), float8_values(values))
        product = product.mul_(row_scale).mul_(scale.view(1, -1))
    if bias is not None:
        product += bias
    return product.to(x.dtype).view(*x.shape[:-1], values.shape[0])


def quantize_floats(weight: Tensor, *, group_size: int, dynamic: bool = False) -> Floats:
    """Round `weight` (out, in) to e4m3, with a scale for each `group_size` values of a row (0: the row): the largest
    magnitude of a group becomes 448. A group with NaN or an infinity becomes NaN as a whole.

    `dynamic`: one that rounds activations too; for whole rows only.
    """
    rows, columns = weight.shape
    group = group_size or columns
    scale = torch.empty((rows, columns // group), dtype=torch.float32, device=weight.device)
    values = torch.empty((rows, columns), dtype=torch.float8_e4m3fn, device=weight.device)
    step = max(1, _PIECE_VALUES // columns)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        piece = weight[part].float().view(-1, columns // group, group)
        scale[part] = piece.abs().amax(-1) / LARGEST
        values[part] = _rounded(piece, scale[part].unsqueeze(-1)).view(-1, columns)
    kind = DynamicFloats if dynamic and group == columns else Floats
    return kind((rows, columns), {"values": values, "scale": scale})


def round_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Activations (rows, in) -> e4m3 of that shape and float32 scales (rows, 1), each row by its largest magnitude."""
    full = x.float()
    scale = full.abs().amax(-1, keepdim=True) / LARGEST
    return _rounded(full, scale), scale


@cache
def can_multiply(device: torch.device) -> bool:
    """Whether the device has products of 8-bit floats, and they come out as they should."""
    if device.type != "cuda" or torch.version.cuda is None or torch.cuda.get_device_capability(device) < (8, 9):
        return False
    generator = torch.Generator("cpu").manual_seed(0)
    left = torch.randn((3, 64), generator=generator, dtype=torch.float32, device="cpu").to(device, torch.float8_e4m3fn)
    right = torch.randn((32, 64), generator=generator, dtype=torch.float32, device="cpu").to(
        device, torch.float8_e4m3fn
    )
    wanted = left.double() @ right.double().t()
    try:
        return bool(torch.allclose(_product(left, right).double(), wanted, rtol=0.0, atol=0.05))
    except RuntimeError:
        return False


@cache
def can_scale_rows(device: torch.device) -> bool:
    """Whether its products take a scale for each row of both, and come out as they should in bfloat16."""
    if not can_multiply(device):
        return False
    generator = torch.Generator("cpu").manual_seed(0)
    left, right = (torch.randn((n, 64), generator=generator, dtype=torch.float32, device="cpu") for n in (5, 32))
    scales = torch.rand((5, 1), generator=generator).to(device), torch.rand((1, 32), generator=generator).to(device)
    one, other = (each.to(device, torch.float8_e4m3fn) for each in (left, right))
    wanted = (one.double() @ other.double().t()) * scales[0] * scales[1]
    try:
        found = torch._scaled_mm(one, other.t(), *scales, out_dtype=torch.bfloat16)
    except RuntimeError:
        return False
    return bool(torch.allclose(found.double(), wanted, rtol=0.01, atol=0.1))


def _product(left: Tensor, right: Tensor) -> Tensor:
    """float32 (rows, out) of e4m3 (rows, in) and (out, in). With the scales left to the caller, every GPU that knows
    these numbers can do it; scales of rows and columns only some."""
    one = torch.ones((), dtype=torch.float32, device=left.device)
    product: Tensor = torch._scaled_mm(left, right.t(), one, one, out_dtype=torch.float32)
    return product


def _rounded(values: Tensor, scale: Tensor) -> Tensor:
    # Not every version of torch rounds what is too large to the largest number.
    divided = torch.where(scale == 0, 0.0, values / scale)
    return divided.clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
