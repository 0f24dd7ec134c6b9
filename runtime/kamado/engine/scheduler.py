"""Which works run next, together. Knows costs, keys and fairness; not what a work computes.

Across lanes: the lane that has used the least time runs next (start-time fair queueing: a lane that comes back from
idling starts level with the busiest-starved one, it is owed nothing). A forward that only prepares one of another lane
counts for that one's time, and comes before it, so that all who were prepared share it. But after a step of a lane that
nobody watches, it is the turn of one that somebody does, so that a token waits for one step of a picture at most.
Within a lane: the
task that has waited the most steps leads, its key decides the batch, and tasks with state in memory and cheap works
come first. Memory is granted in order of arrival: an older task may take it from a younger one, which then computes its
state again later.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ..contracts import Task, Work


@dataclass(slots=True)
class Entry:
    """One queued task and what the scheduler knows of it."""

    task: Task
    arrival: tuple[int, int]
    last_step: int
    """The step in which it last ran, or came in."""
    work: Work | None = None
    """What it was picked for."""
    num_preemptions: int = 0


@dataclass(slots=True)
class _Queue:
    """The tasks of one lane whose time counts for one account, in order of arrival."""

    lane: str
    account: str
    entries: list[Entry] = field(default_factory=list)


class Scheduler:
    """Not thread safe: the loop's thread owns it."""

    def __init__(
        self, limits: Callable[[str], tuple[int, int]], is_interactive: Callable[[str], bool] = lambda lane: True
    ) -> None:
        """`limits(lane)` gives the lane's step budget and its most rows."""
        self._limits = limits
        self._is_interactive = is_interactive
        self._somebody_waited = False
        """Whether the last step was one of a lane that nobody watches."""
        self._queues: dict[tuple[str, str], _Queue] = {}
        """By lane and account."""
        self._used_s: defaultdict[str, float] = defaultdict(float)
        """By account."""
        self._arrivals = 0
        self._step = 0
        self.num_preemptions = 0

    def __len__(self) -> int:
        return sum(len(queue.entries) for queue in self._queues.values())

    def entries(self) -> Iterator[Entry]:
        """All queued tasks."""
        for queue in self._queues.values():
            yield from queue.entries

    def add(self, task: Task, *, after: Entry | None = None) -> None:
        """Queue a task. `after` places it right behind another (a further answer of the same request)."""
        self._arrivals += 1
        arrival = (after.arrival[0] if after else self._arrivals, self._arrivals)
        self._enqueue(Entry(task, arrival, self._step))

    def remove(self, entry: Entry) -> None:
        """Forget the task; its memory has been released."""
        for queue in self._queues.values():
            if entry in queue.entries:
                queue.entries.remove(entry)

    def settled(self, entries: list[Entry]) -> None:
        """The batch was run: tasks that now need another lane move to that lane's queue."""
        for entry in entries:
            entry.last_step = self._step
        self._follow()

    def charge(self, account: str, seconds: float) -> None:
        """So much time was used that counts for this lane."""
        self._used_s[account] += seconds

    def pick(self) -> tuple[str, list[Entry]] | None:
        """The next lane and the works (in `Entry.work`) of one forward, memory acquired. None: nothing can run."""
        self._step += 1
        self._follow()
        for queue in sorted((queue for queue in self._queues.values() if queue.entries), key=self._urgency):
            batch = self._pick_from(queue)
            if batch:
                self._somebody_waited = not self._is_interactive(queue.lane)
                return queue.lane, batch
            if self._follow():  # tasks gave a preparation up for what was not enough all the same
                return self.pick()
        return None

    def _urgency(self, queue: _Queue) -> tuple[bool, float, bool, str]:
        is_late = self._somebody_waited and not self._is_interactive(queue.lane)
        return is_late, self._used_s[queue.account], queue.lane == queue.account, queue.lane

    def _follow(self) -> bool:
        """Tasks that now need another lane move to that lane's queue. False: there are none. Queues without tasks go:
        their lane may never come back."""
        moved = False
        for key, queue in list(self._queues.items()):
            for entry in [entry for entry in queue.entries if (entry.task.lane, entry.task.account) != key]:
                queue.entries.remove(entry)
                self._enqueue(entry, stays_active=entry.task.account == queue.account)
                moved = True
            if not queue.entries:
                del self._queues[key]
        return moved

    def _enqueue(self, entry: Entry, *, stays_active: bool = False) -> None:
        """`stays_active`: its account was not idle, also where it was the only task."""
        task = entry.task
        queue = self._queues.setdefault((task.lane, task.account), _Queue(task.lane, task.account))
        busy = {other.account for other in self._queues.values() if other.entries}
        if not stays_active and task.account not in busy and busy:
            least = min(self._used_s[account] for account in busy)
            self._used_s[task.account] = max(self._used_s[task.account], least)
        queue.entries.append(entry)
        queue.entries.sort(key=lambda item: item.arrival)

    def _pick_from(self, queue: _Queue) -> list[Entry]:
        budget, max_rows = self._limits(queue.lane)
        waiting = sorted(queue.entries, key=lambda item: (item.last_step, item.arrival))
        for leader in waiting:
            leader.work = leader.task.work(budget)
            if leader.work is None:
                continue
            others = self._companions(leader, queue, budget)
            leader.work = self._leave_room(leader, others[: max_rows - 1], budget)
            if self._grant(leader, queue, []):
                return self._fill(leader, others, queue, (budget, max_rows))
        return []

    def _companions(self, leader: Entry, queue: _Queue, budget: int) -> list[Entry]:
        """The tasks whose works may share the leader's forward: those with state first, cheap ones first."""
        assert leader.work is not None
        found: list[tuple[bool, int, tuple[int, int], Entry]] = []
        for entry in queue.entries:
            if entry is leader:
                continue
            entry.work = entry.task.work(budget)
            if entry.work is not None and entry.work.key == leader.work.key:
                found.append((not entry.task.holds(), entry.work.cost, entry.arrival, entry))
        return [entry for *_, entry in sorted(found, key=lambda item: item[:3])]

    @staticmethod
    def _leave_room(leader: Entry, others: list[Entry], budget: int) -> Work:
        """A leader that can be cut leaves up to half the budget to much cheaper works (decodes beside a prefill)."""
        assert leader.work is not None
        costs = [entry.work.cost for entry in others if entry.work is not None and entry.task.holds()]
        cheap = sum(cost for cost in costs if cost * 8 <= leader.work.cost)
        return leader.task.work(max(budget - cheap, budget // 2, 1)) or leader.work

    def _fill(self, leader: Entry, others: list[Entry], queue: _Queue, limits: tuple[int, int]) -> list[Entry]:
        """The leader, and what fits beside it."""
        assert leader.work is not None
        budget, max_rows = limits
        batch, spent = [leader], leader.work.cost
        for entry in others:
            fresh = not entry.task.holds()
            if len(batch) >= max_rows or spent >= budget:
                break
            entry.work = entry.task.work(budget - spent)
            if entry.work is None or entry.work.key != leader.work.key or spent + entry.work.cost > budget:
                continue
            if self._grant(entry, queue, batch):
                if entry.work.key == leader.work.key:
                    batch.append(entry)
                    spent += entry.work.cost
            elif fresh:
                break  # strictly in order of arrival: a large request must not be overtaken for ever by small ones
        return batch

    def _grant(self, entry: Entry, queue: _Queue, batch: list[Entry]) -> bool:
        """Acquire memory for the entry's work, from the youngest tasks if need be; from none if all the younger ones
        together have too little. The oldest task can always be granted its memory as leader, so something always
        runs."""
        assert entry.work is not None
        granted = entry.task.acquire(entry.work)
        if granted is None:
            victims = [
                other
                for other in reversed(queue.entries)
                if other.arrival > entry.arrival and other.task.holds() and other not in batch
            ]
            num_needed = entry.task.victims_needed(entry.work, [victim.task for victim in victims]) if victims else None
            for victim in victims[: num_needed or 0]:
                victim.task.release()
                victim.num_preemptions += 1
                self.num_preemptions += 1
            granted = entry.task.acquire(entry.work) if num_needed else None
        if granted is None:
            return False
        entry.work = granted
        return True
