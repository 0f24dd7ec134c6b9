"""Random numbers that library code draws while it builds models, taken from a generator of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_MADE = frozenset({"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial"})
_FILLED = frozenset(
    {
        *("normal_", "uniform_", "bernoulli_", "random_", "exponential_", "geometric_", "log_normal_", "cauchy_"),
        *("trunc_normal_", "xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_", "orthogonal_"),
    }
)
_LIKE = {"rand_like": torch.Tensor.uniform_, "randn_like": torch.Tensor.normal_}


class OwnDraws(TorchFunctionMode):
    """While inside, in this thread: what is drawn without a generator does not come from the process's random numbers,
    which belong to the host program and to its other threads. The draws are those of `seed`, the same each time; who
    enters it again goes on where it was."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in _LIKE:
            # In the order of memory, as torch does it: another one where the tensor is a transposed one, say.
            func, args, kwargs = _LIKE[name], (torch.empty_like(*args, **kwargs),), {}
            name = func.__name__
        if (name in _MADE or name in _FILLED) and kwargs.get("generator") is None:
            device = _device(name, args, kwargs)
            if device.type != "meta":
                kwargs["generator"] = self._generator(device)
        return func(*args, **kwargs)

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]


def _device(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device:
    """Where the numbers are drawn."""
    tensors = (*args, *kwargs.values())
    found = next((value.device for value in tensors if isinstance(value, torch.Tensor)), None)
    asked = kwargs.get("device") if name in _MADE else None
    return torch.device(asked) if asked is not None else found or torch.device("cpu")
