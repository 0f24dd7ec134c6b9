"""Forwards, and what is done where one fails: halve the batch, take less at once, make room, then fail that request.

When memory runs out, in this order:

    the batch           is run in halves, down to single works
    a work              is cut, where its task can cut it (a prompt's piece)
    the work            is tried once more, and again after each thing that was idle and could be freed
    the lane            is asked for another way that takes less (an autoencoder in tiles)
    the request         fails, alone

What changes no answer comes first. Other errors end the request that raises alone. For a work that its task can do
without, the batch is run in halves and that is all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..contracts import Lane, Work
from ..memory.frames import forget_locals
from ..memory.residency import Residency
from ..memory.shortage import is_shortage, release_cached
from .scheduler import Entry


class Forwards:
    """Runs batches. Not thread safe: the loop's thread owns it."""

    def __init__(self, residency: Residency, device: str) -> None:
        """`device`: the lanes', for what is said about its memory."""
        self.steps_by_lane: Counter[str] = Counter()
        self.rows_by_lane: Counter[str] = Counter()
        self.splits = 0
        """Batches that were run in halves."""
        self.rescued = 0
        """Works that ran out of memory alone, and then found it."""
        self._residency = residency
        self._device = device

    def run(self, lane: Lane, batch: Sequence[Entry]) -> list[Any]:
        """One result an entry; a work that cannot be run has the exception as its result. The works that were run
        stand in the entries: they may be smaller than those asked for."""
        results = self._tried(lane, [_work(entry) for entry in batch])
        if not isinstance(results, Exception):
            return results
        if len(batch) == 1:
            may_take = is_shortage(results) and not _work(batch[0]).spare
            return [self._rescue(lane, batch[0], results) if may_take else results]
        del results  # it may hold memory
        self.splits += 1
        half = len(batch) // 2
        return self.run(lane, batch[:half]) + self.run(lane, batch[half:])

    def figures(self) -> dict[str, Any]:
        """For `Runtime.stats`. Any thread may ask."""
        lanes = {
            name: {"steps": steps, "rows": self.rows_by_lane[name], "mean_batch": self.rows_by_lane[name] / steps}
            for name, steps in dict(self.steps_by_lane).items()
        }
        return {"splits": self.splits, "rescued": self.rescued, "lanes": lanes}

    def _tried(self, lane: Lane, works: Sequence[Work]) -> list[Any] | Exception:
        """The results, or what the lane raised."""
        try:
            results = list(lane.run(works))
        except Exception as error:  # noqa: BLE001 - whatever a lane raises ends a request, never the loop
            forget_locals(error)  # among them are the tensors that there was no more room beside
            return error
        self.steps_by_lane[lane.name] += 1
        self.rows_by_lane[lane.name] += len(works)
        assert len(results) == len(works), f"lane {lane.name} gave {len(results)} results for {len(works)} works"
        return results

    def _rescue(self, lane: Lane, entry: Entry, error: Exception) -> Any:
        """The result of a work that ran out of memory alone."""
        while is_shortage(error) and (less := _cut(entry)) is not None:
            entry.work = less
            results = self._tried(lane, [less])
            if not isinstance(results, Exception):
                return self._found(results)
            error = results
        freed = True  # who else was short of memory for a moment may be done: nobody leaves for that
        while is_shortage(error) and freed:
            release_cached(self._device)
            results = self._tried(lane, [_work(entry)])
            if not isinstance(results, Exception):
                return self._found(results)
            error = results
            freed = is_shortage(error) and self._residency.reclaim(lane.name)
        while is_shortage(error) and (other := lane.ease(_work(entry))) is not None:
            entry.work = other
            results = self._tried(lane, [other])
            if not isinstance(results, Exception):
                return self._found(results)
            error = results
        return error

    def _found(self, results: list[Any]) -> Any:
        self.rescued += 1
        return results[0]


def _work(entry: Entry) -> Work:
    assert entry.work is not None, "it was picked for a work"
    return entry.work


def _cut(entry: Entry) -> Work | None:
    """About half of the entry's work, its memory acquired; None where it cannot be cut."""
    whole = _work(entry)
    half = entry.task.work(max(whole.cost // 2, 1))
    if half is None or half.cost >= whole.cost:
        return None
    return entry.task.acquire(half)
