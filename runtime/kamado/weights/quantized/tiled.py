"""Integers in the order that the CPU kernels read them: panels of outputs, groups of inputs. See `kamado.kernels`."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import Tensor

from ...kernels.native import native
from ...kernels.tiles import GROUP, PANEL, from_tiles, rounded, to_tiles
from ..large_pages import LargePages
from .dynamic import DynamicIntegers
from .integers import Integers
from .packed import Packed, scaled
from .pieces import Pieces
from .tensor import is_quantized

ACTIVATION_BITS = {8: 16, 4: 8}
"""By the bits of the weights. 16 bits change nothing that can be measured beside the rounding of weights to 8; 8 bits
little beside their rounding to 4 (KL of SmolLM2's answers 0.245 in place of 0.242), for less work."""


class TiledIntegers(Packed):
    """`weight = scale * value`, in groups of 32.

    Parts: `values` and `scale` as of `to_tiles`. Activations are rounded to `activation_bits` (16, or 8; None: as
    ACTIVATION_BITS says), each group of 32 of each row for itself.
    """

    form = "tiled-integers"

    def __init__(
        self, shape: tuple[int, int], parts: Mapping[str, Tensor], *, activation_bits: int | None = None
    ) -> None:
        super().__init__(shape, parts)
        assert activation_bits in (None, 8, 16)
        self.activation_bits = activation_bits or ACTIVATION_BITS[self.bits]

    @property
    def settings(self) -> Mapping[str, Any]:
        """See Packed."""
        return {"activation_bits": self.activation_bits}

    @property
    def ends_whole(self) -> bool:
        """See Packed: its last panel is full."""
        return self.shape[0] % PANEL == 0

    @property
    def bits(self) -> int:
        return 4 if self.parts["values"].dtype == torch.uint8 else 8

    def rows(self, index: slice | Tensor, dtype: torch.dtype) -> Tensor:
        """See Packed."""
        kernels = native()
        if isinstance(index, Tensor) and kernels is not None and self.device.type == index.device.type == "cpu":
            return kernels.rows(self.parts["values"], self.parts["scale"], self.shape[0], index).to(dtype)
        places = index if isinstance(index, Tensor) else torch.arange(self.shape[0], device=self.device)[index]
        values, scale = from_tiles(self.parts["values"], self.parts["scale"], places)
        return scaled(values.view(*scale.shape, GROUP), scale, dtype).view(values.shape)

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """See Packed."""
        kernels = native()
        if kernels is None or x.device.type != "cpu" or self.device.type != "cpu":
            return super().linear(rounded(x, self.activation_bits).to(x.dtype), bias)
        flat = x.reshape(-1, self.shape[1]).float()
        result = kernels.linear(
            flat if flat.stride(-1) == 1 else flat.contiguous(),
            self.parts["values"],
            self.parts["scale"],
            self.shape[0],
            weight_bits=self.bits,
            activation_bits=self.activation_bits,
            bias=None if bias is None else bias.float().contiguous(),
        )
        return result.to(x.dtype).view(*x.shape[:-1], self.shape[0])


def can_tile(packed: Packed) -> bool:
    """Whether the kernels know this form."""
    return (
        isinstance(packed, Integers)
        and (type(packed) is Integers or (type(packed) is DynamicIntegers and not packed.outlier))
        and packed.device.type == "cpu"
        and set(packed.parts) == {"values", "scale"}
        and packed.parts["scale"].dtype == torch.float16
        and packed.shape[1] % GROUP == 0
        and packed.group_size == GROUP
    )


def tile(packed: Integers, pages: LargePages | None = None) -> TiledIntegers:
    """The same matrix in the other order, in `pages` if given. Only after `can_tile`."""
    values, scale = to_tiles(packed.values(slice(None)), packed.parts["scale"], packed.bits)
    if pages is not None:
        values, scale = pages.copy(values), pages.copy(scale)
    activation_bits = 8 if isinstance(packed, DynamicIntegers) else None
    return TiledIntegers(packed.shape, {"values": values, "scale": scale}, activation_bits=activation_bits)


def tiled(packed: Packed, pages: LargePages | None = None) -> Packed:
    """The same matrix in the kernels' order, each of its pieces for itself; what they do not know stays as it is."""
    if isinstance(packed, Pieces):
        return Pieces([tiled(piece, pages) for piece in packed.pieces])
    return tile(packed, pages) if can_tile(packed) else packed  # type: ignore[arg-type]  # `can_tile` has looked


def tile_weights(model: Any, *, but: Container[int] = ()) -> int:
    """Reorder the weights of a model that the kernels know, of linear layers and of stacks of experts, one matrix at a
    time, where there are kernels for this CPU. Those whose `id` is in `but` stay as they are. Returns the bytes that
    are then held in addition, which panels that are not full take."""
    if native() is None:
        return 0
    extra, pages = 0, LargePages()
    for module in model.modules():
        for weight in map(_as_any, module._parameters.values()):
            if not is_quantized(weight) or id(weight) in but:
                continue
            if weight.ndim == 3 or (weight.ndim == 2 and isinstance(module, torch.nn.Linear)):
                before = weight.packed.nbytes
                _tile(weight, pages)
                extra += weight.packed.nbytes - before
    return extra


def _tile(weight: Any, pages: LargePages) -> None:
    if not isinstance(weight.packed, Pieces):
        weight.packed = tiled(weight.packed, pages)
        return
    pieces = list(weight.packed.pieces)
    weight.packed = Pieces(pieces[:1])  # so that each old matrix can go as soon as there is the new one
    for number, piece in enumerate(pieces):
        pieces[number] = tiled(piece, pages)
        del piece
    weight.packed = Pieces(pieces)


def _as_any(weight: Any) -> Any:
    return weight
