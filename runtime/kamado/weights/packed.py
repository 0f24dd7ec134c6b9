"""Linear layers with weights laid out once for oneDNN's CPU kernels.

A plain float32 product lays the weight out anew in every call (or reads it in an unfavourable order), which for a few
rows costs more than the product itself. Measured on the shapes of SmolLM2, two AVX-512 cores: 1.7 times faster at
1 row, 2.1 at 8, 2.5 at 16, 1.7 at 64.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

_CHECK_SHAPE = (48, 80)
_CHECK_ROWS = (1, 7, 33)


class PackedLinear(nn.Module):
    """`nn.Linear` for inference on a CPU in float32. Takes the weight over: the linear layer is empty afterwards."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        # No parameter: its layout is opaque, so it can neither be saved nor moved.
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)

    @property
    def nbytes(self) -> int:
        """Bytes of the weight (padding of the layout left out)."""
        return 4 * self.in_features * self.out_features

    @property
    def weight(self) -> Tensor:
        """A plain copy, made now, for code that reads a layer's weight instead of calling the layer."""
        rows = torch.eye(self.in_features)
        return self.forward(rows).sub(0 if self.bias is None else self.bias).t()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return result


@cache
def can_pack() -> bool:
    """Whether the installed torch has these kernels and they compute what `linear` computes, on this CPU."""
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(_CHECK_SHAPE[1], _CHECK_SHAPE[0], device="meta").to_empty(device="cpu").requires_grad_(False)
    linear.weight.copy_(torch.randn(_CHECK_SHAPE, generator=generator))
    linear.bias.copy_(torch.randn(_CHECK_SHAPE[0], generator=generator))
    try:
        packed = PackedLinear(linear)
        inputs = [torch.randn(1, rows, _CHECK_SHAPE[1], generator=generator) for rows in _CHECK_ROWS]
        return all(torch.allclose(packed(x), linear(x), rtol=1e-4, atol=1e-4) for x in inputs)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False


def pack_linears(model: Any) -> int:
    """Replace every plain `nn.Linear` of the model (float32, on the CPU) by a packed one. Returns the bytes that are
    then held in addition: a weight that something else holds too (a tied output matrix) has two layouts."""
    if not can_pack():
        return 0
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    extra = 0
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is not nn.Linear or child.weight.dtype != torch.float32 or child.weight.device.type != "cpu":
                continue
            extra += child.weight.nbytes if owners[id(child.weight)] > 1 else 0
            setattr(module, name, PackedLinear(child))
            child.weight = None  # type: ignore[assignment]
    return extra
