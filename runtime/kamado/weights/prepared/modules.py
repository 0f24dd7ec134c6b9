"""All that modules hold, described and brought back into modules of the same classes that hold nothing yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from ..quantized.tensor import as_parameter, is_quantized
from .file import Contents, Unusable
from .forms import Describing, NotKept, rebuilt

_DAMAGED = (KeyError, TypeError, ValueError, AssertionError, RuntimeError, AttributeError, IndexError)
"""What a description that is none raises."""


class Described:
    """What the modules hold now. It shares their memory."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        """Raises NotKept for modules that hold what cannot be described, and for such as are not quantized."""
        describing = Describing()
        self.tensors: dict[str, Any] = {}
        is_worthwhile = False
        for name, holder, place, tensor in _tensors(modules):
            kind = "buffer" if place in holder._buffers else "parameter"
            self.tensors[name] = {"kind": kind, **describing.tensor(name, tensor)}
            is_worthwhile = is_worthwhile or is_quantized(tensor)
        if not is_worthwhile:
            raise NotKept("modules in full precision")
        for module in (each for root in modules.values() for each in root.modules()):
            loose = [name for name, value in vars(module).items() if isinstance(value, Tensor)]
            if loose:
                raise NotKept(f"{type(module).__name__}.{loose[0]}, which is no parameter and no buffer")
        self.parts = describing.parts

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values())


def fill(modules: Mapping[str, nn.Module], file: Contents, device: str) -> None:
    """Hang everything that `file` describes into `modules`, which were made on the meta device. Raises Unusable where
    they are not of the kind that was described; they are as they were then."""
    described: Mapping[str, Any] = file.told["tensors"]
    places = {name: (holder, place, tensor) for name, holder, place, tensor in _tensors(modules)}
    if places.keys() != described.keys():
        raise Unusable("the modules have other parameters now")
    made: dict[str, Tensor] = {}
    for name, (holder, place, empty) in places.items():
        description = described[name]
        try:
            same = description.get("same")
            tensor = made[same] if same is not None else _made(description, file, device)
            if tensor.shape != empty.shape or place not in _table(holder, description["kind"]):
                raise Unusable(f"{name} has another shape or kind now")
        except _DAMAGED as error:
            raise Unusable(f"{name}: {type(error).__name__}") from error
        made[name] = tensor
    for module in (each for root in modules.values() for each in root.modules()):
        if any(isinstance(value, Tensor) for value in vars(module).values()):
            raise Unusable(f"{type(module).__name__} holds a tensor that is not described")
    for name, (holder, place, _) in places.items():
        _table(holder, described[name]["kind"])[place] = made[name]


def _table(holder: nn.Module, kind: str) -> dict[str, Any]:
    return holder._buffers if kind == "buffer" else holder._parameters


def _made(description: Mapping[str, Any], file: Contents, device: str) -> Tensor:
    tensor = rebuilt(description, lambda part: file.part(part).to(device))
    return tensor if description["kind"] == "buffer" else as_parameter(tensor)


def _tensors(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """Name, holder, place and tensor of each parameter and buffer, shared ones as often as they are there."""
    for root, model in modules.items():
        for path, module in model.named_modules():
            for table in (module._parameters, module._buffers):
                for place, tensor in table.items():
                    if tensor is not None:
                        yield f"{root}/{path}.{place}", module, place, tensor
