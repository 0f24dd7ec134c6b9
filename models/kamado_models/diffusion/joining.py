"""Projections of a denoiser's attention that read the same input, as one product, for GPUs in half precision.

Their weights become parts of one tensor: nothing is held twice, and each layer can still run by itself. Only during a
forward of this lane are they one product: adapters, hooks and other users of the modules see layers as they were. The
idea of one product is that of diffusers' `fuse_qkv_projections`, which adds layers beside those that are there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from kamado.memory.shortage import is_shortage, release_cached
from kamado.weights.outside.tensors import all_tensors

_SIBLINGS = (("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj"))
"""Names of layers of one module that diffusers' attention calls with the same input, or, where it looks at something
else, all but the first."""
_RELEASED_BYTES = 256 << 20
"""What layers had before is of another size than what comes next, so a GPU's memory is given back this often."""
_CHECKED_ROWS = 8
_MAX_ERROR = {torch.float32: 1e-4}
_MAX_ERROR_HALF = 1e-2
"""Of a layer's result, relative: roundings of another order of summation, and no more."""


class JoinedLayers:
    """The layers of one model that are one product. Not thread safe: the loop's thread owns it."""

    def __init__(self, model: nn.Module) -> None:
        """Joins plain layers, which takes the memory of those that become one once more for a moment. Where there is
        none, the others stay as they are."""
        self._turn = _Turn()
        self._groups: list[_Group] = []
        uses, freed = Counter(id(tensor) for _, _, tensor in all_tensors([model])), 0
        try:
            for holder in list(model.modules()):
                for layers in _siblings(holder):
                    if all(_is_plain(layer) and uses[id(layer.weight)] == 1 for layer in layers):
                        self._groups.append(_Group(self._turn, holder, layers))
                        freed += self._groups[-1].nbytes
                        if freed >= _RELEASED_BYTES:
                            release_cached(str(layers[0].weight.device))
                            freed = 0
        except RuntimeError as error:
            if not is_shortage(error):
                raise
        if self._groups:
            release_cached(str(self._groups[0].layers[0].weight.device))

    def __len__(self) -> int:
        """How many products there are, each for two layers or more."""
        return sum(group.is_alive for group in self._groups)

    @contextmanager
    def running(self) -> Iterator[None]:
        """While inside, the layers are one product, but for those that somebody has put something else into."""
        alive = [group for group in self._groups if group.is_alive]
        found = [(vars(layer), partial(group.part, n)) for group in alive for n, layer in enumerate(group.layers)]
        changed = [(attributes, part) for attributes, part in found if "forward" not in attributes]
        for attributes, part in changed:
            attributes["forward"] = part
        self._turn.is_on = True
        try:
            yield
            self._turn.begins(None)
        finally:
            # Views of modules may have taken such a forward over; it does what the layer does from now on.
            self._turn.is_on = False
            for attributes, _ in changed:
                del attributes["forward"]
            for group in self._turn.waiting:
                group.forget()
            self._turn.waiting = []


class _Turn:
    """Whether a forward runs, and whose results nobody has asked for yet."""

    def __init__(self) -> None:
        self.is_on = False
        self.waiting: list[_Group] = []

    def begins(self, group: _Group | None) -> None:
        """Results of other modules that nobody has asked for are let go, and not made again."""
        waiting = [each for each in self.waiting if each.is_waiting]
        for each in waiting:
            if group is None or each.holder is not group.holder:
                each.read_apart()
        self.waiting = [each for each in waiting if each.is_waiting]
        if group is not None:
            self.waiting.append(group)


class _Group:
    """Layers that read the same input."""

    def __init__(self, turn: _Turn, holder: nn.Module, layers: Sequence[nn.Linear]) -> None:
        """Their weights become parts of one tensor."""
        self.holder, self.layers = holder, layers
        self._turn = turn
        with torch.no_grad():
            self._weight = torch.cat([layer.weight for layer in layers])
            self._bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
        self._sizes = [layer.out_features for layer in layers]
        self._hang("weight", self._weight)
        if self._bias is not None:
            self._hang("bias", self._bias)
        self._first = 0
        """The layer whose call makes the product for all that follow."""
        self._input: Tensor | None = None
        self._parts: dict[int, Tensor] = {}
        """Results for `_input` that were not handed out yet."""
        self._unchecked = set(range(len(layers)))

    @property
    def nbytes(self) -> int:
        return self._weight.nbytes

    @property
    def is_alive(self) -> bool:
        """Whether any layers are seen to read the same."""
        return self._first < len(self.layers) - 1

    @property
    def is_waiting(self) -> bool:
        """Whether there are results that nobody has asked for."""
        return self._input is not None

    def part(self, index: int, input: Tensor) -> Tensor:
        """What layer `index` makes of (..., in). Results are handed out once, for the very tensor they were made of."""
        if not self._turn.is_on or index < self._first:
            return self._alone(index, input)
        if self._input is not None:
            part = self._parts.pop(index, None) if input is self._input else None
            if part is not None:
                return self._checked(index, input, part)
            # Those before it read something else; one that is called again was called for itself.
            self.read_apart(index if index > self._first else None)
        if index != self._first or not self.is_alive:
            return self._alone(index, input)
        start = sum(self._sizes[:index])
        bias = None if self._bias is None else self._bias[start:]
        parts = linear(input, self._weight[start:], bias).split(self._sizes[index:], -1)
        self._input, self._parts = input, dict(enumerate(parts[1:], index + 1))
        self._turn.begins(self)
        return self._checked(index, input, parts[0])

    def read_apart(self, first: int | None = None) -> None:
        """Layers before `first` read something else than those from there on; None: all do."""
        self.forget()
        self._first = len(self.layers) if first is None else first

    def forget(self) -> None:
        """Let go of results."""
        self._input, self._parts = None, {}

    def _checked(self, index: int, input: Tensor, part: Tensor) -> Tensor:
        """The part; when it is there for the first time, it is compared in some rows: somebody may have changed the
        input in place since, which nobody can see in a tensor of inference mode."""
        if not self._parts:
            self._input = None
        if index not in self._unchecked:
            return part
        self._unchecked.discard(index)
        step = max(input.numel() // input.shape[-1] // _CHECKED_ROWS, 1)
        wanted = self._alone(index, input.reshape(-1, input.shape[-1])[::step]).float()
        found = part.reshape(-1, part.shape[-1])[::step].float()
        error = (found - wanted).norm() / wanted.norm().clamp(min=1e-6)
        if bool(error <= _MAX_ERROR.get(part.dtype, _MAX_ERROR_HALF)):
            return part
        self.read_apart()
        return self._alone(index, input)

    def _alone(self, index: int, input: Tensor) -> Tensor:
        return linear(input, self.layers[index].weight, self.layers[index].bias)

    def _hang(self, name: str, tensor: Tensor) -> None:
        for layer, part in zip(self.layers, tensor.split(self._sizes), strict=True):
            setattr(layer, name, nn.Parameter(part, requires_grad=False))


def _siblings(holder: nn.Module) -> Iterator[list[nn.Linear]]:
    """Layers that are likely to read the same: calls will tell."""
    for names in _SIBLINGS:
        asked = names[1:] if getattr(holder, "is_cross_attention", False) else names
        layers: list[Any] = [holder._modules.get(name) for name in asked]
        found = [layer for layer in layers if type(layer) is nn.Linear]
        found = [layer for layer in found if layer.in_features == found[-1].in_features]
        if len(found) > 1 and len({(layer.bias is None, layer.weight.dtype) for layer in found}) == 1:
            yield found


def _is_plain(layer: nn.Linear) -> bool:
    """Whether its tensors are its own, and nothing is gained by leaving them."""
    tensors = [tensor for tensor in (layer.weight, layer.bias) if tensor is not None]
    return all(type(each) is nn.Parameter and each.untyped_storage().nbytes() == each.nbytes for each in tensors)
