"""Parameters and buffers of modules, and where they hang."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..quantized.tensor import QuantTensor


def all_tensors(models: Iterable[nn.Module]) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Parameters and buffers, with the modules that have them; shared ones as often as they are there."""
    for module in (module for model in models for module in model.modules()):
        for table in (module._parameters, module._buffers):
            for name, tensor in list(table.items()):
                if tensor is not None:
                    yield module, name, tensor


def set_tensor(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Hang another parameter or buffer where one of that name is."""
    table: Any = module._parameters if name in module._parameters else module._buffers
    table[name] = tensor


def tensors_of(parameter: Tensor) -> list[Tensor]:
    """What a parameter is made of."""
    data = parameter.data if isinstance(parameter, nn.Parameter) else parameter
    return list(data.packed.parts.values()) if isinstance(data, QuantTensor) else [data]


def rebuilt(parameter: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
    """A parameter of the same form, each tensor of it replaced by what `make` returns."""
    data = parameter.data if isinstance(parameter, nn.Parameter) else parameter
    if isinstance(data, QuantTensor):
        parts = {name: make(part) for name, part in data.packed.parts.items()}
        data = QuantTensor(data.packed.like(data.packed.shape, parts), data.dtype, data.shape, turned=data.turned)
    else:
        data = make(data)
    return nn.Parameter(data, requires_grad=False) if isinstance(parameter, nn.Parameter) else data


def device_of(model: nn.Module) -> torch.device:
    """Where the model computes. Parameters on the host beside others on a GPU are outside of it."""
    found = {tensor.device for tensor in model.parameters()}
    return next((device for device in found if device.type != "cpu"), torch.device("cpu"))
