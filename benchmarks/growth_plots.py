"""The pictures of `growth.py`. They need matplotlib, which nothing else here does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SERIES = {"streams": "requests at the same time", "context": "tokens of context"}
Rows = Sequence[Mapping[str, Any]]
Bounds = Mapping[tuple[str, str], float]


def plot(rows: Rows, bounds: Bounds, title: str, folder: Path) -> list[Path]:
    """One picture for each series: tokens a second above, milliseconds a token below; decoding left, prefill right. All
    axes are logarithmic, so that growth is a slope. `bounds`: as in `growth.BOUNDS`. Returns the files."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit("plots need matplotlib: pip install 'kamado[bench]'") from None
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, label in SERIES.items():
        chosen = [row for row in rows if row["series"] == name]
        if not chosen:
            continue
        figure = Figure(figsize=(12, 9), layout="constrained")
        figure.suptitle(f"{title}\nagainst {label}")
        panels = figure.subplots(2, 2, sharex=True)
        for column, draw in enumerate((_decoding, _prefill)):
            draw(panels[0][column], panels[1][column], chosen, bounds)
        for panel in panels.flat:
            _axes(panel, [row["size"] for row in chosen])
        for panel in panels[1]:
            panel.set_xlabel(label)
        path = folder / f"growth-{name}.png"
        figure.savefig(path, dpi=110)
        paths.append(path)
    return paths


def _decoding(speed: Any, latency: Any, rows: Rows, bounds: Bounds) -> None:
    sizes, series = [row["size"] for row in rows], rows[0]["series"]
    speed.set_title("decoding")
    speed.plot(sizes, [row["decode_tokens_per_s"] for row in rows], "o-", label="all requests together")
    if all(row.get("limit_tokens_per_s") for row in rows):
        limits = [row["limit_tokens_per_s"] for row in rows]
        speed.plot(sizes, limits, ":", color="grey", label="if only the memory's measured rate counted")
    speed.set_ylabel("tokens a second")
    times = [row["decode_ms"] for row in rows]
    latency.plot(sizes, times, "o-", label="median")
    latency.plot(sizes, [row["decode_ms_p99"] for row in rows], "^:", label="99th percentile")
    _bound(latency, sizes, times[0], bounds[series, "decode"])
    latency.set_ylabel("ms between tokens of one request")


def _prefill(speed: Any, latency: Any, rows: Rows, bounds: Bounds) -> None:
    sizes, series = [row["size"] for row in rows], rows[0]["series"]
    speed.set_title("prefill")
    speed.plot(sizes, [row["prefill_tokens_per_s"] for row in rows], "o-", label="all requests together")
    speed.set_ylabel("prompt tokens a second")
    times = [row["prefill_ms"] for row in rows]
    latency.plot(sizes, times, "o-", label="time to the last first token, by tokens read")
    # What is bounded is the time of all tokens.
    _bound(latency, sizes, times[0], bounds[series, "prefill"] - 1)
    latency.set_ylabel("ms a prompt token")


def _bound(panel: Any, sizes: Sequence[float], first: float, exponent: float) -> None:
    label = "must not be steeper than this" if exponent else "must not rise"
    panel.plot(sizes, [first * (size / sizes[0]) ** exponent for size in sizes], "--", color="grey", label=label)


def _axes(panel: Any, sizes: Sequence[int]) -> None:
    """Logarithmic, with plain numbers, and at least a factor of four high: less is noise made large."""
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter

    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xticks(sizes, [str(size) for size in sizes])
    panel.xaxis.set_minor_locator(NullLocator())
    low, high = panel.get_ylim()
    stretch = max(2 / (high / low) ** 0.5, 1.0)
    panel.set_ylim(low / stretch, high * stretch)
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.grid(visible=True, alpha=0.3)
    panel.legend()
