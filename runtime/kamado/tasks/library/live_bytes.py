"""Watching how much memory the temporary tensors of a forward take, without changing what it computes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

ONE_AT_A_TIME = threading.Lock()
"""torch notes in a variable of the whole process that some mode is on, which threads would restore wrongly."""


class LiveBytes(TorchDispatchMode):
    """While it is on, in this thread: the most bytes that were alive at once of memory that operations laid out.

    Keeps no tensor alive. Memory that kernels take and give back inside (workspaces) is not seen, and what operations
    only write into or look at in another way is not counted."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0
        """The peak."""
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        """By address, which is not given away while there is a weak reference."""
        self._sum = 0
        """Of `_live`, which may hold what is gone already."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Its wrapper would import torch's compiler, which takes a second and sets an environment variable."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(kind not in _PLAIN for kind in types):
            return NotImplemented  # a tensor of many parts: what it is made of comes by itself
        made = func(*args, **(kwargs or {}))
        for leaf in (made,) if isinstance(made, torch.Tensor) else pytree.tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self._note(leaf, args, kwargs)
        return made

    def left(self) -> int:
        """Bytes that are alive now."""
        self._live = {key: each for key, each in self._live.items() if not each[0].expired()}
        self._sum = sum(size for _, size in self._live.values())
        return self._sum

    def _note(self, tensor: torch.Tensor, args: Any, kwargs: Any) -> None:
        storage = _storage(tensor)
        if storage is None:
            return
        address, size = storage._cdata, storage.nbytes()
        if address in self._live or not size or address in _storages((args, kwargs)):
            return
        self._live[address] = (StorageWeakRef(storage), size)
        self._sum += size
        if self._sum <= self.bytes:
            return  # not more than was there before, even if all of it lived
        self.bytes = max(self.bytes, self.left())


_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter, torch.nn.Buffer})


class Measured:
    """What `measuring` found."""

    bytes: int | None = None
    """The most that was alive at once of what was laid out, results included. None: not known."""
    left: int = 0
    """What of that was still alive in the end."""


_ROUNDING_BYTES = 4 << 20
"""Of the allocator of a GPU, for what a forward leaves."""


@contextmanager
def measuring(device: str) -> Iterator[Measured]:
    """Measure what runs inside, in this thread, on `device`. Nothing is found of what raises, nor while another thread
    is measuring.

    On a GPU the allocator knows more (workspaces, rounding), as long as this forward takes more than any before: its
    highest mark is never set back, since that is the program's. Else tensors are counted, as they are on a CPU; also
    where other threads allocated meanwhile, such as one that reads a model."""
    found = Measured()
    if not ONE_AT_A_TIME.acquire(blocking=False):
        yield found
        return
    try:
        before = _marks(device)
        with LiveBytes() as live:
            yield found
        after = _marks(device)
        found.left = live.left()
        rose, alone = after[1] > before[1], abs(after[0] - before[0] - found.left) <= _ROUNDING_BYTES
        found.bytes = max(live.bytes, after[1] - before[0]) if rose and alone else live.bytes
    finally:
        ONE_AT_A_TIME.release()


def _marks(device: str) -> tuple[int, int]:
    """Bytes of the allocator of a GPU: in use, and the most that ever were."""
    if not device.startswith("cuda"):
        return 0, 0
    return torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)


def _storages(tree: Any) -> set[int]:
    found = (_storage(leaf) for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor))
    return {storage._cdata for storage in found if storage is not None}


def _storage(tensor: torch.Tensor) -> torch.UntypedStorage | None:
    if not _has_storage(tensor):
        return None
    try:
        return tensor.untyped_storage()
    except RuntimeError:  # of some backends' tensors it cannot be had, which is no reason for a forward to fail
        return None


def _has_storage(tensor: torch.Tensor) -> bool:
    """Sparse tensors have several, and what kernels have laid out for themselves shows none."""
    return type(tensor) in _PLAIN and tensor.layout == torch.strided and tensor.device.type != "meta"
