"""bitsandbytes' own products for its 4-bit formats, on CUDA devices. Imported there only.

Its 8-bit product is not used: it takes a column out of the integers for all rows as soon as one row has a large value
there, so that an answer would depend on who shares the batch.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from .bitsandbytes_import import import_bitsandbytes

if TYPE_CHECKING:
    from .codebook import Codebook

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def linear(x: Tensor, weight: Codebook, bias: Tensor | None) -> Tensor:
    """`x` (..., in) times the transposed matrix: (..., out). Only after `can_multiply`."""
    values = weight.parts["values"].view(-1, 1)
    scale = weight.parts["scale"].view(-1)
    bias = None if bias is None else bias.to(x.dtype)
    result: Tensor = torch.ops.bitsandbytes.gemm_4bit.default(
        x.contiguous(), values, weight.shape, scale, weight.block_size, weight.kind, bias
    )
    return result


@cache
def can_multiply(device: torch.device, dtype: torch.dtype, kind: str) -> bool:
    """Whether bitsandbytes is there for this device, and its products come out as they should."""
    if device.type != "cuda" or dtype not in _DTYPES or not import_bitsandbytes():
        return False
    from .codebook import quantize_codebook

    generator = torch.Generator("cpu").manual_seed(0)
    drawn = torch.randn((64 + 40, 128), generator=generator, dtype=torch.float32, device="cpu")
    weight = quantize_codebook(drawn[:64].to(device), kind=kind, block_size=64)
    for rows in (1, 3, 40):
        x = drawn[64 : 64 + rows].to(device, dtype)
        wanted = functional.linear(x.float(), weight.dequantize(torch.float32))
        try:
            found = linear(x, weight, None).float()
        except (RuntimeError, AttributeError, ValueError, TypeError):
            return False
        if not torch.allclose(found, wanted, rtol=0.02, atol=0.5):
            return False
    return True
