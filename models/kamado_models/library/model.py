"""A loaded model that a library's own code runs: requests into tasks, events into results."""

from __future__ import annotations

import gc
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
import torch
import transformers

import kamado
from kamado.checkpoint.digest import checkpoint_digests
from kamado.checkpoint.parts import published_part
from kamado.checkpoint.reference import published_reference
from kamado.checkpoint.types import Checkpoint
from kamado.contracts import Lane, Task
from kamado.events import Event, Finished
from kamado.media.inputs import described_media, opened_media
from kamado.memory.devices import resolve_device
from kamado.memory.plan import Plan
from kamado.memory.shortage import release_cached
from kamado.outputs import Picture
from kamado.results import Result, Timings, Usage, failure_notes, failures_in
from kamado.weights.outside.parked import ParkedModules, parked
from kamado.weights.outside.weights import OutsideWeights

from .kinds import Kind
from .task import AnswerTask, Workshop


class LibraryModel:
    """See kamado.contracts.LoadedModel."""

    def __init__(
        self, checkpoint: Checkpoint, plan: Plan, workshop: Workshop, kind: Kind, outside: OutsideWeights | None = None
    ) -> None:
        """`outside`: its weights that are not on the device; closed with it."""
        self.checkpoint = checkpoint
        self.plan = plan
        self.capabilities: Sequence[str] = tuple(kind.makes(checkpoint))
        self.lanes: Sequence[Lane] = (workshop.start, *workshop.lanes.values())
        self._workshop = workshop
        self._outside = outside
        self._kind = kind
        self._options = kind.options(checkpoint)
        self._files: dict[str, str] | None = None
        self._parts: dict[str, Any] = {}
        self._hardware = resolve_device(plan.device).model

    def prepare(self, request_id: str, options: Mapping[str, Any], now: float) -> Sequence[Task]:
        """See LoadedModel."""
        asked = self._options.resolved(options, self.checkpoint.defaults)
        self._kind.check(self.checkpoint, asked)
        opened = opened_media(asked, self._options.inputs)
        ready = self._workshop.generator.prepare(opened)
        deadline = now + asked["deadline_s"] if "deadline_s" in asked else None
        told = _told(opened, self._options.inputs)
        answers = ready if isinstance(ready, list) else [ready] * asked.get("n", 1)
        return [
            AnswerTask(
                self._workshop,
                request_id,
                answer,
                recipe=told,
                seed=asked["seed"] + index,
                index=index,
                deadline=deadline,
            )
            for index, answer in enumerate(answers)
        ]

    def collect(self, request_id: str, tasks: Sequence[Task], events: Sequence[Event], timings: Timings) -> Result:
        """See LoadedModel."""
        ends = sorted((event for event in events if isinstance(event, Finished)), key=lambda end: end.index)
        done = {end.index: end.output for end in ends if end.error is None and end.output is not None}
        made = [task for task in tasks if isinstance(task, AnswerTask)]
        failures = failures_in(events, lambda index: made[index].seed)
        pictures = [output for output in done.values() if isinstance(output, Picture)]
        return Result(
            request_id=request_id,
            usage=Usage(prompt_tokens=sum(task.prompt_tokens for task in made)),
            outputs=tuple(output for output in done.values() if not isinstance(output, Picture)),
            images=tuple(picture.image for picture in pictures),
            pixels=tuple(picture.pixels for picture in pictures),
            seeds=tuple(made[index].seed for index in done),
            batched=tuple(made[index].batched for index in done),
            failures=failures,
            timings=timings,
            notes=(
                *dict.fromkeys(note for task in made for note in task.notes),
                *failure_notes(failures, len(tasks), "picture" if pictures else "answer"),
            ),
            recipe=self._recipe(made[0].recipe),
        )

    @property
    def modules(self) -> Sequence[Any]:
        """Its components."""
        return tuple(self._workshop.generator.modules.values())

    def usage(self) -> Mapping[str, Any]:
        """See LoadedModel."""
        compared = {name: dict(_joins(lane.joins)) for name, lane in self._workshop.lanes.items()}
        return {"batching": "calls of equal form share forwards", "compared": compared}

    def idle_bytes(self) -> int:
        """See LoadedModel."""
        return 0

    def trim(self) -> int:
        """See LoadedModel."""
        return 0

    def close(self) -> None:
        """See LoadedModel."""
        if self._outside is not None:
            self._outside.close()
        del self.lanes, self._workshop
        gc.collect()
        release_cached(self.plan.device)

    def park(self) -> ParkedModules | None:
        """See LoadedModel."""
        modules = whole_modules(self._workshop.generator.modules) if self._outside is None else {}
        self.close()
        return parked(modules, self.plan.device)

    def _recipe(self, told: Mapping[str, Any]) -> dict[str, Any]:
        if self._files is None:
            self._files = checkpoint_digests(self.checkpoint)
            self._parts = {name: part and _recipe_part(part) for name, part in self.checkpoint.parts.items()}
        return {
            "kamado": kamado.__version__,
            "model": {
                "reference": published_reference(self.checkpoint.reference),
                "revision": self.checkpoint.revision,
                "files": self._files,
            },
            **({"components": self._parts} if self._parts else {}),
            **told,
            "device": self.plan.device,
            "hardware": self._hardware,
            **({"threads": torch.get_num_threads()} if self.plan.device == "cpu" else {}),
            "dtype": self.plan.dtype,
            "quant": self.plan.quant_json,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "diffusers": diffusers.__version__,
                "transformers": transformers.__version__,
            },
        }


def whole_modules(modules: Mapping[str, Any]) -> dict[str, Any]:
    """The components that are not within another one."""
    within = {id(part) for module in modules.values() for part in module.modules() if part is not module}
    return {name: module for name, module in modules.items() if id(module) not in within}


def _recipe_part(part: Checkpoint) -> dict[str, Any]:
    """What a recipe says of a component that came from elsewhere."""
    reference = published_part(part.reference)
    return {"reference": reference, "revision": part.revision, "files": checkpoint_digests(part)}


def _told(asked: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe says of a request whose inputs are opened."""
    files = {name: asked[name] for name in inputs if name in asked}
    options = {name: value for name, value in asked.items() if name not in files and name != "deadline_s"}
    unrecorded = [name for name, value in options.items() if not _is_plain(value)]
    return {
        "options": {name: value for name, value in options.items() if name not in unrecorded},
        **({"unrecorded": unrecorded} if unrecorded else {}),
        **({"inputs": described_media(files)} if files else {}),
    }


def _joins(joins: Mapping[Any, bool]) -> dict[str, bool]:
    """By method, whether all calls that were compared can be joined."""
    found: dict[str, bool] = {}
    for (_, method, _), joined in list(joins.items()):
        found[method] = found.get(method, True) and joined
    return found


def _is_plain(value: Any) -> bool:
    """Whether JSON can hold it."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return isinstance(value, (str, int, float, bool, type(None)))
