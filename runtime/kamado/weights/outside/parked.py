"""A model that has left its device, and can come back without being read again: its weights wait in RAM."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from ...memory.shortage import is_shortage, release_cached
from ..quantized.tensor import held_bytes
from .stores import RamStore
from .tensors import all_tensors, rebuilt, set_tensor


class ParkedModules:
    """See kamado.contracts.Parked. Parameters and buffers of the modules lie in page-locked RAM where the device is a
    GPU; what shares memory goes on sharing it."""

    def __init__(self, modules: Mapping[str, nn.Module], device: str) -> None:
        """Moves the weights out; their device has them no more. Raises what torch raises where RAM is short."""
        self.modules = dict(modules)
        size = held_bytes(tensor for _, _, tensor in all_tensors(self.modules.values()))
        store = RamStore(size, pinned=device.startswith("cuda"))
        self._move(store.keep)
        self.nbytes = store.nbytes

    def back(self, device: str) -> dict[str, nn.Module]:
        """The modules, on the device again. To be called once. Raises what torch raises where memory is short."""
        self._move(lambda tensor: tensor.to(device, non_blocking=True, copy=True))
        return self.modules

    def _move(self, move: Callable[[Tensor], Tensor]) -> None:
        moved: dict[int, Tensor] = {}
        for holder, name, tensor in list(all_tensors(self.modules.values())):
            if id(tensor) not in moved:
                moved[id(tensor)] = rebuilt(tensor, move)
            set_tensor(holder, name, moved[id(tensor)])


def parked(modules: Mapping[str, nn.Module], device: str) -> ParkedModules | None:
    """The modules in RAM, and the device's memory given back; None where RAM is short, or there are no modules."""
    try:
        found = ParkedModules(modules, device) if modules else None
    except Exception as error:
        if not is_shortage(error):
            raise
        found = None
    release_cached(device)
    return found
