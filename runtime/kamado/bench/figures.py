"""Figures of samples."""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Sequence

Times = Sequence[float]
"""When something came, in seconds, ascending."""


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation of a sample; 0 for the deviation of a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value below which `share` of them lie, [0, 1], interpolated; None of no values."""
    if not values:
        return None
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def gaps(times: Times) -> list[float]:
    """Seconds between one and the next."""
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def joint_rate(streams: Sequence[Times]) -> float | None:
    """How many come a second, of all streams together, while every one of them runs: between the latest first and the
    earliest last. None if there is no such time."""
    if not streams or any(len(times) < 2 for times in streams):
        return None
    begin, end = max(times[0] for times in streams), min(times[-1] for times in streams)
    if end <= begin:
        return None
    came = 0.0
    for times in streams:
        for earlier, later in itertools.pairwise(times):
            shared = min(later, end) - max(earlier, begin)
            if shared > 0:  # of a gap that reaches out of the window, the part within
                came += shared / (later - earlier)
    return came / (end - begin)


def peak_memory_bytes(device: str) -> int:
    """The most that this process has held on the device up to now: allocated by torch on a GPU, resident on a CPU."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    if device == "mps":
        import torch

        return int(torch.mps.driver_allocated_memory())  # it keeps no peak
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
