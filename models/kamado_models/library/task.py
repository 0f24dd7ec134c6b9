"""One answer of a library's own code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from kamado.contracts import Accepted
from kamado.events import Event, Media, Progress
from kamado.outputs import KINDS
from kamado.tasks.library.lane import HostLane
from kamado.tasks.library.standin import ModelCall, dissolve, stand_in
from kamado.tasks.library.task import LibraryTask, Script

from ..language.own_draws import OwnDraws
from .kinds import Generator
from .lane import PartLane

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """What all answers of one model are made with."""

    generator: Generator
    lanes: Mapping[str, PartLane]
    start: HostLane
    device: str
    dtype: torch.dtype


class AnswerTask(LibraryTask):
    """One answer."""

    def __init__(
        self,
        workshop: Workshop,
        request_id: str,
        asked: Mapping[str, Any],
        *,
        recipe: Mapping[str, Any],
        seed: int,
        index: int,
        deadline: float | None,
    ) -> None:
        """`asked`: what `Generator.prepare` made of the request. `recipe`: what that says of it. `seed`: of this
        answer."""
        super().__init__(request_id, self._run, start_lane=workshop.start.name, deadline=deadline, index=index)
        self.recipe = recipe
        """Options and inputs of the request."""
        self.seed = seed
        self.prompt_tokens: int = asked.get("prompt_tokens", 0)
        self.notes: list[str] = []
        """What the caller should know of how it was made."""
        self.batched = False
        """Whether any forward of it was shared with other answers."""
        self._workshop: Workshop | None = workshop
        self._asked: Mapping[str, Any] | None = asked
        self._draws = OwnDraws(seed)

    def accept(self, result: Any) -> Accepted:
        """See Task. What library code draws between two forwards (tokens, noise) is this answer's own."""
        with self._draws:
            return super().accept(result)

    def release(self) -> None:
        """See Task. Whoever keeps a finished request does not keep the model with it."""
        super().release()
        if self._finished:
            self.output = self._workshop = self._asked = None  # Finished has the output

    def _run(self, script: Script) -> Any:
        assert self._workshop is not None and self._asked is not None
        bench = AnswerBench(self, self._workshop, script, self._draws)
        try:
            output = self._workshop.generator.generate(bench, self._asked)
        finally:
            bench.close()
        script.emit(Media(self.id, self.index, KINDS[type(output)], output))  # type: ignore[arg-type]
        return output


class AnswerBench:
    """See kinds.Bench."""

    def __init__(self, task: AnswerTask, workshop: Workshop, script: Script, draws: OwnDraws) -> None:
        self.index = task.index
        self.seed = task.seed
        self.device = workshop.device
        self.dtype = workshop.dtype
        self.generator = torch.Generator("cpu").manual_seed(task.seed)
        self._task = task
        self._workshop = workshop
        self._script = script
        self._draws = draws
        self._stands: dict[str, nn.Module] = {}

    @property
    def request_id(self) -> str:
        """See Bench."""
        return self._task.id

    def model(self, name: str) -> Any:
        """See Bench."""
        if name not in self._stands:
            module = self._workshop.generator.modules[name]
            self._stands[name] = stand_in(module, lambda call: self._call(name, call))
        return self._stands[name]

    def run(self, name: str, function: Callable[[], T], cost: int = 1) -> T:
        """See Bench."""
        return self._script.ask(self._workshop.lanes[name].whole(function, self._draws, cost))  # type: ignore[no-any-return]

    def progress(self, step: int, total: int) -> None:
        """See Bench."""
        self.emit(Progress(self.request_id, step, total, self.index))

    def emit(self, event: Event) -> None:
        """See Bench."""
        self._script.emit(event)

    def note(self, text: str) -> None:
        """See Bench."""
        self._task.notes.append(text)

    def close(self) -> None:
        """The answer is made, or never will be."""
        for stand in self._stands.values():
            dissolve(stand)
        self._stands.clear()

    def _call(self, name: str, call: ModelCall) -> Any:
        lane = self._workshop.lanes[name]
        return self._script.ask(lane.work(call, on_joined=self._joined, on_measured=lane.learning.note))

    def _joined(self) -> None:
        self._task.batched = True
