"""Tensors of a checkpoint that are quantized as they are read, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ...quant import Quant, Scheme, stack_shape
from ..stream import ReadableTensor
from ..turns import Turns
from .forms import quantize
from .tensor import QuantTensor, stack_of


def quantizing(
    tensors: Mapping[str, ReadableTensor],
    quant: Quant,
    dtype: torch.dtype,
    device: str = "cpu",
    *,
    prefix: str = "",
    turned: bool = False,
) -> dict[str, Any]:
    """The same tensors; those for which `quant` has a form are read as QuantTensor of `dtype`, on `device`. `quant` is
    asked for names that begin with `prefix`. `turned`: stacks of experts are (experts, in, out).

    One is read at a time, so beside what is finished there is never more than one tensor in full precision.
    """
    turns = Turns()

    def choice(name: str) -> Callable[[Sequence[int]], Scheme | None]:
        return lambda shape: quant.scheme_for(prefix + name, shape)

    return {
        name: _Quantizing(each, choice(name), dtype, device, turns, turned=turned) for name, each in tensors.items()
    }


class _Quantizing:
    """See ReadableTensor. Has the shape that the tensor has, if that is known before it is read."""

    def __init__(
        self,
        source: ReadableTensor,
        choose: Callable[[Sequence[int]], Scheme | None],
        dtype: torch.dtype,
        device: str,
        turns: Turns,
        *,
        turned: bool,
    ) -> None:
        self._source = source
        self._choose = choose
        self._dtype = dtype
        self._device = device
        self._turns = turns
        self._turned = turned

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def read(self) -> torch.Tensor:
        with self._turns.one(), torch.no_grad():
            weight = self._source.read()
            self._turns.add(4 * weight.numel())
            turned = self._turned and weight.ndim == 3
            shape = stack_shape(weight.shape, turned=turned)
            scheme = self._choose(shape) if weight.is_floating_point() else None
            if scheme is None:
                return weight
            if isinstance(weight, QuantTensor):  # another form was asked for than the file has
                weight = weight.dequantize()
            if weight.ndim == 3:
                matrices = (matrix.t().contiguous() if turned else matrix for matrix in weight)
                made = [quantize(matrix.to(self._device), scheme) for matrix in matrices]
                return stack_of(made, self._dtype, turned=turned)
            packed = quantize(weight.to(self._device).flatten(1), scheme)
            return QuantTensor(packed, self._dtype, weight.shape)

    def __getitem__(self, index: object) -> torch.Tensor:
        tensor = self.read()
        return tensor if index is Ellipsis else tensor[index]  # type: ignore[index]
