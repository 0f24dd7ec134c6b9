"""Large pictures in tiles that overlap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Part of one dimension."""

    start: int
    end: int
    before: int
    """How many pixels it shares with the span before it."""
    behind: int


def spans(length: int, size: int, overlap: int) -> list[Span]:
    """Spans of `size` that cover [0, length), neighbours sharing `overlap` pixels at least: the last one is moved back,
    so that all are of one size. One span where that suffices. 0 <= overlap < size."""
    if length <= size:
        return [Span(start=0, end=length, before=0, behind=0)]
    starts = [*range(0, length - size, size - overlap), length - size]
    found = []
    for place, start in enumerate(starts):
        before = starts[place - 1] + size - start if place else 0
        behind = start + size - starts[place + 1] if place + 1 < len(starts) else 0
        found.append(Span(start=start, end=start + size, before=before, behind=behind))
    return found


def tiles(height: int, width: int, size: int, overlap: int) -> Iterator[tuple[Span, Span]]:
    """Rows and columns of each tile."""
    for down in spans(height, size, overlap):
        for right in spans(width, size, overlap):
            yield down, right


class Canvas:
    """The large result. Where tiles overlap it fades from one to the other, linearly, in the middle half of
    the overlap."""

    def __init__(self, height: int, width: int, channels: int, scale: int) -> None:
        """`height` and `width` are those of what goes in."""
        self._sum = numpy.zeros((height * scale, width * scale, channels), dtype=numpy.float32)
        self._weight = numpy.zeros((height * scale, width * scale, 1), dtype=numpy.float32)
        self._scale = scale

    def put(self, rows: Span, columns: Span, tile: Any) -> None:
        """tile: numpy float32 (height, width, channels), of the spans times the scale."""
        weight = _ramp(rows, self._scale)[:, None, None] * _ramp(columns, self._scale)[None, :, None]
        place = tuple(slice(span.start * self._scale, span.end * self._scale) for span in (rows, columns))
        self._sum[place] += tile * weight
        self._weight[place] += weight

    def picture(self) -> Any:
        """numpy float32 (height, width, channels)."""
        self._sum /= self._weight
        return self._sum


def _ramp(span: Span, scale: int) -> Any:
    found = numpy.ones((span.end - span.start) * scale, dtype=numpy.float32)
    for count, turn in ((span.before * scale, 1), (span.behind * scale, -1)):
        if count:
            # What lies at the edge of a tile was made without its neighbourhood, so it counts for nothing.
            edge = count // 4
            steps = numpy.arange(count - 2 * edge, dtype=numpy.float32) + 0.5
            ramp = numpy.pad(steps / len(steps), (edge, edge), constant_values=(0.0, 1.0))
            found[::turn][:count] *= ramp
    return found
