"""Which works run next, together. Knows costs, keys and fairness; not what a work computes.

Across lanes: one of the model that has used the least time runs next (start-time fair queueing: a model that comes
back from idling starts level with the least favoured, it is owed nothing; where all were idle, nobody owes anything).
Of one model's lanes, the one comes next that somebody has waited longest for. A forward that only prepares one of
another lane counts for that one's time, and comes before it, so that all who were prepared share it. But between two
steps of a lane that somebody watches comes one of each other model at most, so that a token waits for one step of a
picture at most; as long as the watched one's model has not used `MOST_AHEAD_S` more than the least favoured, so that a
chat that never ends takes its share and no more.
Within a lane: the task that has waited the most steps leads, its key decides the batch, and tasks with state in memory
and cheap works come first. Memory is granted in order of arrival: an older task may take it from a younger one, which
then computes its state again later.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ..contracts import Task, Work

MOST_AHEAD_S = 1.0
"""How much more time than the least favoured model that of a lane that somebody watches may use, by coming first."""


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
        self,
        limits: Callable[[str], tuple[int, int]],
        is_interactive: Callable[[str], bool] = lambda lane: True,
        owner: Callable[[str], str] = lambda lane: lane,
    ) -> None:
        """`limits(lane)` gives the lane's step budget and its most rows, `owner(lane)` the model that it is of."""
        self._limits = limits
        self._is_interactive = is_interactive
        self._owner = owner
        self._had_turns: set[str] = set()
        """The models of lanes that nobody watches, of which a step was run since the last one that somebody does."""
        self._queues: dict[tuple[str, str], _Queue] = {}
        """By lane and account."""
        self._used_s: defaultdict[str, float] = defaultdict(float)
        """By model, since all were idle."""
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
        """So much time was used that counts for this lane's model."""
        self._used_s[self._owner(account)] += seconds

    def pick(self) -> tuple[str, list[Entry]] | None:
        """The next lane and the works (in `Entry.work`) of one forward, memory acquired. None: nothing can run."""
        self._step += 1
        self._follow()
        waiting = [queue for queue in self._queues.values() if queue.entries]
        least_s = min((self._used_s[self._owner(queue.account)] for queue in waiting), default=0.0)
        somebody_waits = any(self._comes_first(queue, least_s) for queue in waiting)
        for queue in sorted(waiting, key=lambda queue: self._urgency(queue, somebody_waits)):
            batch = self._pick_from(queue)
            if batch:
                if self._is_interactive(queue.lane):
                    self._had_turns.clear()
                else:
                    self._had_turns.add(self._owner(queue.account))
                return queue.lane, batch
            if self._follow():  # tasks gave a preparation up for what was not enough all the same
                return self.pick()
        return None

    def _comes_first(self, queue: _Queue, least_s: float) -> bool:
        """Whether somebody watches the lane, and it has not used too much by coming first."""
        return self._is_interactive(queue.lane) and self._used_s[self._owner(queue.account)] - least_s <= MOST_AHEAD_S

    def _urgency(self, queue: _Queue, somebody_waits: bool) -> tuple[bool, float, bool, int, str]:
        owner = self._owner(queue.account)
        had_turn = somebody_waits and owner in self._had_turns and not self._is_interactive(queue.lane)
        waited_since = min(entry.last_step for entry in queue.entries)
        prepares = queue.lane != queue.account
        return had_turn, self._used_s[owner], not prepares, waited_since, queue.lane

    def _follow(self) -> bool:
        """Tasks that now need another lane move to that lane's queue. False: there are none. Queues without tasks go:
        their lane may never come back."""
        moved = False
        for key, queue in list(self._queues.items()):
            for entry in [entry for entry in queue.entries if (entry.task.lane, entry.task.account) != key]:
                queue.entries.remove(entry)
                self._enqueue(entry, stays_active=self._owner(entry.task.account) == self._owner(queue.account))
                moved = True
            if not queue.entries:
                del self._queues[key]
        return moved

    def _enqueue(self, entry: Entry, *, stays_active: bool = False) -> None:
        """`stays_active`: its model was not idle, also where it was the only task."""
        task = entry.task
        queue = self._queues.setdefault((task.lane, task.account), _Queue(task.lane, task.account))
        if not stays_active:
            self._rouse(self._owner(task.account))
        queue.entries.append(entry)
        queue.entries.sort(key=lambda item: item.arrival)

    def _rouse(self, owner: str) -> None:
        """A model gets a task: one that was idle starts level with the least favoured."""
        busy = {self._owner(queue.account) for queue in self._queues.values() if queue.entries}
        if not busy:
            self._used_s.clear()
            self._had_turns.clear()
        elif owner not in busy:
            self._used_s[owner] = max(self._used_s[owner], min(self._used_s[other] for other in busy))

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
            if entry.work is None or entry.work.cost > budget - spent:
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
                victim.work = None  # it was for the state that has gone
                victim.num_preemptions += 1
                self.num_preemptions += 1
            granted = entry.task.acquire(entry.work) if num_needed else None
        if granted is None:
            return False
        entry.work = granted
        return True
