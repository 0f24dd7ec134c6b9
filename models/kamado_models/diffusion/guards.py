"""Decoders that overflow in half precision: the same latents once more, by a float32 copy of the decoder.

Some autoencoders reach values in float16 that it cannot hold (SDXL's is known for it): the picture is NaN, or black.
The latents are fine then, so only the decoder has to be better.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from kamado.errors import DoesNotFit, GenerationFailed
from kamado.memory.ledger import Ledger
from kamado.tasks.library.standin import ModelCall
from kamado.units import format_bytes

_HALVES = (torch.float16, torch.bfloat16)
_DARKEST = -1 + 2 / 255
_ENCODING = ("encoder", "quant_conv")
"""Parts of autoencoders that `decode` does not use."""


class FinerDecoders:
    """float32 copies of the decoders of one model, made when they are first needed, and kept until somebody else needs
    the memory. Of the loop's thread; the figures are anybody's."""

    def __init__(self, ledger: Ledger, device: str, owner: str, spare: Callable[[], int] = lambda: 0) -> None:
        """`spare`: lets go of what else of the model is idle, in bytes."""
        self._ledger = ledger
        self._spare = spare
        self._device = device
        self._owner = owner
        self._copies: dict[str, dict[str, nn.Module]] = {}
        self._sizes: dict[str, int] = {}
        """Of the copies, in bytes."""
        self._users: Counter[str] = Counter()
        self._halves: dict[str, torch.dtype | None] = {}
        """By component: the half precision of its weights."""

    def finer(self, component: str, call: ModelCall, result: Any) -> ModelCall | None:
        """The call to make instead of `call`, whose `result` cannot be used; None where it can, or nothing helps.

        Raises GenerationFailed where there is no memory for the copy."""
        if call.method != "decode":
            return None  # at once: this is asked after every step
        if component not in self._halves:
            self._halves[component] = _half(call.module)
        dtype = self._halves[component]
        if dtype is None or not is_useless(result):
            return None
        if not all(bool(value.isfinite().all()) for value in _floats((call.positional, dict(call.arguments)))):
            return None  # the latents are spoilt already
        module: Any = copy.copy(call.module)
        module.__dict__["_modules"] = self._copied(component, call.module, dtype)
        positional, arguments = pytree.tree_map(_single, (call.positional, dict(call.arguments)))
        settings = (*call.settings, ("precision", "float32"))
        return replace(call, module=module, positional=positional, arguments=arguments, autocast=(), settings=settings)

    @contextmanager
    def used(self, component: str) -> Iterator[None]:
        """While inside, the copy that `finer` has just taken is not idle."""
        self._users[component] += 1
        try:
            yield
        finally:
            self._users[component] -= 1

    def idle_bytes(self) -> int:
        """What copies hold that no call uses."""
        return sum(size for component, size in list(self._sizes.items()) if not self._users[component])

    def trim(self) -> int:
        """Drop those. Returns the bytes."""
        size = self.idle_bytes()
        for component in [each for each in self._copies if not self._users[each]]:
            del self._copies[component]
            self._ledger.leave(self._device, self._owner, "weights", self._sizes.pop(component))
        return size

    def _copied(self, component: str, module: nn.Module, dtype: torch.dtype) -> dict[str, nn.Module]:
        if component not in self._copies:
            parts = {name: part for name, part in module.named_children() if name not in _ENCODING}
            values = [value for part in parts.values() for value in (*part.parameters(), *part.buffers())]
            size = sum(4 * value.numel() for value in values)
            if size > self._ledger.free(self._device):
                self._spare()
            try:
                self._ledger.enter(self._device, self._owner, "weights", size)
            except DoesNotFit as error:
                raise GenerationFailed(
                    f"the {component} overflowed in {_name(dtype)}, and there is no memory for its float32 copy "
                    f"({format_bytes(size)}); load the model with dtype float32 (--dtype), or allow more (--memory)"
                ) from error
            try:
                self._copies[component] = {name: _copy(part, self._device) for name, part in parts.items()}
            except BaseException:
                self._ledger.leave(self._device, self._owner, "weights", size)
                raise
            self._sizes[component] = size
        return self._copies[component]


def _copy(module: nn.Module, device: str) -> nn.Module:
    """In float32, on the device, also where weights come and go: the copy keeps its own."""
    made = copy.deepcopy(module)
    for part in made.modules():
        part._forward_pre_hooks.clear()
        part._forward_hooks.clear()
        part._forward_hooks_always_called.clear()
    return made.float().to(device)


def is_useless(decoded: Any) -> bool:
    """Whether a picture in [-1, 1], as a decoder returns it, has NaN or infinity or is all black. Spectrograms of
    sounds, which have one channel and another range, may be dark."""
    return any(
        not bool(value.isfinite().all()) or (value.shape[1:2] != (1,) and bool((value < _DARKEST).all()))
        for value in _floats(decoded)
    )


def advice(models: Iterable[nn.Module]) -> str:
    """What to do about a picture that is none."""
    if any(_half(model) is not None for model in models):
        return "try float32 (--dtype), or another seed"
    return "try another seed, scheduler or number of steps"


def _half(module: nn.Module) -> torch.dtype | None:
    return next((value.dtype for value in module.parameters() if value.dtype in _HALVES), None)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _floats(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _single(leaf: Any) -> Any:
    return leaf.float() if isinstance(leaf, Tensor) and leaf.dtype in _HALVES else leaf
