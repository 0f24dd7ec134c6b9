"""What models learn of their temporary tensors: measured while requests run, used by plans. No torch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from kamado.checkpoint.types import Checkpoint
from kamado.memory.learned import ESTIMATED, MEASURED, PeakKeys, Point, fingerprint
from kamado.quant import Quant

from .kinds import Part

if TYPE_CHECKING:
    from kamado.tasks.library.lane import Measurement

_METHOD = "any"
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def peak_keys(
    checkpoint: Checkpoint, name: str, part: Part, *, dtype: str, quant: Quant | None, device: str
) -> PeakKeys:
    """Whose peaks those of a component are. Shapes are (rows, positions), see `kamado.tasks.library.stacking.Form`."""
    return PeakKeys(
        fingerprint=fingerprint(checkpoint.config, part.tensors.values()),
        lane=name,
        dtype=dtype,
        quant=json.dumps(None if quant is None else quant.as_json(), sort_keys=True),
        device=device,
    )


def lane_peak(
    checkpoint: Checkpoint, name: str, part: Part, *, dtype: str, quant: Quant | None, device: str
) -> tuple[int, str]:
    """Bytes of temporary tensors of a component, and how that is known: the most that was measured of any call, or the
    estimate of its kind."""
    points = peak_keys(checkpoint, name, part, dtype=dtype, quant=quant, device=device).points(_METHOD)
    if points:
        return max(point.bytes for point in points), MEASURED
    return part.activation_bytes(_BYTES[dtype]), ESTIMATED


class PartLearning:
    """What one lane learns."""

    def __init__(self, keys: PeakKeys | None) -> None:
        """None: nothing is learned."""
        self._keys = keys
        self._largest = max((point.bytes for point in keys.points(_METHOD)), default=0) if keys is not None else 0

    def note(self, found: Measurement) -> None:
        """Keep what was measured, if it is the most so far."""
        self.note_bytes(found.rows, found.positions, found.bytes)

    def note_bytes(self, rows: int, positions: int, size: int) -> None:
        """The same, of a call that has no form."""
        if self._keys is not None and size > self._largest:
            self._largest = size
            self._keys.note([Point((rows, positions), size)], _METHOD)
