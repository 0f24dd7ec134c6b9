"""Tensors as descriptions (JSON) and parts (plain tensors that lie one behind the other), and back.

{"part": ID}                                   a plain tensor; "order": its dimensions as they lie, if not in order
{"form": F, "matrix": [out, in], "settings": {...}, "parts": {name: ID}, "dtype": D, "shape": [...]}
{"form": "pieces", "pieces": [...], ...}       matrices below each other
{"same": NAME}                                 the very tensor that is called NAME
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..quantized.codebook import Codebook
from ..quantized.dynamic import DynamicIntegers
from ..quantized.floats import DynamicFloats, Floats
from ..quantized.integers import Integers
from ..quantized.packed import Packed
from ..quantized.pieces import Pieces, Plain
from ..quantized.tensor import QuantTensor
from ..quantized.tiled import TiledIntegers
from ..stream import TORCH_DTYPES

Part = Callable[[str], Tensor]
"""A plain tensor by its ID."""

_PIECES = "pieces"
_FORMS: Mapping[str, type[Packed]] = {
    kind.__name__: kind for kind in (Codebook, DynamicFloats, DynamicIntegers, Floats, Integers, Plain, TiledIntegers)
}
_STORABLE = frozenset(TORCH_DTYPES.values())
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}


class NotKept(Exception):
    """A tensor that cannot be described."""


class Describing:
    """Describes tensors; collects what they are made of."""

    def __init__(self) -> None:
        self.parts: dict[str, Tensor] = {}
        """By ID; each is contiguous."""
        self._names: dict[int, str] = {}
        self._ids: dict[tuple[Any, ...], str] = {}
        self._storages: dict[int, tuple[Any, ...]] = {}

    def tensor(self, name: str, tensor: Tensor) -> dict[str, Any]:
        """The description of one that is called `name`. Raises NotKept."""
        if id(tensor) in self._names:
            return {"same": self._names[id(tensor)]}
        self._names[id(tensor)] = name
        data = tensor if isinstance(tensor, QuantTensor) or not isinstance(tensor, nn.Parameter) else tensor.data
        if isinstance(data, QuantTensor):
            return {
                **self._packed(data.packed),
                "dtype": str(data.dtype).removeprefix("torch."),
                "shape": list(data.shape),
                "turned": data.turned,
            }
        if data.is_contiguous():
            return self._part(data)
        strides: tuple[int, ...] = data.stride()
        order = sorted(range(data.ndim), key=lambda dim: (-strides[dim], dim))
        return {**self._part(data, order), "order": order}

    def _packed(self, packed: Packed) -> dict[str, Any]:
        matrix = {"matrix": list(packed.shape)}
        if isinstance(packed, Pieces):
            return {"form": _PIECES, "pieces": [self._packed(piece) for piece in packed.pieces], **matrix}
        if _FORMS.get(type(packed).__name__) is not type(packed):
            raise NotKept(f"the form {type(packed).__name__}")
        parts = {name: self._part(part)["part"] for name, part in packed.parts.items()}
        return {"form": type(packed).__name__, "settings": dict(packed.settings), "parts": parts, **matrix}

    def _part(self, tensor: Tensor, order: list[int] | None = None) -> dict[str, Any]:
        plain = tensor if order is None else tensor.permute(order)
        if type(tensor) is not Tensor and not isinstance(tensor, nn.Parameter):
            raise NotKept(f"a {type(tensor).__name__}")
        if tensor.device.type == "meta" or not plain.is_contiguous():
            raise NotKept("a tensor that is not there as a whole")
        if tensor.dtype not in _STORABLE:
            raise NotKept(f"a tensor of {tensor.dtype}")
        place = (plain.data_ptr(), tuple(plain.shape), plain.dtype)
        if place not in self._ids or not plain.numel():
            storage = plain.untyped_storage().data_ptr()
            if plain.numel() and self._storages.setdefault(storage, place) != place:
                raise NotKept("a tensor that shares memory with another one")
            self._ids[place] = str(len(self.parts))
            self.parts[self._ids[place]] = plain
        return {"part": self._ids[place]}


def rebuilt(description: Mapping[str, Any], part: Part) -> Tensor:
    """What was described, but for `same`. Raises KeyError, TypeError, ValueError, AssertionError or RuntimeError for
    what is no description."""
    if "form" not in description:
        plain = part(description["part"])
        order = description.get("order")
        if order is None:
            return plain
        return plain.permute(sorted(range(len(order)), key=lambda dim: order[dim]))
    dtype, shape = _DTYPES[description["dtype"]], tuple(description["shape"])
    return QuantTensor(_packed(description, part), dtype, shape, turned=bool(description["turned"]))


def _packed(description: Mapping[str, Any], part: Part) -> Packed:
    if description["form"] == _PIECES:
        return Pieces([_packed(piece, part) for piece in description["pieces"]])
    rows, columns = description["matrix"]
    parts = {name: part(number) for name, number in description["parts"].items()}
    return _FORMS[description["form"]]((rows, columns), parts, **description["settings"])


def part_ids(descriptions: Iterable[Any]) -> set[str]:
    """All parts that descriptions name."""
    found: set[str] = set()
    for each in descriptions:
        if "part" in each:
            found.add(each["part"])
        found.update(each.get("parts", {}).values())
        found |= part_ids(each.get("pieces", ()))
    return found
