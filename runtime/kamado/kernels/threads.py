"""How many threads a short call takes: all, or one where others have the cores.

Threads of a call wait for each other many times, and where a thread has no core to itself, each time for the scheduler:
seven times as long as one thread alone takes was seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field

AGAIN = 128
"""So many calls later the other number is tried again."""
SOON = 8
"""So many calls later where it was never tried, or calls have become slow."""
SLOW = 1.5
"""Times as long as calls take on average."""
SLOW_CALLS = 3
"""One behind the other say that calls have become slow; a single one says little."""
_WEIGHT = 0.25
"""Of the newest time."""
_MOST = 2.0
"""Times the average is all that one call counts for: whatever stopped it may be over."""


@dataclass(slots=True)
class _Times:
    """Of calls of one kind."""

    seconds: dict[int, float] = field(default_factory=dict)
    """Moving averages by the number of threads."""
    since: int = 0
    """Calls with the better number since the other one was tried."""
    slow: int = 0
    """Of these, how many of the last ones took much longer than before; it stays at SLOW_CALLS."""

    def better(self, most: int) -> int:
        return 1 if self.seconds.get(1, float("inf")) < self.seconds.get(most, float("inf")) else most


class ThreadCount:
    """Chooses for calls of several kinds, by the times they took. Not thread safe; results must not depend on it."""

    def __init__(self) -> None:
        self._times: dict[int, _Times] = {}

    def choose(self, kind: int, most: int) -> int:
        """The number of threads for the next call of `kind`: `most`, or 1."""
        times = self._times.setdefault(kind, _Times())
        better = times.better(most)
        due = AGAIN if 1 in times.seconds and times.slow < SLOW_CALLS else SOON
        if times.since < due:
            return better
        return 1 if better == most else most

    def took(self, kind: int, threads: int, most: int, seconds: float) -> None:
        """How long a call took for which `choose` was asked."""
        times = self._times.setdefault(kind, _Times())
        known = times.seconds.get(threads)
        if threads == times.better(most) and known is not None:
            times.since += 1
            if times.slow < SLOW_CALLS:
                times.slow = times.slow + 1 if seconds > SLOW * known else 0
            times.seconds[threads] = known + _WEIGHT * (min(seconds, _MOST * known) - known)
        else:
            # What was known of it, if anything, is from another time.
            times.since, times.slow = 0, 0
            times.seconds[threads] = seconds
