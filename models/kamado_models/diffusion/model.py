"""A loaded pipeline: requests into tasks, events into results."""

from __future__ import annotations

import gc
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
import torch
import transformers

import kamado
from kamado.checkpoint.types import Checkpoint
from kamado.contracts import Lane, Task
from kamado.events import Event, Finished
from kamado.media.inputs import MEDIA_INPUTS, described_media
from kamado.memory.devices import resolve_device
from kamado.memory.plan import Plan
from kamado.memory.shortage import release_cached
from kamado.outputs import Picture
from kamado.picture_requests import PictureOptions
from kamado.results import Result, Timings, failure_notes, failures_in
from kamado.tasks.library.kept import KeptOutputs
from kamado.weights.outside.parked import ParkedModules, parked
from kamado.weights.outside.weights import OutsideWeights
from kamado.weights.prepared.keeping import Pending

from .adapters import Adapters
from .compiling import CompiledBlocks
from .guards import FinerDecoders
from .intake import Intake, Order
from .outcomes import outcome_of
from .parts import recipe_files
from .sizes import Sizes
from .table import comes_out
from .task import PictureTask, Workshop


class PipelineModel:
    """See kamado.contracts.LoadedModel."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: Plan,
        workshop: Workshop,
        sizes: Sizes,
        outside: OutsideWeights | None = None,
        pending: Pending | None = None,
        *,
        compiled: Mapping[str, CompiledBlocks] | None = None,
    ) -> None:
        """`outside`: its weights that are not on the device; closed with it. `pending`: what will be written of its
        weights; if it is still to be, it is given up with it. `compiled`: what is compiled of components, by name."""
        self.checkpoint = checkpoint
        self.plan = plan
        self.capabilities: Sequence[str] = (comes_out(workshop.factory.base.__name__),)
        self.lanes: Sequence[Lane] = (workshop.start, *workshop.lanes.values())
        self._workshop = workshop
        self._word = outcome_of(workshop.factory.base).word
        """For one of its answers. Results may be asked for when the model has left."""
        self._outside = outside
        self._pending = pending
        self._compiled = dict(compiled or {})
        self._intake = Intake(checkpoint, plan, workshop.factory, sizes)
        self._files: dict[str, Any] | None = None
        self._hardware = resolve_device(plan.device).model

    def order(self, options: Mapping[str, Any]) -> Order:
        """A request, checked; see Intake. Raises InvalidRequest."""
        return self._intake.order(options)

    def prepare(self, request_id: str, options: Mapping[str, Any], now: float) -> Sequence[Task]:
        """See LoadedModel. Each of several is an answer of its own, so that those of all requests share forwards."""
        order = self.order(options)
        asked = order.asked
        chosen = self._workshop.adapters.prepare(asked.adapters, order.kind, order.arguments)
        deadline = now + asked.deadline_s if asked.deadline_s is not None else None
        return [
            PictureTask(
                self._workshop,
                request_id,
                order,
                chosen,
                index=index,
                deadline=deadline,
            )
            for index in range(asked.n)
        ]

    def collect(self, request_id: str, tasks: Sequence[Task], events: Sequence[Event], timings: Timings) -> Result:
        """See LoadedModel."""
        ends = [event for event in events if isinstance(event, Finished)]
        done: dict[int, Any] = {end.index: end.output for end in ends if end.error is None}
        first = tasks[0]
        assert isinstance(first, PictureTask)
        seed = first.options.seed
        failures = failures_in(events, lambda index: seed + index)
        pictures = [output for _, output in sorted(done.items()) if isinstance(output, Picture)]
        return Result(
            request_id=request_id,
            outputs=tuple(output for _, output in sorted(done.items()) if not isinstance(output, Picture)),
            images=tuple(picture.image for picture in pictures),
            pixels=tuple(picture.pixels for picture in pictures),
            seeds=tuple(seed + index for index in sorted(done)),
            batched=tuple(isinstance(task := tasks[index], PictureTask) and task.batched for index in sorted(done)),
            failures=failures,
            timings=timings,
            notes=(*_notes(tasks), *failure_notes(failures, len(tasks), self._word)),
            recipe=self._recipe(first),
        )

    def direct_pipeline(self) -> Any:
        """diffusers' pipeline over the model's own components, without the loop: for comparison. Not to be used while
        requests run."""
        self._workshop.adapters.rest()
        return self._workshop.factory.direct()

    def idle_bytes(self) -> int:
        """See LoadedModel. Adapters, decoders' copies, and kept outputs of encoders."""
        return sum(each.idle_bytes() for each in self._idle())

    def trim(self) -> int:
        """See LoadedModel."""
        return sum(each.trim() for each in self._idle())

    def usage(self) -> Mapping[str, Any]:
        """See LoadedModel."""
        compared: dict[str, bool] = {}
        for component, lane in self._workshop.lanes.items():
            for (_, method, _), joined in list(lane.joins.items()):
                name = f"{component}.{method}"
                compared[name] = compared.get(name, True) and joined
        return {
            "batching": "steps of all requests share forwards",
            "compared": compared,
            "adapters": self._workshop.adapters.usage(),
            "outputs": self._workshop.outputs.figures(),
            **self._compiling(),
        }

    def _compiling(self) -> dict[str, Any]:
        blocks = self._compiled.values()
        if not blocks:
            return {}
        notes = [note for each in blocks for note in each.notes]
        return {
            "compile_s": round(sum(each.seconds for each in blocks), 3),
            "compiled": {"components": sorted(self._compiled), **({"notes": notes} if notes else {})},
        }

    def close(self) -> None:
        """See LoadedModel."""
        self._workshop.adapters.close()
        self._workshop.outputs.close()
        if self._outside is not None:
            self._outside.close()
        if self._pending is not None:
            self._pending.abandon()
        del self.lanes, self._workshop, self._intake, self._compiled
        gc.collect()  # stand-ins and what pipelines hang on schedulers hold each other, and the weights
        release_cached(self.plan.device)

    def park(self) -> ParkedModules | None:
        """See LoadedModel."""
        modules = dict(self._workshop.factory.models) if self._outside is None else {}
        self.close()
        return parked(modules, self.plan.device)

    def _idle(self) -> tuple[Adapters, FinerDecoders, KeptOutputs]:
        """What has parts that may be idle."""
        return self._workshop.adapters, self._workshop.decoders, self._workshop.outputs

    def _recipe(self, task: PictureTask) -> dict[str, Any]:
        if self._files is None:
            self._files = recipe_files(self.checkpoint)
        return {
            "kamado": kamado.__version__,
            **self._files,
            "pipeline": task.kind.__name__,
            **({"adapters": list(map(dict, task.chosen.recipe))} if task.chosen.recipe else {}),
            "options": task.described(),
            **({"unrecorded": missing} if (missing := task.unrecorded()) else {}),
            **({"inputs": inputs} if (inputs := described_media(_given(task.options))) else {}),
            "device": self.plan.device,
            "hardware": self._hardware,
            # Sums that several threads make together are rounded otherwise.
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


def _given(options: PictureOptions) -> dict[str, Any]:
    """What was opened for the request, by the names in MEDIA_INPUTS."""
    return {name: getattr(options, name, None) or options.extra.get(name) for name in MEDIA_INPUTS}


def _notes(tasks: Sequence[Task]) -> tuple[str, ...]:
    """Each once."""
    return tuple(dict.fromkeys(note for task in tasks if isinstance(task, PictureTask) for note in task.notes))
