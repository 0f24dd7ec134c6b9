"""Pipelines of single requests: diffusers' own classes over stand-ins of the models, which all requests share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from diffusers import SchedulerMixin
from torch import nn

from kamado.checkpoint.parts import SEVERAL
from kamado.errors import InvalidRequest
from kamado.picture_requests import PictureOptions
from kamado.tasks.library.standin import ModelCall, dissolve, stand_in

from . import control
from .auto import auto_pipeline
from .conditions import takes_conditions, with_conditions
from .older import as_expected
from .refusals import check_typed, not_taken
from .related import argument_of, call_parameters, class_taking
from .schedulers import new_scheduler
from .stepping import check_stepping, inner_pipelines, replace_scheduler
from .table import makes
from .timed import timed_arguments


class PipelineFactory:
    """Makes pipelines over one set of components."""

    def __init__(self, reference: str, base: Any, components: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """`base`: the checkpoint's pipeline class. `settings`: what else its `model_index.json` says."""
        self.reference = reference
        self.base = control.without_control(base)
        self.components = components
        self.nets = control.nets_of(components)
        self.settings = settings

    @property
    def models(self) -> dict[str, nn.Module]:
        """The components that compute."""
        return {name: part for name, part in self.components.items() if isinstance(part, nn.Module)}

    def kind(self, options: PictureOptions) -> Any:
        """The pipeline class that serves the request. Raises InvalidRequest, also for a scheduler that it cannot run
        with."""
        found = self._kind(options)
        if options.scheduler is not None:
            check_stepping(found, self.components.get("scheduler"), options.scheduler)
        return found

    def _kind(self, options: PictureOptions) -> Any:
        for name in ("video", "audio"):
            if getattr(options, name) is None or argument_of(name, call_parameters(self.base)) is not None:
                continue
            if (taking := class_taking(name, self.base)) is None:
                raise not_taken(self.base, name, taken_arguments(self.base))
            return taking
        if options.control is not None and (options.image is not None or options.mask is None):
            found = self._control_kind(options)
            if found is not None:
                return found
        if options.image is None:
            if options.mask is not None:
                raise InvalidRequest("a mask needs the picture that it belongs to; give image too")
            return self.base
        parameters = call_parameters(self.base)
        if "image" in parameters and (options.mask is None or "mask_image" in parameters):
            return self.base
        if options.mask is None and (taking := class_taking("image", self.base)) is not None:
            return taking
        return self._sibling(inpaint=options.mask is not None)

    def make(self, kind: Any, divert: Callable[[str, ModelCall], Any], scheduler: str | None) -> Any:
        """A pipeline of class `kind` whose model calls go to `divert(component, call)`. Raises InvalidRequest."""
        stands = {
            name: stand_in(part, lambda call, name=name: divert(name, call))  # type: ignore[misc]
            for name, part in self.models.items()
        }
        as_expected(kind, stands)
        return self._made(kind, stands, scheduler)

    def direct(self, kind: Any = None, scheduler: str | None = None) -> Any:
        """A pipeline of class `kind`, or the checkpoint's, over the components themselves."""
        return self._made(kind or self.base, self.models, scheduler)

    def _made(self, kind: Any, models: Mapping[str, nn.Module], scheduler: str | None) -> Any:
        expected, optional = kind._get_signature_keys(kind)
        parts: dict[str, Any] = {}
        for name in expected:
            part = models.get(name, self.components.get(name))
            if name == SEVERAL and self.nets:
                parts[name] = control.joined(kind, [models[net] for net in self.nets])
            elif name in models:
                parts[name] = part
            elif isinstance(part, SchedulerMixin) or (name == "scheduler" and part is not None):
                parts[name] = new_scheduler(part, None)
            elif part is not None or name in kind._optional_components or self.settings.get(name) == _LEFT_OUT:
                parts[name] = part
            elif inspect.signature(kind.__init__).parameters[name].default is inspect.Parameter.empty:
                raise InvalidRequest(f"{self.reference} has no {name}, which {kind.__name__} needs")
        settings = {name: value for name, value in self.settings.items() if name in optional}
        if "requires_safety_checker" in optional and parts.get("safety_checker") is None:
            settings["requires_safety_checker"] = False
        pipeline = kind(**parts, **settings)
        pipeline.set_progress_bar_config(disable=True)
        if scheduler is not None:
            # Afterwards, as people do: some pipelines correct the settings of the one that they are made with.
            replace_scheduler(pipeline, scheduler)
        return pipeline

    def _control_kind(self, options: PictureOptions) -> Any:
        """The class that takes the request's picture for a ControlNet; None where the model takes it without one."""
        if not self.nets:
            if "control_image" in call_parameters(self.base):
                return None
            raise InvalidRequest(
                f"{self.reference} was loaded without a ControlNet, so it takes no control; "
                "load it with a component controlnet (--component controlnet=REF)"
            )
        task = control.task_of(options)
        found = control.with_control(self.base, task, [type(net) for net in self.nets.values()])
        if found is None:
            beside = {"text": "alone", "image": "beside image", "mask": "beside image and mask"}[task]
            raise InvalidRequest(f"{self.reference} ({self.base.__name__}) takes no control {beside}")
        return found

    def _sibling(self, *, inpaint: bool) -> Any:
        """The class of the same models that takes a picture, and a mask. Raises InvalidRequest."""
        auto = auto_pipeline()
        whole: Any = (
            (auto.AUTO_TEXT2IMAGE_PIPELINES_MAPPING, auto.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING),
            auto.AUTO_INPAINT_PIPELINES_MAPPING,
        )
        # Without the part that reads the text.
        decoders: Any = (
            (auto._AUTO_TEXT2IMAGE_DECODER_PIPELINES_MAPPING, auto._AUTO_IMAGE2IMAGE_DECODER_PIPELINES_MAPPING),
            auto._AUTO_INPAINT_DECODER_PIPELINES_MAPPING,
        )
        for (text, image), inpainting in (whole, decoders):
            target = inpainting if inpaint else image
            for name, kind in (*text.items(), *image.items()):
                if kind is self.base and name in target:
                    return target[name]
        raise InvalidRequest(f"{self.reference} ({self.base.__name__}) takes no {'mask' if inpaint else 'picture'}")


def take_apart(pipeline: Any) -> None:
    """Let go of what a pipeline of a request holds; it cannot be used afterwards. Its stand-ins, its scheduler and who
    made it hold each other: without this they would live until the garbage collector looks for such rings."""
    for each in (*inner_pipelines(pipeline), pipeline):
        for part in list(vars(each).values()):
            if isinstance(part, nn.Module):
                for model in (*getattr(part, "nets", ()), part):  # ControlNets are several
                    dissolve(model)
            elif isinstance(part, SchedulerMixin):
                vars(part).pop("step", None)
        vars(each).clear()


def taken_arguments(kind: Any) -> list[str]:
    """Of those, what requests may set."""
    return [name for name in call_parameters(kind) if name not in _RESERVED]


def takes_size(kind: Any) -> bool:
    """Whether the pipeline is told how large the picture shall be."""
    return {"width", "height"} <= call_parameters(kind).keys()


def call_arguments(kind: Any, options: PictureOptions) -> dict[str, Any]:
    """Options as arguments of the pipeline's `__call__`. Raises InvalidRequest for what it does not take."""
    parameters = call_parameters(kind)
    names = {
        "prompt": "prompt",
        "negative": "negative_prompt",
        "width": "width",
        "height": "height",
        "steps": "num_inference_steps",
        "guidance": _guidance_name(parameters),
        "strength": "strength",
        "image": "image",
        "mask": "mask_image",
        "control": "control_image" if "control_image" in parameters or options.image is not None else "image",
        "control_scale": "controlnet_conditioning_scale",
        "last_image": "last_image",
    }
    arguments: dict[str, Any] = {}
    for option, name in names.items():
        value = getattr(options, option)
        if value is None:
            continue
        if name not in parameters and not (option == "last_image" and takes_conditions(kind)):
            raise not_taken(kind, option, taken_arguments(kind))
        arguments[name] = value
    arguments |= timed_arguments(kind, options, parameters)
    for name, value in options.extra.items():
        if name not in parameters or name in _RESERVED:
            raise not_taken(kind, name, taken_arguments(kind))
        check_typed(name, value, parameters[name])
        if name in _SEEDLESS:
            raise InvalidRequest(f"{name} cannot be used: {kind.__name__} draws what it needs for it without the seed")
        arguments[name] = own_containers(value)
    arguments = with_conditions(kind, options, arguments)
    if "prompt" in parameters and "prompt" not in arguments and not _has_embeddings(arguments):
        made = {"video": "video shows", "audio": "sound is"}.get(makes(kind.__name__), "picture shows")
        raise InvalidRequest(f"give a prompt: a text that says what the {made}")
    for name, parameter in parameters.items():
        needed = parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        if needed and name != "self" and name not in arguments:
            raise InvalidRequest(f"give {kind.__name__} {name}")
    _check_pictures(kind, parameters, arguments)
    return arguments


def _check_pictures(kind: Any, parameters: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Raises InvalidRequest for pictures that the pipeline has a default for, but fails without, when it runs."""
    wanted = next((names for part, names in _WANTED.items() if part in kind.__name__), {})
    missing = [option for name, option in wanted.items() if name in parameters and name not in arguments]
    if missing and not any("latents" in name or "embed" in name for name in arguments):
        raise InvalidRequest(f"give {kind.__name__} {' and '.join(missing)}")


def own_containers(value: Any) -> Any:
    """The same values in dictionaries, lists and tuples of one's own: some pipelines write into theirs."""
    if type(value) is dict:
        return {key: own_containers(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(own_containers, value))
    return value


@contextmanager
def attention_kept(models: Iterable[Any]) -> Iterator[None]:
    """What the code inside puts in place of the models' attention, it may leave there, also by failing half-way:
    afterwards all is as it was."""
    before = [(model, dict(model.attn_processors)) for model in models if hasattr(model, "attn_processors")]
    try:
        yield
    finally:
        for model, processors in before:
            if dict(model.attn_processors) != processors:
                model.set_attn_processor(dict(processors))


_LEFT_OUT = [None, None]
"""What `model_index.json` says of a component that is not there."""
_RESERVED = frozenset(
    {
        *("self", "kwargs", "output_type", "return_dict", "generator", "callback_on_step_end", "callback"),
        *("callback_on_step_end_tensor_inputs", "callback_steps", "num_images_per_prompt", "batch_size"),
        *("output_uncertainty", "output_latent"),
        *("num_videos_per_prompt", "num_waveforms_per_prompt"),
    }
)
_WANTED: Mapping[str, Mapping[str, str]] = {
    # A part of the names of classes, and the options by the arguments' names. These never make do without.
    "Inpaint": {"image": "image", "mask_image": "mask"},
    "FluxFill": {"image": "image", "mask_image": "mask"},
    "Img2Img": {"image": "image"},
    "ImageToVideo": {"image": "image"},
}
_SEEDLESS = frozenset({"gligen_inpaint_image"})
"""Arguments for which the library draws from the random numbers of the whole program."""


def _guidance_name(parameters: Mapping[str, inspect.Parameter]) -> str:
    """Where a pipeline has two, the distilled one is only for models that were distilled for it."""
    plain = parameters.get("guidance_scale")
    if "true_cfg_scale" in parameters and (plain is None or plain.default is None):
        return "true_cfg_scale"
    return "guidance_scale"


def _has_embeddings(arguments: Mapping[str, Any]) -> bool:
    return any(name.endswith("prompt_embeds") for name in arguments)
