"""What a pipeline has learned of its temporary tensors: measured while pictures are made, used by plans. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from kamado.checkpoint.types import Checkpoint
from kamado.memory.learned import ESTIMATED, MEASURED, REACH, SCALED, PeakKeys, Point, fingerprint
from kamado.memory.plan import Plan
from kamado.quant import Quant

from .parts import component_tensors
from .peaks import DTYPE_BYTES, component_peak, is_autoencoder, tiles_kept

if TYPE_CHECKING:
    from kamado.tasks.library.lane import Measurement

_METHODS = ("forward", "encode", "decode")
_NUMBERS = 4
"""Of a shape."""


def peak_keys(checkpoint: Checkpoint, name: str, *, dtype: str, quant: Quant | None, device: str) -> PeakKeys:
    """Whose peaks those of a component are. Shapes are (width, height, rows, positions): of the picture in pixels, and
    of the call, see `Form`."""
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
            method: [(point.shape[2], point.shape[3]) for point in _sound(found)] for method, found in points.items()
        }

    def note(self, size: tuple[int, int], measured: Iterable[tuple[str, Measurement]]) -> None:
        """Keep what was measured while a picture of `size` (width, height) was made."""
        points: dict[tuple[str, str], list[Point]] = {}
        for component, found in measured:
            if component in self._keys:
                point = Point((*size, found.rows, found.positions), found.bytes)
                points.setdefault((component, found.method), []).append(point)
        for (component, method), several in points.items():
            self._keys[component].note(several, method)


def lane_peak(
    checkpoint: Checkpoint, name: str, width: int, height: int, *, dtype: str, quant: Quant | None, device: str
) -> tuple[int, str]:
    """Bytes of temporary tensors in one call of a component for one picture of this size in pixels, and how that is
    known: see `kamado.memory.learned`.

    A size that was not measured itself is scaled from the nearest one that was, as the estimates are to each other, if
    these differ by no more than a factor of REACH; a component whose estimate does not depend on the size needs none of
    that."""

    def estimate(size: Sequence[int]) -> int:
        return component_peak(checkpoint, name, size[0], size[1], DTYPE_BYTES[dtype])

    keys = peak_keys(checkpoint, name, dtype=dtype, quant=quant, device=device)
    found = {}
    for method in _METHODS:
        if points := _sound(keys.points(method)):
            found[method] = _scaled(_by_size(points), (width, height), estimate)
    most = max((peak for peak, _ in found.values()), default=0)
    main = found.get("decode" if is_autoencoder(name) else "forward")
    return (max(most, estimate((width, height))), ESTIMATED) if main is None else (most, main[1])


def activation_bytes(checkpoint: Checkpoint, plan: Plan, width: int, height: int, tile: int | None = None) -> int:
    """The largest peak of any component, for one picture of this size. Autoencoders work in tiles with sides of `tile`
    pixels if that is given."""
    peaks = []
    for lane in plan.lanes:
        size, kept = (width, height), 0
        if tile is not None and is_autoencoder(lane.lane):
            size, kept = (min(width, tile), min(height, tile)), tiles_kept(width, height, DTYPE_BYTES[lane.dtype])
        peak, _ = lane_peak(checkpoint, lane.lane, *size, dtype=lane.dtype, quant=plan.quant, device=plan.device)
        peaks.append(kept + peak)
    return max(peaks, default=0)


def _sound(points: Iterable[Point]) -> list[Point]:
    """Those of the length that such shapes have."""
    return [point for point in points if len(point.shape) == _NUMBERS]


def _by_size(points: Iterable[Point]) -> dict[tuple[int, int], int]:
    """The largest peak of a picture of each size: guidance, say, takes more rows."""
    found: dict[tuple[int, int], int] = {}
    for point in points:
        size = point.shape[0], point.shape[1]
        found[size] = max(found.get(size, 0), point.bytes)
    return found


def _scaled(
    peaks: Mapping[tuple[int, int], int], size: tuple[int, int], estimate: Callable[[Sequence[int]], int]
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
