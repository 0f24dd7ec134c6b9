"""Reading the weights of a quantized checkpoint, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ....checkpoint.types import TensorEntry
from ....errors import UnsupportedCheckpoint
from ...stream import LazyTensor, ReadProgress
from ...turns import Turns
from ..packed import Packed
from ..tensor import QuantTensor
from . import unpack, unpack_floats
from .entries import StoredWeight

UNPACK: Mapping[str, Callable[[StoredWeight, Mapping[str, Tensor]], Packed | Tensor]] = {
    "awq": unpack.awq,
    "codebook": unpack_floats.codebook,
    "float8": unpack_floats.float8,
    "ggml": unpack.ggml,
    "gptq": unpack.gptq,
    "mxfp4": unpack_floats.mxfp4,
    "integers": unpack.integers,
    "packed-integers": unpack.packed_integers,
    "signed-nibbles": unpack.signed_nibbles,
}
"""What makes the tensors of a StoredWeight into a form that Kamado computes with."""


def stored_tensors(entries: Mapping[str, TensorEntry], dtype: torch.dtype) -> dict[str, Any]:
    """Something to read for each entry: a `LazyTensor`, or for a StoredWeight what reads as QuantTensor of `dtype`."""
    turns = Turns()
    return {
        name: StoredTensor(entry, dtype, turns) if isinstance(entry, StoredWeight) else LazyTensor(entry)
        for name, entry in entries.items()
    }


class StoredTensor:
    """See ReadableTensor. One is read at a time, because taking one apart needs memory of its size."""

    def __init__(
        self,
        entry: StoredWeight,
        dtype: torch.dtype,
        turns: Turns,
        *,
        rows: Tensor | None = None,
        progress: ReadProgress | None = None,
    ) -> None:
        """`rows`: which of the stored rows comes at each place."""
        self.name = entry.name
        self.nbytes = entry.nbytes
        self.dtype = dtype
        self.shape = entry.shape
        self._entry = entry
        self._parts = {name: LazyTensor(part, progress=progress) for name, part in entry.parts.items()}
        self._turns = turns
        self._rows = rows

    def get_shape(self) -> list[int]:
        return list(self.shape)

    def get_dtype(self) -> str:
        return {torch.float16: "F16", torch.bfloat16: "BF16"}.get(self.dtype, "F32")

    def read(self) -> Tensor:
        """A QuantTensor, or a plain tensor where that is wanted. Raises UnsupportedCheckpoint."""
        with self._turns.one(), torch.no_grad():
            self._turns.add(4 * self._entry.numel)
            read = {name: part.read() for name, part in self._parts.items()}
            made = UNPACK[self._entry.form](self._entry, read)
            if self._rows is not None:
                made = _picked(made, self._rows)
            parts = made.parts.items() if isinstance(made, Packed) else (("value", made),)
            for name, part in parts:
                if part.is_floating_point() and part.itemsize > 1 and not bool(torch.isfinite(part).all()):
                    raise UnsupportedCheckpoint(f"{self._entry.file}: {self.name} has a {name} that is no number")
            if isinstance(made, Packed) and not self._entry.decoded:
                turned = bool(self._entry.settings.get("turned"))
                return QuantTensor(made, self.dtype, self.shape, turned=turned)
            plain = made.dequantize(self.dtype) if isinstance(made, Packed) else made.to(self.dtype)
            return plain.view(self.shape)

    def __getitem__(self, index: object) -> Tensor:
        tensor = self.read()
        return tensor if index is Ellipsis else tensor[index]  # type: ignore[index]


def _picked(made: Packed | Tensor, rows: Tensor) -> Packed | Tensor:
    """Some rows of a matrix whose parts all have a row for each of its own."""
    if isinstance(made, Tensor):
        return made[rows]
    return made.like((len(rows), made.shape[1]), {name: part[rows] for name, part in made.parts.items()})
