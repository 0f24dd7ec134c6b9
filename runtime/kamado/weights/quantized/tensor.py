"""A tensor that is a quantized matrix: libraries see a weight of the compute precision, products use what is there.

`F.linear`, `F.embedding`, products with the transposed matrix and with stacks of matrices work on the packed form, and
so does what libraries do to stack and join weights. Any other operation gets the matrix in full precision, made for it:
slower, never wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from .packed import Packed
from .pieces import Pieces, Plain, joined

_aten = torch.ops.aten
_SAME = {_aten.detach.default, _aten.alias.default, _aten.clone.default, _aten.contiguous.default}


class QuantTensor(torch.Tensor):
    """(out, in), or a convolution's (out, in, height, width), or a stack of matrices (experts, out, in), of a compute
    precision; `turned` ones have the last two dimensions in the other order. Never requires a gradient."""

    packed: Packed
    """The matrix (out, all the rest); of a stack a Pieces of its matrices."""
    turned: bool

    @staticmethod
    def __new__(
        cls, packed: Packed, dtype: torch.dtype, shape: Sequence[int] | None = None, *, turned: bool = False
    ) -> QuantTensor:
        size = tuple(shape or (packed.shape[::-1] if turned else packed.shape))
        made: QuantTensor = torch.Tensor._make_wrapper_subclass(cls, size, dtype=dtype, device=packed.device)
        made.packed = packed
        made.turned = turned
        return made

    def __init__(
        self, packed: Packed, dtype: torch.dtype, shape: Sequence[int] | None = None, *, turned: bool = False
    ) -> None:
        super().__init__()
        assert self.ndim != 3 or (isinstance(packed, Pieces) and len(packed.pieces) == self.shape[0])
        assert not turned or self.ndim in (2, 3)

    def dequantize(self) -> Tensor:
        """The weight in full precision."""
        full = self.packed.dequantize(self.dtype)
        if self.turned:
            return full.view(*self.shape[:-2], self.shape[-1], self.shape[-2]).transpose(-1, -2)
        return full.view(self.shape)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        handler = _HANDLERS.get(func)
        if handler is None and getattr(func, "__name__", "") == _LIBRARY_GROUPED:
            handler = _grouped
        if handler is not None:
            found = handler(*args, **kwargs)
            if found is not None:
                return found
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's annotations leave the class out
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():
            if func.is_view:
                # torch looks at a view as if it were of the tensor itself, which is no tensor of inference mode.
                with torch.inference_mode(False), torch.no_grad():
                    return cls._computed(func, args, kwargs)
            # What is made of other operations comes here before torch has taken it apart.
            found = func.decompose(*args, **kwargs)
            if found is not NotImplemented:
                return found
        return cls._computed(func, args, kwargs)

    @classmethod
    def _computed(cls, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if args and isinstance(args[0], cls):
            source = args[0]
            if func in _SAME:
                return cls(source.packed, source.dtype, source.shape, turned=source.turned)
            if func is _aten._to_copy.default:
                dtype, device = kwargs.get("dtype") or source.dtype, kwargs.get("device") or source.device
                if dtype.is_floating_point:
                    return cls(source.packed.to(device), dtype, source.shape, turned=source.turned)
            if func._schema.is_mutable:
                raise RuntimeError(f"{func} would change a quantized weight, which cannot be changed")
        plain = pytree.tree_map(lambda leaf: leaf.dequantize() if isinstance(leaf, cls) else leaf, (args, kwargs))
        return func(*plain[0], **plain[1])

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]  # torch's annotation asks for Any
        return f"QuantTensor({self.packed.form}, {list(self.shape)}, {self.dtype})"


def stack_of(matrices: Sequence[Packed], dtype: torch.dtype, *, turned: bool = False) -> QuantTensor:
    """Matrices (out, in) of one shape as (experts, out, in), or (experts, in, out) where `turned`."""
    shape = matrices[0].shape[::-1] if turned else matrices[0].shape
    return QuantTensor(Pieces(matrices), dtype, (len(matrices), *shape), turned=turned)


def _linear(input: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:
    if isinstance(input, QuantTensor) or not isinstance(weight, QuantTensor) or weight.turned or weight.ndim != 2:
        return functional.linear(_plain(input), _plain(weight), _plain(bias))
    return weight.packed.linear(input, _plain(bias))


def _embedding(
    input: Tensor,
    weight: Any = None,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    *_: Any,
    **__: Any,
) -> Tensor | None:
    if not isinstance(weight, QuantTensor) or max_norm is not None or weight.turned or weight.ndim != 2:
        return None
    found = weight.packed.rows(input.reshape(-1), weight.dtype)
    return found.view(*input.shape, weight.shape[1])


def _transpose(input: Any = None, dim0: int = 0, dim1: int = 0, **unknown: Any) -> QuantTensor | None:
    weight = input
    if (
        unknown
        or not isinstance(weight, QuantTensor)
        or weight.ndim not in (2, 3)
        or {dim0 % weight.ndim, dim1 % weight.ndim} != {weight.ndim - 2, weight.ndim - 1}
    ):
        return None
    *stack, rows, columns = weight.shape
    return QuantTensor(weight.packed, weight.dtype, (*stack, columns, rows), turned=not weight.turned)


def _turn(input: Any, *_: Any) -> QuantTensor | None:
    return _transpose(input, -2, -1) if input.ndim == 2 else None


def _turn_last(input: Any, *_: Any) -> QuantTensor | None:
    return _transpose(input, -2, -1)


def _item(weight: Any, index: Any) -> Tensor | None:
    """A matrix of a stack by its number, or several of them, in full precision, by a list of numbers."""
    if not isinstance(weight, QuantTensor) or weight.ndim != 3 or isinstance(index, bool):
        return None
    if isinstance(index, Tensor) and not index.is_floating_point() and index.dtype not in (torch.bool, torch.uint8):
        if index.ndim == 1:
            return torch.stack([_matrix(weight, number).dequantize() for number in index.tolist()])
        index = int(index) if index.ndim == 0 else None
    return _matrix(weight, index) if isinstance(index, int) else None


def _matrix(stack: QuantTensor, number: int) -> QuantTensor:
    return QuantTensor(_matrices(stack)[number], stack.dtype, turned=stack.turned)


def _matrices(stack: QuantTensor) -> Sequence[Packed]:
    assert isinstance(stack.packed, Pieces)
    return stack.packed.pieces


def _stack(tensors: Sequence[Any], dim: int = 0, **unknown: Any) -> QuantTensor | None:
    found = _one_kind(tensors)
    if unknown or found is None or dim != 0 or found.ndim != 2:
        return None
    return stack_of([_packed(each, turned=found.turned) for each in tensors], found.dtype, turned=found.turned)


def _cat(tensors: Sequence[Any], dim: int = 0, **unknown: Any) -> QuantTensor | None:
    """Below each other. Of a stack: each matrix of one with that of the others; or all matrices of all."""
    found = _one_kind(tensors, but=dim)
    if unknown or found is None or found.ndim not in (2, 3):
        return None
    dim %= found.ndim
    if found.ndim == 3 and dim == 0 and all(isinstance(each, QuantTensor) for each in tensors):
        return stack_of([matrix for each in tensors for matrix in _matrices(each)], found.dtype, turned=found.turned)
    if dim != found.ndim - (1 if found.turned else 2):
        return None
    if found.ndim == 2:
        return QuantTensor(
            joined([_packed(each, turned=found.turned) for each in tensors]), found.dtype, turned=found.turned
        )
    groups = [[_packed(each[number], turned=found.turned) for each in tensors] for number in range(found.shape[0])]
    return stack_of([joined(group) for group in groups], found.dtype, turned=found.turned)


def _one_kind(tensors: Sequence[Any], *, but: int | None = None) -> QuantTensor | None:
    """The first that is quantized, where all lie alike and are of one shape, `but` for one dimension."""
    found = next((each for each in tensors if isinstance(each, QuantTensor)), None)
    if found is None or not all(isinstance(each, Tensor) and each.ndim == found.ndim for each in tensors):
        return None
    skipped = None if but is None else but % found.ndim
    wanted = [size for dim, size in enumerate(found.shape) if dim != skipped]
    for each in tensors:
        if each.dtype != found.dtype or [size for dim, size in enumerate(each.shape) if dim != skipped] != wanted:
            return None
        if isinstance(each, QuantTensor) and each.turned != found.turned:
            return None
    return found


def _packed(matrix: Tensor, *, turned: bool) -> Packed:
    if isinstance(matrix, QuantTensor):
        return matrix.packed
    values = (matrix.t() if turned else matrix).contiguous()
    return Plain((values.shape[0], values.shape[1]), {"values": values})


def _product(input: Any = None, other: Any = None, **unknown: Any) -> Tensor | None:
    """`input` times a transposed matrix, or times a stack of such, one for one."""
    left, right = input, other
    if unknown or isinstance(left, QuantTensor) or not isinstance(right, QuantTensor) or not right.turned:
        return None
    if right.ndim == 2:
        return right.packed.linear(left) if left.ndim else None
    if left.ndim != 3 or len(left) != len(right):
        return None
    return torch.stack([matrix.linear(x) for matrix, x in zip(_matrices(right), left, strict=True)])


def _grouped(
    input: Any,
    weight: Any,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor | None:
    """Rows up to `offs[0]` times the first transposed matrix of a stack, those up to `offs[1]` times the second..."""
    fits = isinstance(weight, QuantTensor) and weight.turned and weight.ndim == 3 and isinstance(input, Tensor)
    if not fits or isinstance(input, QuantTensor) or input.ndim != 2 or offs is None or bias is not None:
        return None
    if out_dtype not in (None, input.dtype):
        return None
    result: Tensor = input.new_zeros((len(input), weight.shape[2]))
    start = 0
    for matrix, end in zip(_matrices(weight), offs.tolist(), strict=True):
        if end > start:
            result[start:end] = matrix.linear(input[start:end])
        start = end
    return result


_Tensor: Any = torch.Tensor  # torch's annotations do not know what properties are on the class
_LIBRARY_GROUPED = "grouped_mm_fallback"
"""transformers' own, for devices and versions of torch that have none. Registered when its module is imported."""
_HANDLERS: Mapping[Any, Callable[..., Any]] = {
    functional.linear: _linear,
    functional.embedding: _embedding,
    torch.transpose: _transpose,
    torch.Tensor.transpose: _transpose,
    torch.t: _turn,
    torch.Tensor.t: _turn,
    _Tensor.T.__get__: _turn,
    _Tensor.mT.__get__: _turn_last,
    torch.Tensor.__getitem__: _item,
    torch.stack: _stack,
    torch.cat: _cat,
    torch.mm: _product,
    torch.bmm: _product,
    torch.matmul: _product,
    torch.Tensor.mm: _product,
    torch.Tensor.bmm: _product,
    torch.Tensor.matmul: _product,
    torch.Tensor.__matmul__: _product,
    torch._grouped_mm: _grouped,
    functional.grouped_mm: _grouped,
}
"""What works on the packed form. One that returns None leaves it to the operation itself."""


def _plain(value: Any) -> Any:
    return value.dequantize() if isinstance(value, QuantTensor) else value


def held_bytes(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of the memory behind tensors; what several share counts once."""
    storages: dict[int, int] = {}
    for tensor in tensors:
        if tensor is None:
            continue
        data = tensor if isinstance(tensor, QuantTensor) or not isinstance(tensor, nn.Parameter) else tensor.data
        for part in data.packed.parts.values() if isinstance(data, QuantTensor) else (data,):
            if part.device.type != "meta":
                storages[part.untyped_storage().data_ptr()] = part.untyped_storage().nbytes()
    return sum(storages.values())


def as_parameter(tensor: Tensor) -> nn.Parameter:
    """Without a gradient. It is the tensor itself where that is quantized, as `nn.Parameter` would mark a copy of it:
    to copy it, torch would import its distributed tensors, which takes as long as importing torch."""
    if not isinstance(tensor, QuantTensor):
        return nn.Parameter(tensor, requires_grad=False)
    marked: Any = tensor
    marked._is_param = True
    return marked  # type: ignore[no-any-return]


def is_quantized(weight: Any) -> bool:
    """Whether a layer's weight is held in fewer bits."""
    return isinstance(weight, QuantTensor)
