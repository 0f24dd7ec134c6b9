"""One picture: the pipeline's own code as a coroutine, and what Kamado does before and after it."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy
import torch
from torch import nn

from kamado.contracts import Work
from kamado.errors import GenerationFailed
from kamado.events import Media, Preview, Progress
from kamado.media.guards import blank_reason
from kamado.media.inputs import INPUTS
from kamado.media.pictures import pictures_from_float
from kamado.memory.shortage import is_shortage
from kamado.picture_requests import PictureOptions
from kamado.tasks.library.kept import KeptOutputs
from kamado.tasks.library.lane import HostLane, Measurement, ModelLane
from kamado.tasks.library.standin import Identity, ModelCall
from kamado.tasks.library.task import LibraryTask, Script

from .adapters import Adapters
from .adapters_uses import Chosen, Setting
from .cuts import CutWatch
from .draws import missing_labels, seed_noise, with_own_draws
from .guards import FinerDecoders, advice, is_useless
from .hires import Refinement
from .inputs import size_note
from .learning import PictureLearning
from .outpainting import Outpainting
from .pipelines import (
    PipelineFactory,
    attention_kept,
    call_arguments,
    call_parameters,
    own_containers,
    take_apart,
)
from .previews import Previews, clean_latents
from .prompts import can_weight, with_embeddings
from .refusals import blamed, unused_negative
from .step_cache import StepCache
from .table import runs_alone
from .tiling import tile

_MORE = ("control_scale", "weighting", "hires", "hires_strength", "hires_steps", "tiling", "outpaint", "step_cache")


@dataclass(frozen=True, slots=True)
class Workshop:
    """What all pictures of one model are made with."""

    factory: PipelineFactory
    lanes: Mapping[str, ModelLane]
    """By component."""
    start: HostLane
    previews: Previews
    decoders: FinerDecoders
    adapters: Adapters
    learning: PictureLearning
    outputs: KeptOutputs

    def cut_advice(self, kind: Any) -> str:
        """What to do about a prompt that pipelines of class `kind` do not read to its end."""
        return "; weighting='a1111' reads all of it" if can_weight(kind, self.factory.components) else ""

    def call(
        self,
        script: Script,
        component: str,
        call: ModelCall,
        setting: Setting | None = None,
        on_joined: Callable[[], None] = lambda: None,
        on_eased: Callable[[], None] = lambda: None,
        *,
        on_measured: Callable[[Measurement], None] | None = None,
    ) -> Any:
        """Have the loop make a call of a component with the adapters of `setting`, and wait for its result.
        `on_joined`, `on_eased`, `on_measured`: see ModelLane."""
        return script.ask(self.lanes[component].work(call, setting, on_joined, on_eased, on_measured))

    def foreign_call(self, script: Script, component: str, on_joined: Callable[[], None], call: ModelCall) -> Any:
        """Have the lane of a component make a call of a model that an adapter has brought along."""
        own = replace(call, settings=(*call.settings, ("", Identity(id(call.module)))))
        return script.ask(self.lanes[component].work(own, on_joined=on_joined))


class PictureTask(LibraryTask):
    """One picture."""

    def __init__(
        self,
        workshop: Workshop,
        request_id: str,
        options: PictureOptions,
        kind: Any,
        arguments: Mapping[str, Any],
        chosen: Chosen,
        *,
        first: PictureOptions,
        outpainting: Outpainting | None = None,
        refinement: Refinement | None = None,
        notes: Iterable[str] = (),
        index: int,
        deadline: float | None,
    ) -> None:
        """`options` are those that were asked for, `first` those of the first pass, whose `arguments` are given."""
        super().__init__(request_id, self._run, start_lane=workshop.start.name, deadline=deadline, index=index)
        self.options = replace(options, extra=own_containers(dict(options.extra)))  # the recipe is of what was asked
        self.kind = kind
        self.chosen = chosen
        """Its adapters."""
        self.notes = list(notes)
        """What the caller should know of how it was made."""
        self.batched = False
        """Whether any forward of it was shared with other pictures: then it differs by rounding from one made alone."""
        self._drawn: dict[str, Any] = {}
        """Arguments that the seed has chosen."""
        if missing := self.unrecorded():
            self.notes.append(
                f"the recipe cannot hold {', '.join(missing)}, so the picture cannot be made again from it"
            )
        self._first = first
        self._outpainting = outpainting
        self._refinement = refinement
        self._cache = None if options.step_cache is None else StepCache(options.step_cache)
        self._steps = 0
        """Done, of all passes."""
        self._measured: list[tuple[str, Measurement]] = []
        """Of the components, in this pass."""
        self._shown = 0
        """Previews."""
        self._workshop = workshop
        self._arguments = arguments

    def release(self) -> None:
        """See Task. Whoever keeps a finished request does not keep the model with it, which may have left memory."""
        super().release()
        if self._finished:
            self.chosen = replace(self.chosen, adapters=(), settings={})
            self.output = None  # Finished has it
            for name in ("_workshop", "_arguments", "_first", "_outpainting", "_refinement", "_cache"):
                vars(self).pop(name, None)

    def described(self) -> dict[str, Any]:
        """The options as a recipe has them."""
        names = ("prompt", "negative", "width", "height", "steps", "guidance", "strength", "scheduler", *_MORE)
        asked = {name: value for name in names if (value := getattr(self.options, name)) is not None}
        plain = {name: value for name, value in self.options.extra.items() if _is_plain(value)}
        # What was drawn for one of several pictures does not hold for the others; each has it from its own seed.
        drawn = self._drawn if self.options.n == 1 else {}
        return {**asked, **plain, **drawn, "seed": self.options.seed, "n": self.options.n}

    def unrecorded(self) -> list[str]:
        """The options that a recipe cannot hold: tensors and the like. Of input pictures it has the hashes."""
        extra = self.options.extra
        return [name for name, value in extra.items() if name not in INPUTS and not _is_plain(value)]

    def _run(self, script: Script) -> Any:
        """The body."""
        with self._workshop.adapters.held(self.chosen):
            picture, image = self._picture(script, self.kind, self._first, self._arguments, self._outpainting)
            if self._refinement is not None:
                second = self._refinement
                self.notes += second.notes
                asked = second.asked(image)
                picture, image = self._picture(script, second.kind, asked, call_arguments(second.kind, asked))
        if note := size_note(self.options, image.size, call_parameters(self.kind)):
            self.notes.append(note)
        if self._cache is not None:
            self.notes += self._cache.notes()
        every = self.options.preview_every
        if every and not self._shown and not 0 < self._steps < every:
            self.notes.append("there are no previews of what this model makes")
        script.emit(Media(self.id, self.index, "image", image))
        return picture

    def _picture(
        self,
        script: Script,
        kind: Any,
        options: PictureOptions,
        arguments: Mapping[str, Any],
        within: Outpainting | None = None,
    ) -> Any:
        """One pass: (float32 (height, width, channels) in [0, 1], the same as a PIL picture)."""
        self._measured.clear()
        output = self._output(script, kind, options, arguments)
        pictures = numpy.asarray(_pictures(output), dtype=numpy.float32)
        (picture,) = pictures.reshape(-1, *pictures.shape[-3:])
        self._workshop.learning.note((picture.shape[1], picture.shape[0]), self._measured)
        _judge(picture, output, self._workshop.factory.models.values())
        if within is not None:
            picture = within.joined(picture)
        (image,) = pictures_from_float(picture[None])
        return picture, image

    def _output(self, script: Script, kind: Any, options: PictureOptions, arguments: Mapping[str, Any]) -> Any:
        """What the pipeline returns: diffusers' own code from here on."""
        if runs_alone(kind.__name__):
            return self._whole(script, kind, options, arguments)
        generator = torch.Generator("cpu").manual_seed(options.seed + self.index)
        arguments = {**own_containers(dict(arguments)), "generator": generator, "output_type": "np"}
        # Draws that the code forgets to give a generator to must not shift those of the others.
        further = torch.Generator("cpu").manual_seed(generator.initial_seed())
        labels = missing_labels(kind, self._workshop.factory.models, arguments, further)
        if labels:
            arguments |= labels
            self._drawn |= labels
            self.notes.append(f"no class_labels were given; the seed {generator.initial_seed()} chose {labels}")
        pipeline = self._workshop.factory.make(kind, functools.partial(self._call, script, further), options.scheduler)
        try:
            self.chosen.equip(pipeline, functools.partial(self._workshop.foreign_call, script, "unet", self._joined))
            if options.tiling:
                tile(pipeline)
            seed_noise(pipeline, generator.initial_seed())
            self._watch(script, pipeline, generator, options)
            cuts = CutWatch(pipeline, options.prompt, options.negative)
            if options.weighting:
                arguments = with_embeddings(pipeline, arguments)
            with blamed(options, lambda: self._steps):
                output = pipeline(**arguments)
            self.notes += unused_negative(pipeline, options.negative, arguments)
        finally:
            take_apart(pipeline)
        self.notes += cuts.notes(self._workshop.cut_advice(kind))
        return output

    def _whole(self, script: Script, kind: Any, options: PictureOptions, arguments: Mapping[str, Any]) -> Any:
        """What a pipeline returns that must run by itself. Each run is like the first: it may be tried again."""
        factory = self._workshop.factory

        def run() -> tuple[Any, CutWatch]:
            pipeline = factory.direct(kind, options.scheduler)
            self.chosen.equip(pipeline)
            cuts = CutWatch(pipeline, options.prompt, options.negative)
            generator = torch.Generator("cpu").manual_seed(options.seed + self.index)
            seed_noise(pipeline, generator.initial_seed())
            own = own_containers(dict(arguments))
            with attention_kept(factory.models.values()):
                return pipeline(**own, generator=generator, output_type="np"), cuts

        within = self._workshop.adapters.during(self.chosen, run)
        output, cuts = script.ask(Work(self._workshop.start.name, object(), 1, within))
        self.notes += cuts.notes("")
        return output

    def _call(self, script: Script, further: torch.Generator, component: str, call: ModelCall) -> Any:
        """A model call of the pipeline."""
        if self._cache is None:
            return self._made(script, further, component, call)
        return self._cache.call(component, call, lambda: self._made(script, further, component, call))

    def _made(self, script: Script, further: torch.Generator, component: str, call: ModelCall) -> Any:
        setting = self.chosen.settings.get(component)

        def eased() -> None:
            self.notes.append(f"memory ran out in the {component}: it went on to {call.method} in tiles")

        # With adapters or settings of its own, a component is another model.
        plain = setting is None and not call.settings
        measured = functools.partial(self._add_measured, component) if plain else None
        result = self._workshop.call(script, component, call, setting, self._joined, eased, on_measured=measured)
        if call.method == "encode":
            result = with_own_draws(result, further)
        finer = self._workshop.decoders.finer(component, call, result)
        if finer is None:
            return result
        with self._workshop.decoders.used(component):
            result = self._workshop.call(script, component, finer, setting, self._joined, eased)
        if not is_useless(result):
            self.notes.append(f"the {component} overflowed in half precision: the picture was decoded in float32")
        return result

    def _add_measured(self, component: str, found: Measurement) -> None:
        self._measured.append((component, found))

    def _joined(self) -> None:
        self.batched = True

    def _watch(self, script: Script, pipeline: Any, generator: torch.Generator, options: PictureOptions) -> None:
        """Progress, and previews, with the steps of the request's own scheduler."""
        before, later = self._steps, 0
        if self._refinement is not None and before == 0:
            later = self._refinement.steps
        if self._cache is not None:
            self._cache.begin()
        scheduler = getattr(pipeline, "scheduler", None)
        if scheduler is None or not hasattr(scheduler, "step"):
            return
        step = scheduler.step
        takes_generator = "generator" in inspect.signature(step).parameters

        @functools.wraps(step)  # pipelines look up what a step takes
        def counted(*args: Any, **kwargs: Any) -> Any:
            if takes_generator:
                # Some pipelines leave it out; a scheduler that draws would then draw from everybody's random numbers.
                kwargs.setdefault("generator", generator)
            result = step(*args, **kwargs)
            self._steps += 1
            own = int(getattr(pipeline, "_num_timesteps", None) or len(scheduler.timesteps))
            total = before + max(own, self._steps - before) + later
            if self._cache is not None:
                self._cache.next_step(own - (self._steps - before))
            script.emit(Progress(self.id, self._steps, total, self.index))
            if options.preview_every and self._steps % options.preview_every == 0:
                predicted = args[0] if args else kwargs.get("model_output")
                self._preview(script, pipeline, clean_latents(scheduler, result, predicted), options)
            return result

        scheduler.step = counted

    def _preview(self, script: Script, pipeline: Any, latents: Any, asked: PictureOptions) -> None:
        sizes = [(asked.width, asked.height)] if asked.width and asked.height else []
        sizes += [image.size for image in (asked.image if isinstance(asked.image, list) else [asked.image]) if image]
        call = functools.partial(self._workshop.call, script)
        try:
            image = self._workshop.previews.picture(pipeline, latents, sizes, call)
        except Exception as error:
            if not is_shortage(error):
                raise
            image = None  # no reason to lose the picture
        if image is not None:
            self._shown += 1
            script.emit(Preview(self.id, self._steps, image, index=self.index))


def _pictures(output: Any) -> Any:
    return output.images if hasattr(output, "images") else output.image


def _is_plain(value: Any) -> bool:
    """Whether JSON has it."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(_is_plain, value.values()))
    return isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value))


def _judge(picture: Any, output: Any, models: Iterable[nn.Module]) -> None:
    """Raise GenerationFailed for a picture that is none; `models` made it."""
    flagged = getattr(output, "nsfw_content_detected", None)
    if flagged and any(flagged):
        raise GenerationFailed("the model's own safety checker took the picture away; try another prompt or seed")
    if reason := blank_reason(picture):
        raise GenerationFailed(f"the model made no picture ({reason}); {advice(models)}")
