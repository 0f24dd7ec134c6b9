"""A loaded pipeline: requests into tasks, events into results."""

from __future__ import annotations

import gc
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import diffusers
import torch
import transformers

import kamado
from kamado.checkpoint.types import Checkpoint
from kamado.contracts import Lane, Task
from kamado.errors import InvalidRequest
from kamado.events import Event, Finished, Media
from kamado.media.inputs import INPUTS, described_inputs
from kamado.media.pictures import open_picture
from kamado.memory.plan import Plan
from kamado.picture_requests import PictureOptions, resolve_picture_options
from kamado.results import Result, Timings

from .control import completed
from .hires import refinement
from .outpainting import outpainting, with_defaults
from .parts import recipe_files
from .pipelines import call_arguments, call_parameters, takes_size
from .prompts import check_weighting
from .schedulers import check_steps
from .sizes import Sizes, check_mask
from .step_cache import check_step_cache
from .task import PictureTask, Workshop
from .tiling import check_tiling


class PipelineModel:
    """See kamado.contracts.LoadedModel."""

    capabilities: Sequence[str] = ("image",)

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: Plan,
        workshop: Workshop,
        sizes: Sizes,
    ) -> None:
        self.checkpoint = checkpoint
        self.plan = plan
        self.sizes = sizes
        self.lanes: Sequence[Lane] = (workshop.start, *workshop.lanes.values())
        self._workshop = workshop
        self._files: dict[str, Any] | None = None

    def prepare(self, request_id: str, options: Mapping[str, Any], now: float) -> Sequence[Task]:
        """See LoadedModel. Each picture is an answer of its own, so that pictures of all requests share forwards."""
        asked = self.sizes.completed(resolve_picture_options(options, defaults=self.checkpoint.defaults))
        asked = replace(asked, image=_opened(asked.image), mask=_opened(asked.mask), control=_opened(asked.control))
        if (shown := asked.extra.get("ip_adapter_image")) is not None:
            asked = replace(asked, extra={**asked.extra, "ip_adapter_image": _opened(shown)})
        check_mask(asked)
        factory = self._workshop.factory
        asked = completed(asked, factory.reference, list(factory.nets.values()))
        grown = outpainting(asked)
        first = asked if grown is None else grown.options
        kind = factory.kind(first)
        if (kind is not factory.base or first.mask is not None) and takes_size(kind):
            first = self.sizes.like_picture(first)
        self.sizes.check(first, self.checkpoint, self.plan)
        first = with_defaults(first, call_parameters(kind))
        arguments = call_arguments(kind, first)
        if first.steps is not None:
            check_steps(factory.components.get("scheduler"), first.scheduler, first.steps)
        if asked.weighting is not None:
            check_weighting(arguments, kind, factory.components, factory.reference)
        if asked.tiling:
            check_tiling(kind, factory)
        if asked.step_cache is not None:
            check_step_cache(kind, factory)
        chosen = self._workshop.adapters.prepare(asked.adapters, kind, arguments)
        second = refinement(factory, first, self.sizes)
        if second is not None:
            self.sizes.check(second.expected, self.checkpoint, self.plan)
        deadline = now + asked.deadline_s if asked.deadline_s is not None else None
        return [
            PictureTask(
                self._workshop,
                request_id,
                asked,
                kind,
                arguments,
                chosen,
                first=first,
                outpainting=grown,
                refinement=second,
                index=index,
                deadline=deadline,
            )
            for index in range(asked.n)
        ]

    def collect(self, request_id: str, tasks: Sequence[Task], events: Sequence[Event], timings: Timings) -> Result:
        """See LoadedModel."""
        done: dict[int, Any] = {event.index: event.output for event in events if isinstance(event, Finished)}
        first = tasks[0]
        assert isinstance(first, PictureTask)
        pixels = tuple(done[index] for index in sorted(done))
        seed = first.options.seed
        return Result(
            request_id=request_id,
            images=tuple(event.data for event in _in_order(events)),
            pixels=pixels,
            seeds=tuple(seed + index for index in range(len(pixels))),
            timings=timings,
            notes=_notes(tasks),
            recipe=self._recipe(first),
        )

    def direct_pipeline(self) -> Any:
        """diffusers' pipeline over the model's own components, without the loop: for comparison. Not to be used while
        requests run."""
        self._workshop.adapters.rest()
        return self._workshop.factory.direct()

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
        }

    def close(self) -> None:
        """See LoadedModel."""
        on_gpu = self.plan.device != "cpu"
        self._workshop.adapters.close()
        del self.lanes, self._workshop
        gc.collect()  # stand-ins and what pipelines hang on schedulers hold each other, and the weights
        if on_gpu:
            torch.cuda.empty_cache()

    def _recipe(self, task: PictureTask) -> dict[str, Any]:
        if self._files is None:
            self._files = recipe_files(self.checkpoint)
        return {
            "kamado": kamado.__version__,
            **self._files,
            "pipeline": task.kind.__name__,
            **({"adapters": list(map(dict, task.chosen.recipe))} if task.chosen.recipe else {}),
            "options": task.described(),
            **({"inputs": inputs} if (inputs := described_inputs(_pictures(task.options))) else {}),
            "device": self.plan.device,
            "dtype": self.plan.dtype,
            "quant": self.plan.quant,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "diffusers": diffusers.__version__,
                "transformers": transformers.__version__,
            },
        }


def _opened(source: Any) -> Any:
    if source is None:
        return None
    if isinstance(source, (list, tuple)):
        if not source:
            raise InvalidRequest("an empty list of pictures was given")
        return [open_picture(item) for item in source]
    return open_picture(source)


def _pictures(options: PictureOptions) -> dict[str, Any]:
    """What was opened for the request, by the names in INPUTS."""
    return {name: getattr(options, name, None) or options.extra.get(name) for name in INPUTS}


def _notes(tasks: Sequence[Task]) -> tuple[str, ...]:
    """Each once."""
    return tuple(dict.fromkeys(note for task in tasks if isinstance(task, PictureTask) for note in task.notes))


def _in_order(events: Sequence[Event]) -> list[Media]:
    return sorted((event for event in events if isinstance(event, Media)), key=lambda event: event.index)
