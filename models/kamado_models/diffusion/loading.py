"""Bring a pipeline into memory as planned: components, lanes, the factory of requests' pipelines."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from kamado.checkpoint.types import Checkpoint
from kamado.contracts import LoadEnvironment
from kamado.memory.plan import Plan
from kamado.tasks.library.kept import Keeping, KeptOutputs
from kamado.tasks.library.lane import HostLane, ModelLane
from kamado.weights.outside.parked import ParkedModules
from kamado.weights.outside.weights import OutsideWeights
from kamado.weights.prepared.entry import Kept
from kamado.weights.quantized.tensor import held_bytes, is_quantized
from kamado.weights.quantized.tiled import tile_weights

from ..language.materialize import library_call
from ..language.positions import fields_of, shifting_positions
from .adapters import Adapters, is_plain
from .auto import auto_pipeline
from .compiling import CompiledBlocks, in_channels_last, running_around
from .components import build_components, check_parts, component_entries, fresh_tool, load_weights, pipeline_class
from .guards import FinerDecoders
from .intake import Intake, check_adapters
from .joining import JoinedLayers
from .known import ROWS_APART
from .learning import PictureLearning
from .model import PipelineModel
from .pipelines import PipelineFactory
from .placing import names_outside
from .prepared import entry_of, found_in, modules_of
from .previews import Previews
from .sizes import Sizes, sizes_of
from .task import Workshop
from .tiling import tiled_call
from .usual import usual_extent

_POSITIONS = {"cpu": 1 << 14, "gpu": 1 << 18}
"""Latent positions of one forward: on a CPU larger batches gain little and make others wait."""
_KEPT_BYTES, _KEPT_SHARE = 256 << 20, 32
"""The most that outputs of encoders may take, and the share of all memory that they may. Of one prompt: a few MB, or
tens where a language model's states are taken from every layer."""
_DENOISERS = ("unet", "transformer")
"""Names of components that run in every step begin so."""
_MAX_ROWS = {"cpu": 8, "gpu": 32}
_DECODED = {"cpu": 1 << 12, "gpu": 1 << 14}
"""Latent positions that an autoencoder takes at once: its temporary tensors have the size of the pictures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    """A pipeline without weights."""

    kind: Any
    """Its class."""
    settings: Mapping[str, Any]
    """Of the pipeline itself."""
    built: Mapping[str, Any]
    """Its components."""
    factory: PipelineFactory
    sizes: Sizes


def _frame(checkpoint: Checkpoint) -> _Frame:
    with library_call():
        kind = pipeline_class(checkpoint)
    auto_pipeline()
    check_parts(checkpoint, kind)
    parts = component_entries(checkpoint)
    settings = {
        name: value for name, value in checkpoint.config.items() if not name.startswith("_") and name not in parts
    }
    built = build_components(checkpoint)
    factory = PipelineFactory(checkpoint.reference, kind, built, settings)
    sizes = sizes_of(factory.make(kind, lambda component, call: None, None), usual_extent(checkpoint))
    return _Frame(kind=kind, settings=settings, built=built, factory=factory, sizes=sizes)


def check_requests(checkpoint: Checkpoint, plan: Plan, requests: Iterable[Mapping[str, Any]], *, offline: bool) -> None:
    """See Family.check_requests."""
    frame = _frame(checkpoint)
    for request in requests:
        _check_order(checkpoint, plan, frame, request, offline=offline)


def _check_order(
    checkpoint: Checkpoint, plan: Plan, frame: _Frame, request: Mapping[str, Any], *, offline: bool
) -> None:
    check_adapters(Intake(checkpoint, plan, frame.factory, frame.sizes).order(request), offline=offline)


def load(checkpoint: Checkpoint, plan: Plan, env: LoadEnvironment) -> PipelineModel:
    """See Family.load."""
    frame = _frame(checkpoint)
    if env.request is not None:
        _check_order(checkpoint, plan, frame, env.request, offline=env.offline)
    components, outside, kept = _in_memory(checkpoint, plan, env, frame)
    factory = PipelineFactory(checkpoint.reference, frame.kind, components, frame.settings)
    most_kept = min(_KEPT_BYTES, env.ledger.budget(plan.device) // _KEPT_SHARE)
    outputs = KeptOutputs(env.ledger, plan.device, env.owner, most_bytes=most_kept)
    adapters = Adapters(
        checkpoint.reference,
        factory.base,
        factory.models,
        functools.partial(fresh_tool, checkpoint),
        device=plan.device,
        ledger=env.ledger,
        owner=env.owner,
        offline=env.offline,
        spare=outputs.trim,
    )
    place = "cpu" if plan.device == "cpu" else "gpu"
    max_rows = env.max_rows or _MAX_ROWS[place]
    compiled = _compiled(factory.models, plan, env)
    faster: dict[str, CompiledBlocks | JoinedLayers] = {**_joined(factory.models, plan, env, compiled), **compiled}
    learning = PictureLearning(checkpoint, plan)
    lanes = {
        name: ModelLane(
            f"{env.owner}/{name}",
            step_budget=env.step_budget or (_DECODED if hasattr(model, "decode") else _POSITIONS)[place],
            max_rows=max_rows,
            trusted=type(model).__name__ in ROWS_APART,
            without_effect=ROWS_APART.get(type(model).__name__, frozenset()),
            around=running_around(adapters.around(name), faster[name].running, is_plain)
            if name in faster
            else adapters.around(name),
            lighter=tiled_call,
            device=plan.device,
            known=learning.known(name),
            keeping=Keeping(outputs=outputs, component=name, methods=_repeating(model), lasting=adapters.lasting(name)),
        )
        for name, model in factory.models.items()
    }
    start = HostLane(f"{env.owner}/start", max_rows)
    decoders = FinerDecoders(env.ledger, plan.device, env.owner, outputs.trim)
    workshop = Workshop(factory, lanes, start, Previews(components), decoders, adapters, learning, outputs)
    pending = kept.write({}) if kept is not None else None
    return PipelineModel(checkpoint, plan, workshop, frame.sizes, outside, pending, compiled=compiled)


def _compiled(models: Mapping[str, Any], plan: Plan, env: LoadEnvironment) -> dict[str, CompiledBlocks]:
    """The components that are compiled, with what is compiled of them."""
    if env.compile != "full" or env.deterministic or plan.outside_bytes or not _compiles(plan.device):
        return {}
    found = {name: CompiledBlocks(model) for name, model in models.items() if name.startswith(_DENOISERS)}
    return {name: blocks for name, blocks in found.items() if len(blocks)}


def _compiles(device: str) -> bool:
    return device.startswith("cuda")


def _joined(
    models: Mapping[str, Any], plan: Plan, env: LoadEnvironment, compiled: Iterable[str]
) -> dict[str, JoinedLayers]:
    """The components with layers that are one product. Not those that are `compiled`, and none where some weights are
    quantized, as prepared ones are kept each for itself."""
    if env.compile == "off" or env.deterministic or plan.outside_bytes or not _joins(plan.device, plan.dtype):
        return {}
    if any(is_quantized(tensor) for model in models.values() for tensor in model.parameters()):
        return {}
    names = [name for name in models if name.startswith(_DENOISERS) and name not in compiled]
    return {name: JoinedLayers(models[name]) for name in names}


def _joins(device: str, dtype: str) -> bool:
    return device.startswith("cuda") and dtype != "float32"


def _in_memory(
    checkpoint: Checkpoint, plan: Plan, env: LoadEnvironment, frame: _Frame
) -> tuple[Mapping[str, Any], OutsideWeights | None, Kept | None]:
    """The components with their weights, entered in the ledger; what has those that are not on the device; and what
    will be written of them for later loads."""
    planned = plan.held_weight_bytes
    env.ledger.enter(plan.device, env.owner, "weights", planned)
    names = names_outside(checkpoint, plan)
    outside = OutsideWeights.of(plan, names, env.ledger, env.owner) if names else None
    entry = entry_of(checkpoint, plan, env)
    found = found_in(entry, frame.built, plan)
    try:
        if isinstance(env.parked, ParkedModules):
            components = {**frame.built, **env.parked.back(plan.device)}
        else:
            components = found or load_weights(checkpoint, frame.built, plan, env.progress, outside)
        models = modules_of(components)
        if outside is None and plan.device == "cpu":
            for model in models.values():
                tile_weights(model)
        if outside is None and plan.device.startswith("cuda") and plan.dtype != "float32":
            for model in models.values():
                in_channels_last(model)
        held = _held(models.values()) if outside is None else outside.attach(models)
        kept = entry.keep(models) if entry is not None and found is None else None
    except BaseException:
        if outside is not None:
            outside.close()
        raise
    if held > planned:
        env.ledger.enter(plan.device, env.owner, "weights", held - planned)
    elif held < planned:
        env.ledger.leave(plan.device, env.owner, "weights", planned - held)
    return components, outside, kept


def _held(models: Iterable[torch.nn.Module]) -> int:
    return held_bytes(tensor for model in models for tensor in (*model.parameters(), *model.buffers()))


def _repeating(model: torch.nn.Module) -> tuple[str, ...]:
    """The methods of a component that several pictures may call with the same: those that encode texts and pictures."""
    if isinstance(model, transformers.PreTrainedModel):
        # Others take from their last call how long texts may be.
        return () if shifting_positions(fields_of(model.config)) else ("forward",)
    return ("encode",) if callable(getattr(model, "encode", None)) else ()
