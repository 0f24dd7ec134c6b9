"""The parts of a diffusers checkpoint: which class each is, and how it comes into memory.

Classes are those of the installed libraries, found by name. Nothing in a checkpoint can name other code.
"""

from __future__ import annotations

import enum
import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from kamado.checkpoint.parts import SEVERAL
from kamado.checkpoint.types import Checkpoint
from kamado.errors import InvalidRequest, UnsafeCheckpoint, UnsupportedCheckpoint
from kamado.memory.plan import Plan
from kamado.memory.shortage import is_shortage
from kamado.quant import Quant
from kamado.weights.deferred import ShapedTensor
from kamado.weights.outside.weights import OutsideWeights, kept_single
from kamado.weights.quantized.reading import quantizing
from kamado.weights.quantized.stored.methods import method_of
from kamado.weights.quantized.stored.reading import stored_tensors
from kamado.weights.stream import ReadProgress

from ..language.materialize import library_call, materialize
from .control import check_fit, check_nets, without_control
from .original.assemble import ORIGINAL, SCHEDULER
from .original.convert import for_diffusers, for_transformers
from .parts import component_tensors, home_of
from .previews import TINY_DECODER

_COUNTS = re.compile(r"^(?!max_)(?!.*_per_layer$).*(?:layers?|blocks?|depths?|mappers)$")
"""Keys of configurations that say how often something is built. `max_window_layers` is a place, and what there is per
layer is heads and the like."""
_INDEXES = re.compile(r"(?<!num)_layers$")
"""Keys with lists of places, as `vace_layers`."""
_LEVELS = re.compile(r"(?:channels|types|mults?|multipliers|multiples|strides|rates|ratios|expansions|downsample)$")
"""Keys with lists that have an entry for each level."""


def component_class(reference: str, name: str, library: str, class_name: str) -> Any:
    """The class of one component. Raises UnsafeCheckpoint, UnsupportedCheckpoint."""
    if library in ("diffusers", "transformers"):
        found = getattr(importlib.import_module(library), class_name, None)
    elif library.isidentifier():
        import diffusers.pipelines

        found = getattr(getattr(diffusers.pipelines, library, None), class_name, None)
    else:
        raise UnsafeCheckpoint(f"{reference}: its {name} is code of its own ({library}.{class_name}), which is not run")
    if not isinstance(found, type):
        raise UnsupportedCheckpoint(
            f"{reference}: the installed libraries have no {library}.{class_name}, which its {name} is; newer ones may"
        )
    return found


def pipeline_class(checkpoint: Checkpoint) -> Any:
    """The class that `model_index.json` names. Raises UnsupportedCheckpoint, UnsafeCheckpoint."""
    import diffusers

    name = checkpoint.config.get("_class_name")
    if not isinstance(name, str):
        raise UnsafeCheckpoint(f"{checkpoint.reference}: its pipeline is code of its own ({name!r}), which is not run")
    found = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)):
        raise UnsupportedCheckpoint(
            f"{checkpoint.reference}: the installed diffusers has no pipeline {name}; a newer one may"
        )
    return found


def component_entries(checkpoint: Checkpoint) -> dict[str, tuple[str, str]]:
    """`{name: (library, class)}` of the components that are there."""
    return {
        name: (value[0], value[1])
        for name, value in checkpoint.config.items()
        if not name.startswith("_")
        and isinstance(value, (list, tuple))
        and len(value) == 2
        and all(isinstance(part, str) for part in value)
    }


def check_parts(checkpoint: Checkpoint, pipeline: Any) -> None:
    """Raise UnsupportedCheckpoint for a part (see Checkpoint.parts) of another class than the pipeline takes, and
    InvalidRequest for one that it has no place for."""
    import diffusers

    entries = component_entries(checkpoint)
    kinds = {
        name: component_class(checkpoint.reference, name, *entries[name])
        for name in entries
        if name in checkpoint.parts or name.startswith(SEVERAL)
    }
    nets = {name: kind for name, kind in kinds.items() if name.startswith(SEVERAL)}
    check_nets(checkpoint.reference, without_control(pipeline), nets)
    check_fit(checkpoint.reference, checkpoint.metadata["components"])
    # The pipeline knows nothing of the decoder that makes previews.
    types = {**pipeline._get_signature_types(), TINY_DECODER: (diffusers.AutoencoderTiny,)}
    for name in checkpoint.parts.keys() - nets.keys():
        if name not in types:
            known = ", ".join(sorted((types.keys() & entries.keys()) | {SEVERAL, TINY_DECODER}))
            raise InvalidRequest(f"{checkpoint.reference} has no component {name}; it has {known}")
        wanted = [each for each in types[name] if isinstance(each, type)]
        kind = kinds.get(name)
        if kind is not None and wanted and not any(_stands_for(kind, each) for each in wanted):
            part = checkpoint.parts[name]
            assert part is not None
            names = " or ".join(each.__name__ for each in wanted)
            raise UnsupportedCheckpoint(f"{part.reference} is a {kind.__name__}; the {name} must be a {names}")


def _stands_for(kind: type, wanted: type) -> bool:
    """Whether a component of class `kind` can be where a pipeline wants a `wanted`."""
    import diffusers
    import transformers

    if issubclass(kind, wanted):
        return True
    if wanted is diffusers.AutoencoderKL:
        return issubclass(kind, (diffusers.AutoencoderTiny, diffusers.AsymmetricAutoencoderKL))
    if issubclass(kind, diffusers.SchedulerMixin):  # some classes list schedulers, as an enumeration
        return issubclass(wanted, (diffusers.SchedulerMixin, enum.Enum))
    # Tokenizers of one vocabulary are of several classes; image processors, too.
    return any(
        issubclass(kind, each) and issubclass(wanted, each)
        for each in (transformers.PreTrainedTokenizerBase, transformers.ImageProcessingMixin)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """One model of a pipeline, to be loaded."""

    what: str
    """For messages."""
    model: Any
    """As it was built, without weights."""
    tensors: Mapping[str, ShapedTensor]
    dtype: torch.dtype
    device: str
    quant: Quant | None
    outside: OutsideWeights | None
    name: str
    """Of the component, for `quant` and `outside`."""
    original: bool
    """Whether the tensors may have their authors' names."""

    def quantized(self, tensors: Mapping[str, ShapedTensor]) -> dict[str, ShapedTensor]:
        """The tensors as they are to be read."""
        found: dict[str, Any] = dict(tensors)
        if self.quant is not None:
            found = quantizing(found, self.quant, self.dtype, self.device, prefix=f"{self.name}/")
        if self.outside is not None:
            found = self.outside.reading(
                found, self.dtype, prefix=f"{self.name}/", single=kept_single(type(self.model))
            )
        return found

    @property
    def place(self) -> str:
        """The device that the weights are read to."""
        return self.device if self.outside is None else "cpu"


def build_components(checkpoint: Checkpoint) -> dict[str, Any]:
    """Every component, without weights: pipelines can be made of them, and run once `load_weights` has them complete.
    Models of transformers have no more than their class and configuration.

    Raises UnsupportedCheckpoint, UnsafeCheckpoint."""
    components: dict[str, Any] = {}
    for name, (library, class_name) in component_entries(checkpoint).items():
        kind = component_class(checkpoint.reference, name, library, class_name)
        if not issubclass(kind, nn.Module):
            components[name] = _load_tool(checkpoint, name, kind)
            continue
        config = checkpoint.metadata["components"].get(name)
        if config is None:
            raise UnsupportedCheckpoint(f"{checkpoint.reference}: config.json of the component {name!r} is missing")
        what = f"{checkpoint.reference}: its {name}"
        _check_depth(what, config, sum(key.startswith(f"{name}/") for key in checkpoint.tensors))
        components[name] = _build_model(what, kind, config)
    return components


def load_weights(
    checkpoint: Checkpoint,
    built: Mapping[str, Any],
    plan: Plan,
    progress: Callable[[int, int], None] | None = None,
    outside: OutsideWeights | None = None,
) -> dict[str, Any]:
    """What `build_components` returned, with weights: models as planned, in evaluation mode. `outside`: weights that
    are not to be held on the device; its `attach` brings the others there.

    Raises UnsupportedCheckpoint."""
    dtypes = {lane.lane: lane.dtype for lane in plan.lanes}
    meter = ReadProgress(checkpoint.weight_bytes, progress or (lambda done, total: None))
    components = dict(built)
    for name, model in built.items():
        if not isinstance(model, nn.Module):
            continue
        part = _Part(
            what=f"{checkpoint.reference}: its {name}",
            model=model,
            tensors=stored_tensors(component_tensors(checkpoint, name), getattr(torch, dtypes[name])),
            dtype=getattr(torch, dtypes[name]),
            device=plan.device,
            quant=plan.quant,
            outside=outside,
            name=name,
            original=name in checkpoint.metadata.get(ORIGINAL, ()),
        )
        components[name] = _load_model(part)
        meter.add(sum(tensor.nbytes for tensor in part.tensors.values()))
    return components


def fresh_tool(checkpoint: Checkpoint, name: str) -> Any:
    """One more of a component without weights, from its files. Raises UnsupportedCheckpoint."""
    entry = component_entries(checkpoint).get(name)
    if entry is None:
        raise UnsupportedCheckpoint(f"{checkpoint.reference} has no {name}")
    return _load_tool(checkpoint, name, component_class(checkpoint.reference, name, *entry))


def _load_tool(checkpoint: Checkpoint, name: str, kind: Any) -> Any:
    """A tokenizer, scheduler or image processor, from its own files."""
    try:
        with library_call():
            told = checkpoint.metadata.get(SCHEDULER) if name == SCHEDULER else None
            if told and name not in (checkpoint.base.config if checkpoint.base is not None else ()):
                return kind.from_config(told)
            tool = kind.from_pretrained(str(home_of(checkpoint, name)), local_files_only=True)
            return type(tool).from_config(tool.config, **told) if told else tool
    except (OSError, ValueError, TypeError, KeyError, ImportError, AttributeError) as error:
        raise UnsupportedCheckpoint(f"{checkpoint.reference}: its {name} cannot be loaded: {_first(error)}") from error


def _check_depth(what: str, config: Mapping[str, Any], num_tensors: int) -> None:
    """Every layer has a tensor. A configuration of more layers than there are tensors can only fail, and before that,
    building them may take hours. Raises UnsupportedCheckpoint."""
    levels = max((len(value) for key, value in config.items() if _LEVELS.search(key) and _is_list(value)), default=1)
    counts = {"levels": levels}
    for key, value in config.items():
        if isinstance(value, Mapping):
            _check_depth(what, value, num_tensors)
        elif _COUNTS.search(key):
            each = _numbers(value)
            total = max(each, default=0) if _INDEXES.search(key) and _is_list(value) else sum(each)
            counts[key] = total * levels if key.endswith("per_block") and not _is_list(value) else total
    # A UNet has so many transformers in each of a level's layers.
    inner = sum(_numbers(config.get("transformer_layers_per_block")))
    counts["layers_per_block"] = counts.get("layers_per_block", 0) * max(inner, 1)
    for key, count in counts.items():
        if count > num_tensors:
            raise UnsupportedCheckpoint(
                f"{what} has {count} layers by its config.json ({key}), and only {num_tensors} tensors: they disagree"
            )


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _numbers(value: Any) -> list[int]:
    """The whole numbers above 0 in a value of a configuration: itself, or those in its lists."""
    if _is_list(value):
        return [number for each in value for number in _numbers(each)]
    return [value] if isinstance(value, int) and not isinstance(value, bool) and value > 0 else []


def _build_model(what: str, kind: Any, config: Mapping[str, Any]) -> nn.Module:
    method_of(config, what)
    config = {key: value for key, value in config.items() if key != "quantization_config"}
    import transformers

    if not issubclass(kind, transformers.PreTrainedModel):
        try:
            with library_call(), torch.no_grad(), _WithoutWeights():
                return kind.from_config(config)  # type: ignore[no-any-return]
        except Exception as error:  # whatever a class makes of absurd values
            if is_shortage(error):
                raise
            raise UnsupportedCheckpoint(f"{what} cannot be built from its config.json: {_first(error)}") from error
    # transformers' own loader builds the model itself.
    model: Any = kind.__new__(kind)
    nn.Module.__init__(model)
    model.config = kind.config_class.from_dict({key: value for key, value in config.items() if not key.startswith("_")})
    return model  # type: ignore[no-any-return]


def _load_model(part: _Part) -> nn.Module:
    import transformers

    kind = type(part.model)
    if not issubclass(kind, transformers.PreTrainedModel):
        return _load_diffusers_model(part)
    tensors = part.quantized(diffusers_names(part.model, part.tensors, part.what) if part.original else part.tensors)
    model, _ = materialize(kind, part.model.config, tensors, dtype=part.dtype, device=part.place)
    return model  # type: ignore[no-any-return]


def diffusers_names(model: Any, tensors: Mapping[str, ShapedTensor], what: str) -> Mapping[str, ShapedTensor]:
    """The tensors of a component, as its authors have them, as they are in a folder of diffusers. `model`: from
    `build_components`; `what` names it in errors. Raises UnsupportedCheckpoint."""
    import transformers

    if isinstance(model, transformers.PreTrainedModel):
        return for_transformers(type(model), model.config, tensors, what)
    return for_diffusers(model, tensors, what)


class _WithoutWeights(TorchFunctionMode):
    """While inside, in this thread: memory that a class would fill with random weights is not even allocated. What it
    computes (position tables, say) is real."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _load_diffusers_model(part: _Part) -> nn.Module:
    model = part.model
    stored = dict(diffusers_names(model, part.tensors, part.what) if part.original else part.tensors)
    if hasattr(model, "_fix_state_dict_keys_on_load"):
        model._fix_state_dict_keys_on_load(stored)
    wanted = model.state_dict()
    _check_names(part, stored, wanted)
    stored = part.quantized(stored)
    single = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    state = {}
    for key in wanted:
        tensor = stored[key].read()
        if tensor.is_floating_point():
            tensor = tensor.to(torch.float32 if single & set(key.split(".")) else part.dtype)
        state[key] = tensor.to(part.place)
    model.load_state_dict(state, assign=True)
    for module in model.modules():  # buffers that no file holds
        for key, buffer in module._buffers.items():
            module._buffers[key] = None if buffer is None else buffer.to(part.place)
    model.eval()
    model.requires_grad_(False)
    return model  # type: ignore[no-any-return]


def _check_names(part: _Part, stored: Mapping[str, ShapedTensor], wanted: Mapping[str, torch.Tensor]) -> None:
    ignorable = getattr(part.model, "_keys_to_ignore_on_load_unexpected", None) or ()
    extra = (key for key in stored.keys() - wanted.keys() if not any(re.search(each, key) for each in ignorable))
    shapes = (key for key in stored.keys() & wanted.keys() if tuple(stored[key].shape) != tuple(wanted[key].shape))
    problems = {"lacks": wanted.keys() - stored.keys(), "has no place for": extra, "has another shape of": shapes}
    for problem, keys in problems.items():
        names = sorted(keys)
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UnsupportedCheckpoint(
                f"{part.what} {problem} {', '.join(names[:3])}{more}: its weights and its config.json disagree"
            )


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
