"""Peaks of temporary tensors that were measured, kept from run to run, and what follows from them for other shapes.

    KAMADO_HOME/
      peaks.json      {"format": 1, "peaks": {KEY: [[[SHAPE, ...], BYTES], ...]}}, newest key last

What cannot be read is as if it were not there, and what cannot be written is known to this process alone. Two processes
that write at once lose at most each other's addition, which is measured again.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from ..checkpoint.store import default_home
from ..checkpoint.strict_json import read_json_object
from ..checkpoint.types import TensorEntry
from ..errors import KamadoError
from ..files import replacing
from .devices import resolve_device

MEASURED, SCALED, ESTIMATED = "measured", "scaled", "estimated"
"""Where a figure comes from: this shape was measured; a similar one was; none was."""
MAX_KEYS = 256
MAX_POINTS = 16
"""Of a key."""
REACH = 4
"""Estimates of two shapes whose sizes differ by more than this factor need not be wrong in the same way."""
_MAX_NUMBER = 1 << 53
_FORMAT = 1
_LIBRARIES = ("kamado", "torch", "transformers", "diffusers")
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Point:
    """One measured forward."""

    shape: tuple[int, ...]
    """What its kind of lane says of sizes; of one length for one key."""
    bytes: int


class PeakBook:
    """What is known, in one file. Thread safe. Never raises for the sake of the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._unwritten: dict[str, tuple[Point, ...]] = {}
        self._last: tuple[Any, dict[str, tuple[Point, ...]]] = (None, {})
        """What the file held, and what said that it was this file."""

    def points(self, key: str) -> tuple[Point, ...]:
        """What was measured of `key`, the newest last."""
        with _lock:
            return self._read().get(key, ())

    def note(self, key: str, points: Iterable[Point]) -> None:
        """Keep `points` as the newest of `key`. Of one shape, only the newest is kept; of too many, the newest ones and
        the largest."""
        with _lock:
            known = dict(self._read())
            known[key] = _merged(known.pop(key, ()), points)
            newest = dict(list(known.items())[-MAX_KEYS:])
            self._unwritten = {} if self._write(newest) else newest

    def _read(self) -> dict[str, tuple[Point, ...]]:
        try:
            status = os.stat(self.path)
            mark = status.st_mtime_ns, status.st_size, status.st_ino
        except OSError:
            return self._unwritten
        if self._last[0] != mark:
            found: Mapping[str, Any] = {}
            with suppress(KamadoError, OSError):
                found = read_json_object(self.path)
            peaks = found.get("peaks") if found.get("format") == _FORMAT else None
            peaks = peaks if isinstance(peaks, dict) else {}
            self._last = mark, {key: sound for key, value in peaks.items() if (sound := _sound(value))}
        return self._last[1] | self._unwritten

    def _write(self, known: Mapping[str, Sequence[Point]]) -> bool:
        peaks = {key: [[list(point.shape), point.bytes] for point in points] for key, points in known.items()}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as file:
                file.write(json.dumps({"format": _FORMAT, "peaks": peaks}).encode())
        except OSError:
            return False
        return True


@lru_cache(maxsize=8)
def book_at(path: Path) -> PeakBook:
    """The book of this process for a file."""
    return PeakBook(path)


def peaks_path() -> Path:
    """Where measured peaks are kept."""
    return default_home() / "peaks.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakKeys:
    """Whose peaks: of what is equal here, equal shapes lay out equally much."""

    fingerprint: str
    """See `fingerprint`."""
    lane: str
    dtype: str
    quant: str
    """As JSON."""
    device: str

    def key(self, method: str = "forward") -> str:
        """Key in a book."""
        parts = (self.fingerprint, self.lane, self.dtype, self.quant, _hardware(self.device), _versions(), method)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]

    def points(self, method: str = "forward") -> tuple[Point, ...]:
        """What is known of them."""
        with suppress(OSError, RuntimeError):  # there is no such folder, not even by name
            return book_at(peaks_path()).points(self.key(method))
        return ()

    def note(self, points: Iterable[Point], method: str = "forward") -> None:
        """Keep what was measured."""
        with suppress(OSError, RuntimeError):
            book_at(peaks_path()).note(self.key(method), points)


def fingerprint(config: Mapping[str, Any], tensors: Iterable[TensorEntry]) -> str:
    """Equal for models of one build: the values of weights do not matter, so a fine-tuned model knows what the model
    knows that it was made from."""
    names = {key: value for key, value in config.items() if key == "_class_name" or not key.startswith("_")}
    names.pop("transformers_version", None)
    count = numel = 0
    dtypes: set[str] = set()
    for entry in tensors:
        count, numel = count + 1, numel + entry.numel
        dtypes.add(entry.dtype)
    told = json.dumps([names, sorted(dtypes), count, numel], sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()


@dataclass(slots=True)
class Learning:
    """What one loaded lane learns of shapes whose size is one number, its estimate. Not thread safe."""

    keys: PeakKeys
    estimate: Callable[..., int]
    """Bytes by a shape."""
    asked: int
    """How many numbers of a shape, the first ones, say what was asked for; see `learned`."""
    largest: int = -1
    """Estimate of the largest shape that was measured; -1: not read yet."""
    known: tuple[Point, ...] | None = None
    """What `peak` goes by, once it was asked: figures of one plan must agree."""

    def wants(self, shape: tuple[int, ...]) -> bool:
        """Whether to measure a forward: it is a good deal larger than any before."""
        if self.largest < 0:
            usable = [point for point in self.keys.points() if len(point.shape) == len(shape)]
            self.largest = max((self.estimate(*point.shape) for point in usable), default=0)
        return self.estimate(*shape) * 8 > self.largest * 9

    def peak(self, shape: tuple[int, ...]) -> tuple[int, str]:
        """See `learned`."""
        if self.known is None:
            self.known = self.keys.points()
        return learned(self.known, shape, self.estimate, self.asked)

    def note(self, shape: tuple[int, ...], bytes: int) -> None:
        """Keep what was measured."""
        self.largest = max(self.largest, self.estimate(*shape))
        self.keys.note([Point(shape, bytes)])


def learned(
    points: Sequence[Point], shape: tuple[int, ...], estimate: Callable[..., int], asked: int
) -> tuple[int, str]:
    """Bytes for a shape, and where they come from: one of MEASURED, SCALED, ESTIMATED.

    The estimate knows how peaks grow; the largest measured shape says by which factor it is wrong there. That factor
    holds for shapes up to REACH times larger. Beyond, it only ever makes the figure larger, so that the figure of a
    larger shape is never smaller. Nor is it ever smaller than what was measured where no more was asked for: of the
    first `asked` numbers of a shape, each. The others are what was made of that (padding)."""
    guess = estimate(*shape)
    same = [point.bytes for point in points if point.shape == shape]
    if same:
        return same[-1], MEASURED
    usable = [point for point in points if len(point.shape) == len(shape)]
    size, bytes = max(((estimate(*point.shape), point.bytes) for point in usable), default=(0, 0))
    if not size:
        return guess, ESTIMATED
    floor = max((point.bytes for point in usable if _is_within(point.shape[:asked], shape)), default=0)
    scaled = max(-(-guess * bytes // size), floor)
    return (scaled, SCALED) if guess <= REACH * size else (max(guess, scaled), ESTIMATED)


def _is_within(small: Sequence[int], large: Sequence[int]) -> bool:
    return all(one <= other for one, other in zip(small, large, strict=False))


def _merged(old: Sequence[Point], new: Iterable[Point]) -> tuple[Point, ...]:
    by_shape = {point.shape: point for point in old}
    for point in new:
        by_shape.pop(point.shape, None)
        by_shape[point.shape] = point
    points = list(by_shape.values())
    newest = points[-MAX_POINTS:]
    largest = max(points, key=lambda point: point.bytes, default=None)
    return tuple(newest) if largest is None or largest in newest else (largest, *newest[1:])


def _sound(value: Any) -> tuple[Point, ...]:
    """The points that are none of nonsense."""
    entries = value if isinstance(value, list) else []
    pairs = [entry for entry in entries[-MAX_POINTS:] if isinstance(entry, list) and len(entry) == 2]
    return tuple(
        Point(tuple(shape), size)
        for shape, size in pairs
        if isinstance(shape, list) and len(shape) <= MAX_POINTS and all(map(_is_count, shape)) and _is_count(size)
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_NUMBER


@lru_cache(maxsize=16)
def _hardware(device: str) -> str:
    """Kernels, and with them their workspaces, differ from one GPU to another; those of CPUs take none."""
    return resolve_device(device).model if device.startswith("cuda") else device


@lru_cache(maxsize=1)
def _versions() -> str:
    return ",".join(map(_version, _LIBRARIES))


def _version(package: str) -> str:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return ""
