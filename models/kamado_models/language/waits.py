"""What of a forward would have the host wait for the device, or bring it something: no graph of launches holds that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from kamado.tasks.library.live_bytes import ONE_AT_A_TIME, LiveBytes

_aten = torch.ops.aten
_ASKING = frozenset(
    {
        "_local_scalar_dense",
        "_unique",
        "_unique2",
        "bincount",
        "equal",
        "is_nonzero",
        "item",
        "linalg_solve",
        "masked_select",
        "nonzero",
        "nonzero_numpy",
        "unique_consecutive",
        "unique_dim",
    }
)
"""Operations whose result's size, or what comes next, depends on numbers that the device computes."""
_LIBRARY_GROUPED = "::grouped_mm_fallback"
"""transformers' own operation for experts, where torch has none for the device or precision: it asks inside."""
_INDEXING = frozenset({"index", "index_put", "index_put_"})
_REPEATING = (_aten.repeat_interleave.Tensor, _aten.repeat_interleave.self_Tensor)


class Waits(Exception):
    """A forward asked the device for something."""


class _NoWaits(LiveBytes):
    """While it is on, in this thread: what would wait for devices of a type raises Waits. Counts bytes as LiveBytes
    does."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._kind = kind

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::") if hasattr(func, "_schema") else ""
        asks = name in _ASKING or func in _REPEATING or name.endswith(_LIBRARY_GROUPED)
        if name in _INDEXING:
            asks = any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        kinds = _kinds(args, kwargs or {})
        if (asks and self._kind in kinds[0]) or len(kinds[1]) > 1:
            raise Waits(f"{name} in the middle of a forward")
        return super().__torch_dispatch__(func, types, args, kwargs)


def launched_bytes(function: Callable[[], Any], device: torch.device) -> int:
    """Run it, on `device`, and return the most bytes that its temporary tensors took at once. Raises Waits as soon as
    it does what no graph can hold."""
    with ONE_AT_A_TIME, _NoWaits(device.type) as seen:
        function()
    size: int = seen.bytes
    return size


def _kinds(args: Any, kwargs: Any) -> tuple[set[str], set[str]]:
    """Types of the devices of all tensors, and of those that an operation moves something between: single numbers
    travel with the launch."""
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    moved = {tensor.device.type for tensor in tensors if tensor.ndim}
    target = kwargs.get("device")
    if target is not None and moved:
        moved.add(torch.device(target).type)
    return {tensor.device.type for tensor in tensors}, moved - {"meta"}
