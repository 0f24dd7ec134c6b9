"""Which weights stay outside of a device that has not room for all, and are read when they are needed. Arithmetic.

What a library keeps in a list (`layers.3.`, `transformer_blocks.7.`) runs one after the other, so the members of such
lists are what weights are read by: while one runs, the next one is read.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

_PARTS = re.compile(r"[./]")
_LARGE = 8
"""A member of a list that has more than this part of all weights, and lists of its own, is taken by its members."""
WINDOW = 2
"""Blocks that are held while a model runs: the one that is used, and the one that is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What is held, and what is not."""

    outside: frozenset[str]
    """Names of the tensors that are read when they are needed."""
    outside_bytes: int
    window_bytes: int
    """Room on the device for those of them that are in use."""


NOTHING_OUTSIDE = Placement(outside=frozenset(), outside_bytes=0, window_bytes=0)


def place(groups: Sequence[Mapping[str, int]], room: int) -> Placement:
    """What stays outside so that the rest and the window take at most `room` bytes, or as little as can be.

    `groups`: bytes by name of tensor. Blocks of the first group go first, spread evenly, so that what is held computes
    while what is not held is read."""
    everything = sum(sum(sizes.values()) for sizes in groups)
    outside: list[str] = []
    outside_bytes = largest = 0
    least, best = everything, (0, 0, 0)
    for sizes in groups:
        found = blocks(sizes)
        for index in spread(len(found)):
            if least <= room:
                break
            size = sum(sizes[name] for name in found[index])
            outside += found[index]
            outside_bytes += size
            largest = max(largest, size)
            window = WINDOW * largest
            if everything - outside_bytes + window < least:  # a large block may cost more than it brings
                least = everything - outside_bytes + window
                best = len(outside), outside_bytes, window
    count, outside_bytes, window = best
    return Placement(outside=frozenset(outside[:count]), outside_bytes=outside_bytes, window_bytes=window)


def blocks(sizes: Mapping[str, int]) -> list[list[str]]:
    """The names that make up each member of a list; in the order of the lists, those by name."""
    return list(named_blocks(sizes).values())


def named_blocks(sizes: Mapping[str, int]) -> dict[str, list[str]]:
    """The same by the path of the member, with dots."""
    limit = sum(sizes.values()) // _LARGE
    found: dict[str, list[str]] = {}
    names = [(name, _PARTS.split(name)) for name in sizes]
    _collect(names, 0, lambda members: sum(sizes[name] for name, _ in members) > limit, found)
    return found


def same_blocks(chosen: frozenset[str], names: Iterable[str], others: Iterable[str]) -> frozenset[str]:
    """Of `others`, other names for what `names` names, those in the same blocks as `chosen` has of `names`."""
    first, second = blocks(dict.fromkeys(names, 1)), blocks(dict.fromkeys(others, 1))
    assert len(first) == len(second), f"{len(first)} blocks are called otherwise, but {len(second)} came of them"
    pairs = zip(first, second, strict=True)
    return frozenset(name for block, same in pairs if not chosen.isdisjoint(block) for name in same)


_Split = tuple[str, Sequence[str]]


def _collect(
    names: Sequence[_Split], depth: int, is_large: Callable[[Sequence[_Split]], bool], found: dict[str, list[str]]
) -> None:
    children: dict[str, list[_Split]] = defaultdict(list)
    for name, parts in names:
        if len(parts) > depth + 1:  # else it is a tensor of this very module
            children[parts[depth]].append((name, parts))
    for key in sorted(children, key=lambda key: (int(key) if key.isdigit() else -1, key)):
        if not key.isdigit():
            if key != "experts":  # which of them run is not known before, and libraries join them
                _collect(children[key], depth + 1, is_large, found)
            continue
        inner: dict[str, list[str]] = {}
        if is_large(children[key]):
            _collect(children[key], depth + 1, is_large, inner)
        path = ".".join(children[key][0][1][: depth + 1])
        found |= inner or {path: [name for name, _ in children[key]]}


def spread(count: int) -> list[int]:
    """The numbers below `count`, each beginning of the list about evenly spaced (van der Corput)."""
    bits = max(count - 1, 0).bit_length()
    return [index for index in (int(f"{i:0{max(bits, 1)}b}"[::-1], 2) for i in range(1 << bits)) if index < count]
