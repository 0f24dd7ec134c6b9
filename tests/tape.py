"""A stand-in for CUDA graphs on a CPU: the operations of a function are noted with the very tensors they had, and done
again on those. Nothing of Python runs again, so what depends on more than tensors' contents goes wrong, as on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[tuple[Any, Any, Any, list[torch.Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(kind not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer) for kind in types):
            return NotImplemented
        made = func(*args, **(kwargs or {}))
        results = [leaf for leaf in pytree.tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        given = {_storage(leaf) for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        # Some of those that may give a view give a copy, as it comes.
        looks = func.is_view and all(_storage(result) in given for result in results)
        if not looks:
            self.operations.append((func, args, kwargs or {}, results))
        return made


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else id(tensor)


class TapeGraphs:
    """See kamado.kernels.gpu.graphs.Recorder."""

    def __init__(self, num_bytes: int = 1000) -> None:
        self.num_bytes = num_bytes
        self.recorded = 0
        self.runs = 0
        self.fails: Exception | None = None

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """See Recorder."""
        if self.fails is not None:
            raise self.fails
        with _Tape() as tape:
            function()
        self.recorded += 1

        def run() -> None:
            self.runs += 1
            for func, args, kwargs, results in tape.operations:
                found = [leaf for leaf in pytree.tree_leaves(func(*args, **kwargs)) if isinstance(leaf, torch.Tensor)]
                for old, new in zip(results, found, strict=True):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)

        return run

    def held_bytes(self) -> int:
        """See Recorder."""
        return self.num_bytes * self.recorded

    def clear(self) -> None:
        """See Recorder."""
        self.recorded = 0
