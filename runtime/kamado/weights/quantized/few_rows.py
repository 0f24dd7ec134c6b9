"""Products of few rows on a GPU, by the kernels that read weights as they are stored."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from ...kernels.gpu import has_kernels
from ...memory.shortage import is_shortage

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_FLOATS_FROM = (8, 9)
"""Compute capability: GPUs before do not know 8-bit floats."""
_failed: set[tuple[torch.device, torch.dtype, torch.dtype, int]] = set()
"""Of which a product could not be made."""


def product(x: Tensor, values: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor | None:
    """`x` (..., in) times the transposed matrix `scale * values` of 8- or 4-bit `values`, see
    `kamado.kernels.gpu.products.product`. None where there is no such kernel, or too much for it."""
    if x.device.type != "cuda" or not has_kernels(x.device):
        return None
    from ...kernels.gpu.products import MAX_ROWS

    columns = x.shape[-1]
    rows = x.numel() // max(columns, 1)
    group = columns // scale.shape[1]
    kind = x.device, x.dtype, values.dtype, 0 if group == columns else group
    if not 0 < rows <= MAX_ROWS or kind in _failed or not can_multiply(*kind):
        return None
    try:
        return _product(x.reshape(rows, columns), values, scale, bias).view(*x.shape[:-1], scale.shape[0])
    except Exception as error:  # whatever compilers raise, of larger sizes than were tried
        if is_shortage(error):
            raise
        _failed.add(kind)
        return None


@cache
def can_multiply(device: torch.device, dtype: torch.dtype, form: torch.dtype, group: int) -> bool:
    """Whether the kernels run on the device for rows of `dtype`, values of `form` and groups of that size (0: whole
    rows), and their products come out as they should."""
    from ...kernels.gpu.products import fits

    is_float = form == torch.float8_e4m3fn
    capable = device.type != "cuda" or torch.cuda.get_device_capability(device) >= _FLOATS_FROM
    if dtype not in _DTYPES or (is_float and not capable) or not fits(group or 1024, 1024):
        return False
    generator = torch.Generator("cpu").manual_seed(0)
    columns = 1024 + 256
    whole = torch.randint(-8, 8, (24, columns), generator=generator, dtype=torch.int8, device="cpu")
    values = whole
    if is_float:
        values = whole.float().to(form)
    elif form == torch.uint8:
        raised = (whole + 8).to(torch.uint8)
        values = raised[:, 0::2] | (raised[:, 1::2] << 4)
    scale = torch.rand((24, columns // (group or columns)), generator=generator, dtype=torch.float32, device="cpu")
    weight = (whole.view(24, scale.shape[1], -1) * scale.unsqueeze(-1)).view(24, columns)
    for rows in (1, 3, 40):
        x = torch.randn((rows, columns), generator=generator, dtype=torch.float32, device="cpu").to(dtype)
        wanted = functional.linear(x.float(), weight)
        try:
            found = _product(x.to(device), values.to(device), scale.to(device), None)
        except Exception:  # noqa: BLE001 - whatever compilers raise; there is another way
            return False
        if not float((found.float().cpu() - wanted).norm() / wanted.norm()) < 0.02:
            return False
    return True


def _product(x: Tensor, values: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    from ...kernels.gpu import products

    made: Tensor = products.product(x if x.stride(-1) == 1 else x.contiguous(), values, scale, bias)
    return made
