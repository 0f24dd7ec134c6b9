"""One model's weights that stay outside of its device: put aside as they are read, there again when they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...checkpoint.store import default_home
from ...kernels.native import native
from ...memory.ledger import RAM, Ledger
from ...memory.placement import WINDOW, named_blocks
from ...memory.plan import Plan
from ..quantized.tensor import held_bytes, is_quantized
from ..quantized.tiled import tile_weights, tiled
from .blocks import Block, Carrier, Copied, InPlace
from .stores import DiskStore, RamStore, Store
from .tensors import all_tensors, rebuilt, set_tensor, tensors_of


class OutsideWeights:
    """For one load: `reading` while tensors are read, `attach` when the model is whole, `close` at its end."""

    @classmethod
    def of(cls, plan: Plan, names: frozenset[str], ledger: Ledger, owner: str) -> OutsideWeights:
        """As planned, entered in the ledger if it is RAM. Raises DoesNotFit where there is too little room, OSError
        where the disk cannot be written."""
        if plan.tier == "disk":
            return cls(DiskStore(default_home() / "outside", plan.outside_bytes), names, plan.device)
        ledger.enter(RAM, owner, "outside", plan.outside_bytes)
        store = RamStore(plan.outside_bytes, pinned=plan.device.startswith("cuda"))
        return cls(store, names, plan.device)

    def __init__(self, store: Store, names: frozenset[str], device: str) -> None:
        self._store = store
        self.names = names
        """Of the tensors, as they are read."""
        self._device = device
        self._inside: set[str] = set()
        """Names of the other tensors."""
        self._handles: list[Any] = []
        self._carrier: Carrier | None = None

    def reading(
        self,
        tensors: Mapping[str, Any],
        dtype: torch.dtype,
        *,
        prefix: str = "",
        single: Callable[[str], bool] = lambda name: False,
    ) -> dict[str, Any]:
        """The same tensors; those that stay outside are read into the store, floating-point ones as `dtype`, but for
        those that are `single` (see `kept_single`): `attach` puts them aside. `names` begin with `prefix`."""
        self._inside.update(prefix + name for name in tensors if prefix + name not in self.names)
        return {
            name: _PutAside(each, self, dtype) if prefix + name in self.names and not single(name) else each
            for name, each in tensors.items()
        }

    def put_aside(self, tensor: Tensor) -> Tensor:
        """The tensor, in the store, and for a CPU in the order that its kernels read."""
        if self._device == "cpu" and native() is not None:
            _reorder(tensor)
        return rebuilt(tensor, self._store.keep)

    def attach(self, models: Mapping[str, nn.Module]) -> int:
        """Bring what is not outside to the device, and see that the rest comes when it is used. Returns the bytes that
        the models then hold there, room for what is in use included: they run one at a time. Call it once, before any
        runs. `models`: by the prefix that their names were read with."""
        whole = list(models.values())
        shared = _shared(whole)
        found = [module for prefix, model in models.items() for module in self._modules(model, prefix)]
        blocks = [self._block(module, shared) for module in found]
        outside = {id(parameter) for block in blocks for parameter in block.parameters}
        moved: dict[int, Tensor] = {}  # what several modules have stays one
        for holder, name, tensor in all_tensors(whole):
            is_there = tensor.device.type == torch.device(self._device).type
            # A buffer that was put aside is copied: nothing brings it.
            if id(tensor) in outside or (is_there and not any(map(self._store.holds, tensors_of(tensor)))):
                continue
            there = moved.get(id(tensor))
            if there is None:
                there = rebuilt(tensor, lambda part: part.to(self._device, copy=True))
                if id(tensor) in shared:
                    moved[id(tensor)] = there
            set_tensor(holder, name, there)
        if self._device == "cpu":
            for model in whole:
                tile_weights(model, but=outside)
        held = held_bytes(tensor for _, _, tensor in all_tensors(whole) if id(tensor) not in outside)
        if not blocks:
            return held
        in_place = self._device == "cpu" and isinstance(self._store, DiskStore)
        self._carrier = InPlace(self._store) if in_place else Copied(blocks, self._device, self._store)
        self._handles += self._carrier.attach(blocks)
        return held + WINDOW * max(block.nbytes for block in blocks)

    def close(self) -> None:
        """Let go of the store. The model can no longer run."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._carrier is not None:
            self._carrier.close()
            self._carrier = None
        self._store.close()

    def _modules(self, model: nn.Module, prefix: str) -> Iterator[nn.Module]:
        """The blocks, as the plan cut them, of which tensors were put aside and none was read to stay. What a library
        has joined of several has a name that was not read."""
        parameters = dict(model.named_parameters())
        sizes = {name: sum(part.nbytes for part in tensors_of(each)) for name, each in parameters.items()}
        for path, names in named_blocks(sizes).items():
            tensors = [part for name in names for part in tensors_of(parameters[name]) if part.numel()]
            stays = any(prefix + name in self._inside for name in names)
            if not stays and any(map(self._store.holds, tensors)):
                yield from _running(model.get_submodule(path))

    def _block(self, module: nn.Module, shared: set[int]) -> Block:
        """All parameters of the module that nothing else has, in the store."""
        places = []
        for holder in module.modules():
            for name, parameter in holder._parameters.items():
                if parameter is None or id(parameter) in shared:
                    continue
                if not all(map(self._store.holds, tensors_of(parameter))):
                    holder._parameters[name] = self.put_aside(parameter)  # type: ignore[assignment]
                places.append((holder, name))
        return Block(module, places)


def _running(module: nn.Module) -> Iterator[nn.Module]:
    """The module, or what is in it, if it is a list and never runs itself."""
    if type(module).forward is not nn.Module.forward:
        yield module
        return
    for child in module.children():
        yield from _running(child)


def _reorder(weight: Any) -> None:
    """Lay a quantized matrix or stack out for the CPU's kernels, if that takes no more room than was planned."""
    if is_quantized(weight) and weight.ndim in (2, 3):
        ordered = tiled(weight.packed)
        if ordered.nbytes == weight.packed.nbytes:
            weight.packed = ordered


class _PutAside:
    """See ReadableTensor."""

    def __init__(self, source: Any, outside: OutsideWeights, dtype: torch.dtype) -> None:
        self._source = source
        self._outside = outside
        self._dtype = dtype

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def read(self) -> Tensor:
        tensor: Tensor = self._source.read()
        return self._outside.put_aside(tensor.to(self._dtype) if tensor.is_floating_point() else tensor)

    def __getitem__(self, index: object) -> Tensor:
        tensor = self.read()
        return tensor if index is Ellipsis else tensor[index]  # type: ignore[index]


def kept_single(kind: Any) -> Callable[[str], bool]:
    """Whether a class of transformers or diffusers keeps a parameter, by its name, in float32 whatever is asked for."""
    names = {
        name
        for attribute in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
        for name in getattr(kind, attribute, None) or ()
    }
    return lambda name: any(part in name for part in names)


def _shared(models: Sequence[nn.Module]) -> set[int]:
    """Parameters that several modules have."""
    seen: set[int] = set()
    twice: set[int] = set()
    for module in (module for model in models for module in model.modules()):
        for parameter in module._parameters.values():
            if parameter is not None:
                (twice if id(parameter) in seen else seen).add(id(parameter))
    return twice
