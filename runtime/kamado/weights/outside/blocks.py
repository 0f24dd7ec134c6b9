"""Modules whose weights come when they run, and go when they are done.

    enter(block)   its weights are there
    leave(block)   they are not needed for now; those of the block that ran after it last time are being read

On a CPU weights are used where they lie, in a mapped file: reading means telling the system, and there is no copy. For
a GPU they are copied into one of two buffers, on a stream of its own, while the other buffer's block computes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .stores import Store
from .tensors import rebuilt, tensors_of

_ALIGNMENT = 256
"""Of tensors in a buffer of a GPU."""


class Block:
    """A module, with those of its parameters that are outside."""

    def __init__(self, module: nn.Module, places: Sequence[tuple[nn.Module, str]]) -> None:
        """`places`: the module and name of each parameter."""
        self.module = module
        self.places = list(places)
        self.parameters: list[Tensor] = [getattr(holder, name) for holder, name in places]
        self.tensors = [tensor for parameter in self.parameters for tensor in tensors_of(parameter)]
        self.next: Block | None = None
        """Which ran after it last time."""

    @property
    def nbytes(self) -> int:
        """Bytes of its weights, as they lie in a buffer."""
        return sum(-(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT for tensor in self.tensors)


class Carrier(ABC):
    """Brings weights of blocks to where they are used. Not thread safe."""

    @abstractmethod
    def enter(self, block: Block) -> None:
        """See the module."""

    @abstractmethod
    def leave(self, block: Block) -> None:
        """See the module."""

    def close(self) -> None:  # noqa: B027 - most have nothing to wait for
        """Wait for what is under way."""

    def attach(self, blocks: Sequence[Block]) -> list[Any]:
        """Do so whenever one of the blocks runs. Returns the hooks' handles."""
        for block, follower in zip(blocks, [*blocks[1:], *blocks[:1]], strict=True):
            block.next = follower
        last: list[Block] = []

        def before(block: Block) -> Callable[..., None]:
            def enter(*_: Any) -> None:
                if last:
                    last.pop().next = block
                last.append(block)
                self.enter(block)

            return enter

        def after(block: Block) -> Callable[..., None]:
            return lambda *_: self.leave(block)

        handles: list[Any] = []
        for block in blocks:
            handles.append(block.module.register_forward_pre_hook(before(block), prepend=True))
            handles.append(block.module.register_forward_hook(after(block), always_call=True))
        return handles


class InPlace(Carrier):
    """For weights that are used where they lie."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def enter(self, block: Block) -> None:
        """See Carrier."""
        if block.next is not None and block.next is not block:
            self._store.expect(block.next.tensors)

    def leave(self, block: Block) -> None:
        """See Carrier."""
        self._store.forget(block.tensors)


class Copied(Carrier):
    """For a device that copies weights into memory of its own: two buffers, each of the largest block's size.

    A block is copied once the kernels of the one before are queued, while they run. While a block does not run, its
    parameters are those of the host, so what reads them meanwhile fails or is right, but never sees another block's
    weights."""

    def __init__(self, blocks: Sequence[Block], device: str, store: Store) -> None:
        size = max((block.nbytes for block in blocks), default=0)
        self._store = store
        self._buffers = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2)]
        self._holds: list[Block | None] = [None, None]
        self._views: dict[tuple[Block, int], list[Tensor]] = {}
        self._stream: Any = None
        if torch.device(device).type == "cuda":
            self._stream = torch.cuda.Stream(device)
            # Kernels that were queued before may still use the memory of which the buffers are made.
            self._stream.wait_stream(torch.cuda.current_stream(device))
        self._ready: list[Any] = [None, None]
        self._free: list[Any] = [None, None]
        self._device = device

    def enter(self, block: Block) -> None:
        """See Carrier."""
        slot = self._slot_of(block)
        if slot is None:
            slot = self._fetch(block, 0 if self._holds[0] is None else 1)
        if self._ready[slot] is not None:
            torch.cuda.current_stream(self._device).wait_event(self._ready[slot])
        for (module, name), parameter in zip(block.places, self._in_slot(block, slot), strict=True):
            module._parameters[name] = parameter  # type: ignore[assignment]

    def leave(self, block: Block) -> None:
        """See Carrier."""
        for (module, name), parameter in zip(block.places, block.parameters, strict=True):
            module._parameters[name] = parameter  # type: ignore[assignment]
        slot = self._slot_of(block)
        if slot is None:  # what should have brought it failed
            return
        if self._stream is not None:
            self._free[slot] = torch.cuda.current_stream(self._device).record_event()
        follower = block.next
        if follower is not None and follower is not block and self._slot_of(follower) is None:
            self._fetch(follower, 1 - slot)

    def close(self) -> None:
        """See Carrier."""
        if self._stream is not None:
            self._stream.synchronize()

    def _slot_of(self, block: Block) -> int | None:
        return next((slot for slot, held in enumerate(self._holds) if held is block), None)

    def _fetch(self, block: Block, slot: int) -> int:
        """Begin to copy the block into a buffer."""
        self._holds[slot] = None
        targets = [tensor for parameter in self._in_slot(block, slot) for tensor in tensors_of(parameter)]
        if self._stream is None:
            self._copy(block, targets)
        else:
            with torch.cuda.stream(self._stream):
                if self._free[slot] is not None:
                    self._stream.wait_event(self._free[slot])
                self._copy(block, targets)
                self._ready[slot] = self._stream.record_event()
        self._holds[slot] = block
        return slot

    def _copy(self, block: Block, targets: Sequence[Tensor]) -> None:
        self._store.expect(block.tensors)
        for target, source in zip(targets, block.tensors, strict=True):
            target.copy_(source, non_blocking=True)
        # What is mapped was read before the copy returned; only page-locked memory is read later.
        self._store.forget(block.tensors)

    def _in_slot(self, block: Block, slot: int) -> list[Tensor]:
        """The block's parameters, as they are when the buffer holds it."""
        found = self._views.get((block, slot))
        if found is None:
            end = 0

            def view(tensor: Tensor) -> Tensor:
                nonlocal end
                begin, end = end, end + -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
                part = self._buffers[slot][begin : begin + tensor.nbytes]
                return part.view(tensor.dtype).view(tensor.shape)

            found = self._views[block, slot] = [rebuilt(parameter, view) for parameter in block.parameters]
        return found
