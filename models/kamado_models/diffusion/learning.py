"""What a pipeline has learned of its temporary tensors: measured while pictures are made, used by plans. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from kamado.checkpoint.types import Checkpoint
from kamado.memory.learned import ESTIMATED, MEASURED, REACH, SCALED, PeakKeys, Point, fingerprint
from kamado.memory.plan import Plan
from kamado.quant import Quant

from .extents import Extent, extent_of_key
from .parts import component_tensors
from .peaks import DTYPE_BYTES, component_peak, is_autoencoder, tiles_kept

if TYPE_CHECKING:
    from kamado.tasks.library.lane import Measurement

_METHODS = ("forward", "encode", "decode")
_NUMBERS = (4, 6)
"""Of a shape: of a picture's, and of what takes time."""


def peak_keys(checkpoint: Checkpoint, name: str, *, dtype: str, quant: Quant | None, device: str) -> PeakKeys:
    """Whose peaks those of a component are. Shapes are (width, height, rows, positions): of the picture in pixels, and
    of the call, see `Form`. What takes time has (width, height, frames, milliseconds, rows, positions)."""
    config, pipeline = checkpoint.metadata["components"].get(name, {}), checkpoint.config.get("_class_name")
    return PeakKeys(
        # How long its texts are, and how it is called, depends on the pipeline.
        fingerprint=fingerprint({"pipeline": pipeline, **config}, component_tensors(checkpoint, name).values()),
        lane=name,
        dtype=dtype,
        quant=json.dumps(None if quant is None else quant.as_json(), sort_keys=True),
        device=device,
    )


class PictureLearning:
    """What one loaded pipeline learns. One with weights outside of the device learns nothing: they come and go during
    a call."""

    def __init__(self, checkpoint: Checkpoint, plan: Plan) -> None:
        self._keys = {
            lane.lane: peak_keys(checkpoint, lane.lane, dtype=lane.dtype, quant=plan.quant, device=plan.device)
            for lane in plan.lanes
            if not plan.outside_bytes
        }

    def known(self, component: str) -> dict[str, list[tuple[int, int]]]:
        """(rows, positions) of the calls that were measured, by method."""
        if component not in self._keys:
            return {}
        points = {method: self._keys[component].points(method) for method in _METHODS}
        return {
            method: [(point.shape[-2], point.shape[-1]) for point in _sound(found)] for method, found in points.items()
        }

    def note(self, extent: Extent, measured: Iterable[tuple[str, Measurement]]) -> None:
        """Keep what was measured while something of this size was made."""
        points: dict[tuple[str, str], list[Point]] = {}
        for component, found in measured:
            if component in self._keys:
                point = Point((*extent.key, found.rows, found.positions), found.bytes)
                points.setdefault((component, found.method), []).append(point)
        for (component, method), several in points.items():
            self._keys[component].note(several, method)


def lane_peak(
    checkpoint: Checkpoint, name: str, extent: Extent, *, dtype: str, quant: Quant | None, device: str
) -> tuple[int, str]:
    """Bytes of temporary tensors in one call of a component for one answer of this size, and how that is known: see
    `kamado.memory.learned`.

    A size that was not measured itself is scaled from the nearest one that was, as the estimates are to each other, if
    these differ by no more than a factor of REACH; a component whose estimate does not depend on the size needs none of
    that."""

    def estimate(key: tuple[int, ...]) -> int:
        return component_peak(checkpoint, name, extent_of_key(key), DTYPE_BYTES[dtype])

    keys = peak_keys(checkpoint, name, dtype=dtype, quant=quant, device=device)
    found = {}
    for method in _METHODS:
        if points := _sound(keys.points(method)):
            found[method] = _scaled(_by_size(points), extent.key, estimate)
    most = max((peak for peak, _ in found.values()), default=0)
    main = found.get("decode" if is_autoencoder(name) else "forward")
    return (max(most, estimate(extent.key)), ESTIMATED) if main is None else (most, main[1])


def activation_bytes(checkpoint: Checkpoint, plan: Plan, extent: Extent, tile: int | None = None) -> int:
    """The largest peak of any component, for one answer of this size. Autoencoders work in tiles with sides of `tile`
    pixels if that is given."""
    peaks = []
    for lane in plan.lanes:
        size, kept = extent, 0
        if tile is not None and is_autoencoder(lane.lane) and not extent.seconds:
            size = replace(extent, width=min(extent.width, tile), height=min(extent.height, tile))
            kept = extent.frames * tiles_kept(extent.width, extent.height, DTYPE_BYTES[lane.dtype])
        peak, _ = lane_peak(checkpoint, lane.lane, size, dtype=lane.dtype, quant=plan.quant, device=plan.device)
        peaks.append(kept + peak)
    return max(peaks, default=0)


def _sound(points: Iterable[Point]) -> list[Point]:
    """Those of the length that such shapes have."""
    return [point for point in points if len(point.shape) in _NUMBERS]


def _by_size(points: Iterable[Point]) -> dict[tuple[int, ...], int]:
    """The largest peak of an answer of each size (see Extent.key): guidance, say, takes more rows."""
    found: dict[tuple[int, ...], int] = {}
    for point in points:
        size = point.shape[:-2]
        found[size] = max(found.get(size, 0), point.bytes)
    return found


def _scaled(
    peaks: Mapping[tuple[int, ...], int], size: tuple[int, ...], estimate: Callable[[tuple[int, ...]], int]
) -> tuple[int, str]:
    if size in peaks:
        return peaks[size], MEASURED
    guess = max(estimate(size), 1)
    guesses = {other: max(estimate(other), 1) for other in peaks}
    nearest = min(peaks, key=lambda other: abs(math.log(guesses[other] / guess)))
    scaled = -(-peaks[nearest] * guess // guesses[nearest])
    if guesses[nearest] == guess:
        return scaled, MEASURED
    near = guess <= REACH * guesses[nearest] and guesses[nearest] <= REACH * guess
    return (scaled, SCALED) if near else (max(scaled, guess), ESTIMATED)
