"""One picture, video or sound: the pipeline's own code as a coroutine, and what Kamado does before and after it."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from kamado.contracts import Work
from kamado.events import Media, Preview, Progress
from kamado.media.inputs import INPUTS
from kamado.memory.shortage import is_shortage
from kamado.outputs import KINDS, Output, Picture
from kamado.picture_requests import PictureOptions
from kamado.tasks.library.kept import KeptOutputs
from kamado.tasks.library.lane import HostLane, Measurement, ModelLane
from kamado.tasks.library.standin import Identity, ModelCall
from kamado.tasks.library.task import LibraryTask, Script

from .adapters import Adapters
from .adapters_uses import Chosen, Setting
from .cuts import CutWatch
from .draws import missing_labels, seed_noise, with_own_draws
from .guards import FinerDecoders, is_useless
from .inputs import size_notes
from .intake import Order
from .learning import PictureLearning
from .outcomes import judged, outcome_of, picture_of
from .pipelines import (
    PipelineFactory,
    attention_kept,
    call_arguments,
    own_containers,
    take_apart,
)
from .previews import Previews, clean_latents
from .prompts import can_weight, with_embeddings
from .refusals import blamed, unused_negative
from .related import call_parameters
from .step_cache import StepCache
from .stepping import WatchedStep
from .table import runs_alone
from .tiling import tile

_MORE = (
    *("control_map", "control_scale", "weighting", "hires", "hires_strength", "hires_steps"),
    *("tiling", "outpaint", "step_cache"),
)
_TIMED = ("frames", "fps", "seconds")


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
    """One answer of a pipeline: a picture, mostly. What else pipelines make is for `outcomes` to know."""

    def __init__(
        self,
        workshop: Workshop,
        request_id: str,
        order: Order,
        chosen: Chosen,
        *,
        index: int,
        deadline: float | None,
    ) -> None:
        super().__init__(request_id, self._run, start_lane=workshop.start.name, deadline=deadline, index=index)
        options = order.asked
        self.options = replace(options, extra=own_containers(dict(options.extra)))  # the recipe is of what was asked
        self.kind = order.kind
        self.chosen = chosen
        """Its adapters."""
        self.notes = list(order.notes)
        """What the caller should know of how it was made."""
        self.batched = False
        """Whether any forward of it was shared with other pictures: then it differs by rounding from one made alone."""
        self._drawn: dict[str, Any] = {}
        """Arguments that the seed has chosen."""
        if missing := self.unrecorded():
            word = outcome_of(order.kind).word
            self.notes.append(
                f"the recipe cannot hold {', '.join(missing)}, so the {word} cannot be made again from it"
            )
        self._order = order
        self._outcome = outcome_of(order.kind)
        self._cache = None if options.step_cache is None else StepCache(options.step_cache)
        self._steps = 0
        """Done, of all passes."""
        self._measured: list[tuple[str, Measurement]] = []
        """Of the components, in this pass."""
        self._shown = 0
        """Previews."""
        self._is_previewing = False
        """Whether models are called for a preview now: such calls say nothing of what the answer takes."""
        self._workshop = workshop

    def release(self) -> None:
        """See Task. Whoever keeps a finished request does not keep the model with it, which may have left memory."""
        super().release()
        if self._finished:
            self.chosen = replace(self.chosen, adapters=(), settings={})
            self.output = None  # Finished has it
            for name in ("_workshop", "_order", "_cache"):
                vars(self).pop(name, None)

    def described(self) -> dict[str, Any]:
        """The options as a recipe has them."""
        names = ("prompt", "negative", "width", "height", "steps", "guidance", "strength", "scheduler", *_MORE, *_TIMED)
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
        order = self._order
        with self._workshop.adapters.held(self.chosen):
            made = self._made(script, self.kind, order.first, order.arguments)
            if order.outpainting is not None and isinstance(made, Picture):
                made = picture_of(order.outpainting.joined(made.pixels))
            if order.refinement is not None and isinstance(made, Picture):
                second = order.refinement
                self.notes += second.notes
                asked = second.asked(made.image)
                made = self._made(script, second.kind, asked, call_arguments(second.kind, asked))
        extent = self._outcome.extent(made)
        self.notes += size_notes(self.options, order.first, extent, call_parameters(self.kind))
        if self._cache is not None:
            self.notes += self._cache.notes()
        every = self.options.preview_every
        if every and not self._shown and not 0 < self._steps < every:
            self.notes.append("there are no previews of what this model makes")
        data = made.image if isinstance(made, Picture) else made
        script.emit(Media(self.id, self.index, KINDS[type(made)], data))  # type: ignore[arg-type]
        return made

    def _made(self, script: Script, kind: Any, options: PictureOptions, arguments: Mapping[str, Any]) -> Output:
        """What one pass makes."""
        self._measured.clear()
        returned = self._output(script, kind, options, arguments)
        made = judged(self._outcome, returned, self._order.rates, self._workshop.factory.models.values())
        self._workshop.learning.note(self._outcome.extent(made), self._measured)
        return made

    def _output(self, script: Script, kind: Any, options: PictureOptions, arguments: Mapping[str, Any]) -> Any:
        """What the pipeline returns: diffusers' own code from here on."""
        if runs_alone(kind.__name__):
            return self._whole(script, kind, options, arguments)
        generator = torch.Generator("cpu").manual_seed(options.seed + self.index)
        arguments = {**own_containers(dict(arguments)), "generator": generator, **self._asked_for(kind)}
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

    def _asked_for(self, kind: Any) -> dict[str, Any]:
        """The form that the pipeline's output shall have."""
        wanted = self._outcome.output_type
        return {} if wanted is None or "output_type" not in call_parameters(kind) else {"output_type": wanted}

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
                return pipeline(**own, generator=generator, **self._asked_for(kind)), cuts

        within = self._workshop.adapters.during(self.chosen, run)
        output, cuts = script.ask(Work(self._workshop.start.name, object(), 1, within))
        self.notes += cuts.notes("")
        return output

    def _call(self, script: Script, further: torch.Generator, component: str, call: ModelCall) -> Any:
        """A model call of the pipeline."""
        if self._cache is None:
            return self._called(script, further, component, call)
        return self._cache.call(component, call, lambda: self._called(script, further, component, call))

    def _called(self, script: Script, further: torch.Generator, component: str, call: ModelCall) -> Any:
        setting = self.chosen.settings.get(component)

        def eased() -> None:
            self.notes.append(f"memory ran out in the {component}: it went on to {call.method} in tiles")

        # With adapters or settings of its own, a component is another model.
        plain = setting is None and not call.settings and not self._is_previewing
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
            self.notes.append(
                f"the {component} overflowed in half precision: the {self._outcome.word} was decoded in float32"
            )
        return result

    def _add_measured(self, component: str, found: Measurement) -> None:
        self._measured.append((component, found))

    def _joined(self) -> None:
        self.batched = True

    def _watch(self, script: Script, pipeline: Any, generator: torch.Generator, options: PictureOptions) -> None:
        """Progress, and previews, with the steps of the request's own scheduler."""
        before, later = self._steps, 0
        if self._order.refinement is not None and before == 0:
            later = self._order.refinement.steps
        if self._cache is not None:
            self._cache.begin()
        scheduler = getattr(pipeline, "scheduler", None)
        if scheduler is None or not hasattr(scheduler, "step"):
            return
        takes_generator = "generator" in inspect.signature(scheduler.step).parameters

        def counted(step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
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

        scheduler.step = WatchedStep(scheduler, counted)

    def _preview(self, script: Script, pipeline: Any, latents: Any, asked: PictureOptions) -> None:
        sizes = [(asked.width, asked.height)] if asked.width and asked.height else []
        sizes += [image.size for image in (asked.image if isinstance(asked.image, list) else [asked.image]) if image]
        call = functools.partial(self._workshop.call, script)
        self._is_previewing = True
        try:
            image = self._workshop.previews.picture(pipeline, latents, sizes, call)
        except Exception as error:
            if not is_shortage(error):
                raise
            image = None  # no reason to lose the picture
        finally:
            self._is_previewing = False
        if image is not None:
            self._shown += 1
            script.emit(Preview(self.id, self._steps, image, index=self.index))


def _is_plain(value: Any) -> bool:
    """Whether JSON has it."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(_is_plain, value.values()))
    return isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value))
