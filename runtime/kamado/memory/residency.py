"""Which lanes are in memory. The loop gets a lane from here and from nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..contracts import Lane


class Residency:
    """Lanes by name. Not thread safe: the loop's thread owns it."""

    def __init__(self) -> None:
        self._lanes: dict[str, Lane] = {}
        self._owners: dict[str, str] = {}
        self.reclaimers: list[Callable[[str], bool]] = []
        """Each frees something that nobody uses now, and says whether there was anything. Called with the lane that
        needs the memory, on the loop's thread, while that lane is held."""

    def add(self, lane: Lane, owner: str | None = None) -> None:
        """From now on works of that lane can run. `owner`: its model, where that has others."""
        assert lane.name not in self._lanes, f"lane {lane.name} is there already"
        self._lanes[lane.name] = lane
        self._owners[lane.name] = owner or lane.name

    def remove(self, name: str) -> None:
        """The lane is gone; its works can no longer run."""
        del self._lanes[name], self._owners[name]

    def has(self, name: str) -> bool:
        """Whether the lane is there."""
        return name in self._lanes

    def limits(self, name: str) -> tuple[int, int]:
        """Step budget and most rows of a lane."""
        lane = self._lanes[name]
        return lane.step_budget, lane.max_rows

    def is_interactive(self, name: str) -> bool:
        """See `Lane.interactive`."""
        return self._lanes[name].interactive

    def owner(self, name: str) -> str:
        """The model that the lane is of; the lane itself once it is gone."""
        return self._owners.get(name, name)

    def reclaim(self, lane: str) -> bool:
        """The lane ran out of memory: free something that nobody uses now. False: there is nothing."""
        return any(free(lane) for free in self.reclaimers)

    @contextmanager
    def hold(self, name: str) -> Iterator[Lane]:
        """The lane, in place for one forward."""
        yield self._lanes[name]
