"""A loaded pipeline: requests into tasks, events into results."""

from __future__ import annotations

import functools
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import diffusers
import numpy
import torch
import transformers

import kamado
from kamado.checkpoint.digest import checkpoint_digests
from kamado.checkpoint.types import Checkpoint
from kamado.contracts import Lane, Task
from kamado.errors import GenerationFailed, InvalidRequest
from kamado.events import Event, Finished, Media, Progress
from kamado.media.guards import blank_reason
from kamado.media.pictures import open_picture, pictures_from_float
from kamado.memory.plan import Plan
from kamado.picture_requests import PictureOptions, resolve_picture_options
from kamado.results import Result, Timings
from kamado.tasks.library.lane import ModelLane, StartLane
from kamado.tasks.library.standin import ModelCall
from kamado.tasks.library.task import LibraryTask, Script

from .pipelines import PipelineFactory, call_arguments
from .sizes import Sizes


class PipelineModel:
    """See kamado.contracts.LoadedModel."""

    capabilities: Sequence[str] = ("image",)

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: Plan,
        factory: PipelineFactory,
        lanes: Mapping[str, ModelLane],
        start: StartLane,
        sizes: Sizes,
    ) -> None:
        """`lanes` by component."""
        self.checkpoint = checkpoint
        self.plan = plan
        self.factory = factory
        self.sizes = sizes
        self.lanes: Sequence[Lane] = (start, *lanes.values())
        self._by_component = lanes
        self._start = start
        self._hashes: dict[str, str] | None = None

    def prepare(self, request_id: str, options: Mapping[str, Any], now: float) -> Sequence[Task]:
        """See LoadedModel. Each picture is an answer of its own, so that pictures of all requests share forwards."""
        asked = self.sizes.completed(resolve_picture_options(options, defaults=self.checkpoint.defaults))
        self.sizes.check(asked, self.checkpoint, self.plan)
        asked = replace(asked, image=_opened(asked.image), mask=_opened(asked.mask), control=_opened(asked.control))
        kind = self.factory.kind(asked)
        arguments = call_arguments(kind, asked)
        deadline = now + asked.deadline_s if asked.deadline_s is not None else None
        return [
            _PictureTask(self, request_id, asked, kind, arguments, index=index, deadline=deadline)
            for index in range(asked.n)
        ]

    def divert(self, script: Script, component: str, call: ModelCall) -> Any:
        """What a stand-in does."""
        return script.ask(self._by_component[component].work(call))

    @property
    def start_lane(self) -> str:
        """Where answers begin."""
        return self._start.name

    def collect(self, request_id: str, tasks: Sequence[Task], events: Sequence[Event], timings: Timings) -> Result:
        """See LoadedModel."""
        done: dict[int, Any] = {event.index: event.output for event in events if isinstance(event, Finished)}
        first = tasks[0]
        assert isinstance(first, _PictureTask)
        pixels = tuple(done[index] for index in sorted(done))
        seed = first.options.seed
        return Result(
            request_id=request_id,
            images=tuple(event.data for event in _in_order(events)),
            pixels=pixels,
            seeds=tuple(seed + index for index in range(len(pixels))),
            timings=timings,
            recipe=self._recipe(first),
        )

    def usage(self) -> Mapping[str, Any]:
        """See LoadedModel."""
        found = [(component, lane.joins) for component, lane in self._by_component.items()]
        return {
            "batching": "steps of all requests share forwards",
            "compared": {f"{name}.{method}": ok for name, joins in found for (_, method, _), ok in joins.items()},
        }

    def close(self) -> None:
        """See LoadedModel."""
        on_gpu = self.plan.device != "cpu"
        del self.factory, self.lanes, self._by_component
        if on_gpu:
            torch.cuda.empty_cache()

    def _recipe(self, task: _PictureTask) -> dict[str, Any]:
        if self._hashes is None:
            self._hashes = checkpoint_digests(self.checkpoint)
        return {
            "kamado": kamado.__version__,
            "model": {
                "reference": self.checkpoint.reference,
                "revision": self.checkpoint.revision,
                "files": self._hashes,
            },
            "pipeline": task.kind.__name__,
            "options": task.described(),
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


class _PictureTask(LibraryTask):
    """One picture."""

    def __init__(
        self,
        model: PipelineModel,
        request_id: str,
        options: PictureOptions,
        kind: Any,
        arguments: Mapping[str, Any],
        *,
        index: int,
        deadline: float | None,
    ) -> None:
        super().__init__(request_id, self._run, start_lane=model.start_lane, deadline=deadline, index=index)
        self.options = options
        self.kind = kind
        self._model = model
        self._arguments = arguments

    def described(self) -> dict[str, Any]:
        """The options as a recipe has them."""
        names = ("prompt", "negative", "width", "height", "steps", "guidance", "strength", "scheduler")
        asked = {name: value for name in names if (value := getattr(self.options, name)) is not None}
        plain = {
            name: value for name, value in self.options.extra.items() if isinstance(value, (bool, int, float, str))
        }
        return {**asked, **plain, "seed": self.options.seed, "n": self.options.n}

    def _run(self, script: Script) -> Any:
        """The body: diffusers' own code from here on."""
        model = self._model
        pipeline = model.factory.make(
            self.kind, lambda component, call: model.divert(script, component, call), self.options.scheduler
        )
        self._watch(script, pipeline)
        generator = torch.Generator("cpu").manual_seed(self.options.seed + self.index)
        output = pipeline(**self._arguments, generator=generator, output_type="np")
        pictures = numpy.asarray(output.images, dtype=numpy.float32)
        (picture,) = pictures.reshape(-1, *pictures.shape[-3:])
        _judge(picture, output)
        (image,) = pictures_from_float(picture[None])
        script.emit(Media(self.id, self.index, "image", image))
        return picture

    def _watch(self, script: Script, pipeline: Any) -> None:
        """Progress with each step of the request's own scheduler."""
        scheduler = getattr(pipeline, "scheduler", None)
        if scheduler is None or not hasattr(scheduler, "step"):
            return
        step = scheduler.step
        done = 0

        @functools.wraps(step)  # pipelines look up what a step takes
        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            result = step(*args, **kwargs)
            done += 1
            total = getattr(pipeline, "_num_timesteps", None) or len(scheduler.timesteps)
            script.emit(Progress(self.id, done, max(int(total), done)))
            return result

        scheduler.step = counted


def _judge(picture: Any, output: Any) -> None:
    """Raise GenerationFailed for a picture that is none."""
    flagged = getattr(output, "nsfw_content_detected", None)
    if flagged and any(flagged):
        raise GenerationFailed("the model's own safety checker took the picture away; try another prompt or seed")
    if reason := blank_reason(picture):
        raise GenerationFailed(f"the model made no picture ({reason}); try float32 (--dtype), or another seed")


def _opened(source: Any) -> Any:
    if source is None:
        return None
    if isinstance(source, (list, tuple)):
        if not source:
            raise InvalidRequest("an empty list of pictures was given")
        return [open_picture(item) for item in source]
    return open_picture(source)


def _in_order(events: Sequence[Event]) -> list[Media]:
    return sorted((event for event in events if isinstance(event, Media)), key=lambda event: event.index)
