"""The table of `kamado bench` for sounds, videos, vectors and whatever else is neither text nor a diffusion model's
picture."""

from __future__ import annotations

from collections.abc import Sequence

from ..bench.options import Row
from .table import format_table

_COLUMNS = {
    "inputs": "inputs",
    "tokens": "tokens",
    "frames": "frames",
    "seconds": "seconds",
    "steps": "steps",
    "batch": "at once",
    "steps_per_s": "steps/s",
    "frames_per_s": "frames/s",
    "inputs_per_s": "inputs/s",
    "tokens_per_s": "tokens/s",
    "real_time_factor": "x real time",
    "s_per_answer": "s/answer",
    "stddev": "\u00b1",
    "operations_G_s": "GOP/s",
}
"""Figures, with what stands above them."""


def media_table(rows: Sequence[Row]) -> list[str]:
    """A line for each row; figures that no row has are left out."""
    shown = [name for name in _COLUMNS if any(row.get(name) is not None for row in rows)]
    sized = any(row.get("width") for row in rows)
    shares = any(row.get("operations_utilization") is not None for row in rows)
    header = (
        "test",
        *(["size"] if sized else []),
        *(_COLUMNS[name] for name in shown),
        *(["of rate"] if shares else []),
    )
    cells = [
        (
            str(row["test"]),
            *([f"{row['width']} x {row['height']}" if row.get("width") else "-"] if sized else []),
            *(number(row.get(name)) for name in shown),
            *([share(row.get("operations_utilization"))] if shares else []),
        )
        for row in rows
    ]
    return format_table(header, cells, right=header[1:])


def number(value: float | None) -> str:
    """Three digits that count; a dash for what is not known."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 1000 or isinstance(value, int) else f"{value:.3g}"


def share(value: float | None) -> str:
    """A part of a whole in percent; a dash for what is not known."""
    return "-" if value is None else f"{value:.0%}"
