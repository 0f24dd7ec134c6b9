"""The lane of one component: calls that library code makes of it, and pieces of library code that use it whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kamado.contracts import Work
from kamado.memory.frames import forget_locals
from kamado.tasks.library.lane import HostLane, ModelLane
from kamado.tasks.library.live_bytes import measuring

from ..language.own_draws import OwnDraws
from .learning import PartLearning


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Whole:
    """Payload of a work: code that runs as one forward."""

    function: Callable[[], Any]
    draws: OwnDraws
    """Where what it draws comes from."""


class PartLane(ModelLane):
    """See kamado.contracts.Lane. Its works come from `work` and `whole`."""

    def __init__(
        self,
        name: str,
        *,
        step_budget: int,
        max_rows: int,
        device: str,
        learning: PartLearning,
        entries_per_position: int = 1,
    ) -> None:
        super().__init__(name, step_budget=step_budget, max_rows=max_rows, device=device)
        self.learning = learning
        self._entries_per_position = entries_per_position
        self._place = device
        self._measured = False

    def work(self, *args: Any, **kwargs: Any) -> Work:
        """See ModelLane."""
        work = super().work(*args, **kwargs)
        return replace(work, cost=max(work.cost // self._entries_per_position, 1))

    def whole(self, function: Callable[[], Any], draws: OwnDraws, cost: int) -> Work:
        """The code as a work that shares its forward with no other."""
        return Work(self.name, object(), cost, Whole(function=function, draws=draws))

    def run(self, works: Sequence[Work]) -> list[Any]:
        """See Lane."""
        if not isinstance(works[0].payload, Whole):
            return super().run(works)
        try:
            return HostLane(self.name, 1).run(
                [Work(self.name, work.key, work.cost, self._call(work)) for work in works]
            )
        except Exception as error:
            forget_locals(error)
            raise

    def ease(self, work: Work) -> Work | None:
        """See Lane."""
        return None if isinstance(work.payload, Whole) else super().ease(work)

    def _call(self, work: Work) -> Callable[[], Any]:
        whole: Whole = work.payload

        def call() -> Any:
            with whole.draws:
                if self._measured:
                    return whole.function()
                # The first one stands for all: watching costs time.
                with measuring(self._place) as found:
                    result = whole.function()
            if found.bytes is not None:
                self._measured = True
                self.learning.note_bytes(1, work.cost, found.bytes)
            return result

        return call
