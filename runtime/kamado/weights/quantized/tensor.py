"""A tensor that is a quantized matrix: libraries see a weight of the compute precision, products use what is there.

`F.linear` and `F.embedding` work on the packed form. Any other operation gets the matrix in full precision, made for
it: slower, never wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from .packed import Packed

_aten = torch.ops.aten
_SAME = {_aten.detach.default, _aten.alias.default, _aten.clone.default, _aten.contiguous.default}


class QuantTensor(torch.Tensor):
    """(out, in), or a convolution's (out, in, height, width), of a compute precision. Never requires a gradient."""

    packed: Packed
    """The matrix (out, all the rest)."""

    @staticmethod
    def __new__(cls, packed: Packed, dtype: torch.dtype, shape: Sequence[int] | None = None) -> QuantTensor:
        made: QuantTensor = torch.Tensor._make_wrapper_subclass(
            cls, tuple(shape or packed.shape), dtype=dtype, device=packed.device
        )
        made.packed = packed
        return made

    def __init__(self, packed: Packed, dtype: torch.dtype, shape: Sequence[int] | None = None) -> None:
        super().__init__()

    def dequantize(self) -> Tensor:
        """The weight in full precision."""
        return self.packed.dequantize(self.dtype).view(self.shape)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.linear:
            return _linear(*args, **kwargs)
        if func is functional.embedding and len(args) + len(kwargs) >= 2:
            found = _embedding(*args, **kwargs)
            if found is not None:
                return found
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's annotations leave the class out
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if args and isinstance(args[0], cls):
            source = args[0]
            if func in _SAME:
                return cls(source.packed, source.dtype, source.shape)
            if func is _aten._to_copy.default:
                dtype, device = kwargs.get("dtype") or source.dtype, kwargs.get("device") or source.device
                if dtype.is_floating_point:
                    return cls(source.packed.to(device), dtype, source.shape)
        if func._schema.is_mutable and args and isinstance(args[0], cls):
            raise RuntimeError(f"{func} would change a quantized weight, which cannot be changed")
        plain = pytree.tree_map(lambda leaf: leaf.dequantize() if isinstance(leaf, cls) else leaf, (args, kwargs))
        return func(*plain[0], **plain[1])

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]  # torch's annotation asks for Any
        return f"QuantTensor({self.packed.form}, {list(self.shape)}, {self.dtype})"


def _linear(input: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:
    if isinstance(input, QuantTensor) or not isinstance(weight, QuantTensor):
        return functional.linear(_plain(input), _plain(weight), _plain(bias))
    return weight.packed.linear(input, _plain(bias))


def _embedding(
    input: Tensor,
    weight: Any,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    *_: Any,
    **__: Any,
) -> Tensor | None:
    if not isinstance(weight, QuantTensor) or max_norm is not None:
        return None
    found = weight.packed.rows(input.reshape(-1), weight.dtype)
    return found.view(*input.shape, weight.shape[1])


def _plain(value: Any) -> Any:
    return value.dequantize() if isinstance(value, QuantTensor) else value


def held_bytes(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of the memory behind tensors; what several share counts once."""
    storages: dict[int, int] = {}
    for tensor in tensors:
        if tensor is None:
            continue
        data = tensor.data if isinstance(tensor, nn.Parameter) else tensor
        for part in data.packed.parts.values() if isinstance(data, QuantTensor) else (data,):
            if part.device.type != "meta":
                storages[part.untyped_storage().data_ptr()] = part.untyped_storage().nbytes()
    return sum(storages.values())


def is_quantized(weight: Any) -> bool:
    """Whether a layer's weight is held in fewer bits."""
    return isinstance(weight, QuantTensor)
