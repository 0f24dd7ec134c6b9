"""Results of encoders, kept for calls that come again: the empty negative prompt, one prompt with fifty seeds.

Which calls are equal is told by content: what the component is set to, its adapters, and every argument, of tensors the
bytes. Nobody gets a tensor that is kept or that another one got, since pipelines write into theirs. What drew random
numbers on the way is neither kept nor shared.

A result that a call gave alone serves every equal call: it is, bit for bit, what that one would give. One out of a
forward that several calls shared differs by rounding, so it serves only those that would share a forward as well.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ...errors import DoesNotFit
from ...memory.ledger import Ledger
from ...memory.shortage import is_shortage
from .stacking import PLAIN, digest
from .standin import Identity, ModelCall

LEDGER_KIND = "outputs"

Make = Callable[[Sequence[int]], tuple[Sequence[Any], bool]]
"""Makes the calls of these numbers: their results, and whether they shared a forward."""


@dataclass(frozen=True, slots=True)
class _Kept:
    result: Any
    nbytes: int
    is_exact: bool
    """Whether the call was made alone."""


class KeptOutputs:
    """The results of all encoders of one loaded model. Of the loop's thread; the figures are anybody's."""

    def __init__(self, ledger: Ledger, device: str, owner: str, *, most_bytes: int) -> None:
        """`owner`: of the entries in the ledger."""
        self._ledger = ledger
        self._device = device
        self._owner = owner
        self._most_bytes = most_bytes
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()
        """Least recently used first."""
        self._nbytes = 0
        self._hits = 0
        self._made = 0

    def results(self, calls: Sequence[ModelCall], component: Hashable, make: Make) -> list[tuple[Any, bool]]:
        """Of each call its result, and whether that came out of a forward that several shared. The calls agree in all
        but the tensors that they would be stacked by. `component`: which it is and what is changed in it, equal where
        that is the same at any time; None: not known, so nothing is kept."""
        equal: dict[Hashable, list[int]] = {}
        for number, call in enumerate(calls):
            equal.setdefault(content_of(call) or number, []).append(number)
        lasting = None if component is None else _lasting(calls[0])
        known = equal.keys() - set(range(len(calls))) if lasting is not None else set()
        keys = {content: (component, lasting, content) for content in known}
        found = {content: self._kept.get(key) for content, key in keys.items()}
        missing = [content for content in equal if (kept := found.get(content)) is None or not kept.is_exact]
        if len(missing) > 1:  # they would share a forward: so may those do that did so before
            missing = [content for content in missing if found.get(content) is None]
        given: list[tuple[Any, bool]] = [(None, False)] * len(calls)
        for content in equal.keys() - set(missing):
            kept = found[content]
            assert kept is not None
            self._kept.move_to_end(keys[content])
            for number in equal[content]:
                given[number] = copied(kept.result), not kept.is_exact
        self._hits += len(calls) - len(missing)
        self._made += len(missing)
        if missing:
            self._make({content: equal[content] for content in missing}, keys, make, given)
        return given

    def figures(self) -> dict[str, int]:
        """For `Runtime.stats`."""
        return {"made": self._made, "again": self._hits, "kept": len(self._kept), "bytes": self._nbytes}

    def idle_bytes(self) -> int:
        """What `trim` would give back: all of it is idle."""
        return self._nbytes

    def trim(self) -> int:
        """Drop everything. Returns the bytes."""
        size = self._nbytes
        while self._kept:
            self._drop_oldest()
        return size

    def close(self) -> None:
        """Drop everything; the ledger is left by others."""
        self._kept.clear()
        self._nbytes = 0

    def _make(
        self,
        equal: Mapping[Hashable, Sequence[int]],
        keys: Mapping[Hashable, Hashable],
        make: Make,
        given: list[tuple[Any, bool]],
    ) -> None:
        """Make one call of each kind of equal ones, and fill `given`."""
        firsts = [numbers[0] for numbers in equal.values()]
        before = _random_state(self._device)
        results, joined = make(firsts)
        drew = not all(map(torch.equal, before, _random_state(self._device)))
        for (content, numbers), result in zip(equal.items(), results, strict=True):
            given[numbers[0]] = result, joined
            nbytes = None if drew else size_of(result)
            for number in numbers[1:]:
                if nbytes is None:
                    (own,), _ = make([number])
                    given[number] = own, False
                else:
                    given[number] = copied(result), joined
            if nbytes is not None and content in keys:
                self._keep(keys[content], result, nbytes, is_exact=not joined)

    def _keep(self, key: Hashable, result: Any, nbytes: int, *, is_exact: bool) -> None:
        if key in self._kept:
            self._drop(key)
        if nbytes > self._most_bytes:
            return
        while self._nbytes + nbytes > self._most_bytes:
            self._drop_oldest()
        try:
            self._ledger.enter(self._device, self._owner, LEDGER_KIND, nbytes)
        except DoesNotFit:
            return
        try:
            kept = _Kept(copied(result), nbytes, is_exact)
        except BaseException as error:
            self._ledger.leave(self._device, self._owner, LEDGER_KIND, nbytes)
            if is_shortage(error):
                return  # no reason to lose the result itself
            raise
        self._kept[key] = kept
        self._nbytes += nbytes

    def _drop_oldest(self) -> None:
        self._drop(next(iter(self._kept)))

    def _drop(self, key: Hashable) -> None:
        size = self._kept.pop(key).nbytes
        self._nbytes -= size
        self._ledger.leave(self._device, self._owner, LEDGER_KIND, size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """How the results of one component are kept."""

    outputs: KeptOutputs
    component: str
    methods: Collection[str]
    """Those whose results follow from weights and arguments alone."""
    lasting: Callable[[Any], Hashable | None]
    """`lasting(state)`: see ModelLane. Equal for states in which the component computes the same, at any time; None:
    not known."""

    def results(self, calls: Sequence[ModelCall], state: Any, make: Make) -> list[tuple[Any, bool]]:
        """See KeptOutputs. The calls are for the same `state`."""
        if calls[0].method not in self.methods:
            results, joined = make(range(len(calls)))
            return [(result, joined) for result in results]
        lasting = self.lasting(state)
        return self.outputs.results(calls, None if lasting is None else (self.component, lasting), make)


def content_of(call: ModelCall) -> Hashable | None:
    """Equal for calls whose arguments are the same to the last bit. None: there is something in them that may change,
    or is not known."""
    if call.positional:
        return None
    parts = []
    for name, value in sorted(call.arguments.items()):
        leaves, spec = pytree.tree_flatten(value)
        found = tuple(map(_content_of_leaf, leaves))
        if None in found:
            return None
        parts.append((name, str(spec), found))
    return tuple(parts)


def _content_of_leaf(leaf: Any) -> Hashable | None:
    if type(leaf) is Tensor and leaf.layout == torch.strided:
        # Kernels may be chosen by how a tensor lies.
        return leaf.dtype, leaf.device, tuple(leaf.shape), leaf.stride(), digest(leaf)
    # 1, 1.0 and True are equal, 0.0 and -0.0 too.
    return (type(leaf), repr(leaf)) if isinstance(leaf, PLAIN) else None


def _lasting(call: ModelCall) -> Hashable | None:
    """How the call is made, equal where that is the same at any time. None: it depends on an object, and a later one
    may have its number."""
    if call.module.training or any(isinstance(value, Identity) for _, value in call.settings):
        return None
    # Sums that several threads make together are rounded otherwise.
    return call.method, call.settings, call.autocast, call.num_by_place, torch.get_num_threads()


def size_of(result: Any) -> int | None:
    """Bytes of a result's tensors; None for one that `copied` cannot copy."""
    tensors: list[Tensor] = []
    for leaf in pytree.tree_leaves(result):
        parts = _tensors_of(leaf)
        if parts is None:
            return None
        tensors += parts
    own = {_place(tensor): tensor for tensor in tensors if tensor.numel()}
    if len({tensor.untyped_storage().data_ptr() for tensor in own.values()}) < len(own):
        return None  # writing into one of them changes another
    return sum(tensor.nbytes for tensor in own.values())


def copied(result: Any) -> Any:
    """The same values in tensors of its own; what is one tensor stays one. Only of what `size_of` knows."""
    made: dict[Hashable, Tensor] = {}

    def own(tensor: Tensor) -> Tensor:
        place = _place(tensor)
        if place not in made:
            made[place] = tensor.clone()
        return made[place]

    def leaf_of(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return own(leaf)
        if _is_distribution(leaf):
            return type(leaf)(own(leaf.parameters), leaf.deterministic)
        if _is_cache(leaf):
            twin = copy.copy(leaf)
            twin.layers = [copy.copy(layer) for layer in leaf.layers]
            for layer in twin.layers:
                vars(layer).update({name: own(value) for name, value in vars(layer).items() if type(value) is Tensor})
            return twin
        return leaf

    return pytree.tree_map(leaf_of, result)


def _tensors_of(leaf: Any) -> list[Tensor] | None:
    """All that is in a leaf and may be written into; None where that is not known."""
    if isinstance(leaf, Tensor):
        return [leaf] if type(leaf) is Tensor and leaf.layout == torch.strided else None
    if _is_distribution(leaf):
        return [leaf.parameters]
    if _is_cache(leaf):
        return [value for layer in leaf.layers for value in vars(layer).values() if type(value) is Tensor]
    return [] if isinstance(leaf, PLAIN) else None


def _place(tensor: Tensor) -> Hashable:
    """Equal for tensors that are the same memory in the same order."""
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def _is_distribution(leaf: Any) -> bool:
    """Whether it is diffusers' DiagonalGaussianDistribution: the latents of a picture, still to be drawn."""
    return type(leaf).__name__ == "DiagonalGaussianDistribution" and isinstance(leaf.parameters, Tensor)


def _is_cache(leaf: Any) -> bool:
    """Whether it is transformers' Cache, of layers with tensors and plain values."""
    layers = getattr(leaf, "layers", None)
    return isinstance(layers, list) and all(hasattr(layer, "keys") and _is_plain_layer(layer) for layer in layers)


def _is_plain_layer(layer: Any) -> bool:
    return all(type(value) is Tensor or isinstance(value, PLAIN) for value in vars(layer).values())


def _random_state(device: str) -> list[Tensor]:
    """Of the generators that everybody shares."""
    states = [torch.default_generator.get_state()]
    if device.startswith("cuda"):
        states.append(torch.cuda.get_rng_state(device))
    return states
