"""Bring a model that a library's own code runs into memory as planned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from kamado.checkpoint.types import Checkpoint, TensorEntry
from kamado.contracts import LoadEnvironment
from kamado.errors import KamadoError, UnsupportedCheckpoint
from kamado.memory.plan import LanePlan, Plan
from kamado.memory.shortage import is_shortage
from kamado.tasks.library.lane import HostLane
from kamado.weights.outside.parked import ParkedModules
from kamado.weights.outside.weights import OutsideWeights, kept_single
from kamado.weights.quantized.reading import quantizing
from kamado.weights.quantized.stored.reading import stored_tensors
from kamado.weights.quantized.tensor import held_bytes
from kamado.weights.quantized.tiled import tile_weights

from ..language.materialize import library_call, materialize
from .diffusers_code import diffusers_code
from .kinds import Kind, Part
from .lane import PartLane
from .learning import PartLearning, peak_keys
from .model import LibraryModel, whole_modules
from .placing import names_outside
from .task import Workshop

_STEP_BUDGET = {"cpu": 1 << 14, "gpu": 1 << 18}
_MAX_ROWS = {"cpu": 16, "gpu": 64}


class Loader:
    """What a kind loads its components with. Weights are in the plan's precision and form, on its device, in evaluation
    mode, without gradients."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: Plan,
        progress: Callable[[int, int], None] | None,
        parked: Mapping[str, nn.Module] | None,
        outside: OutsideWeights | None = None,
        parts: Mapping[str, Part] | None = None,
    ) -> None:
        """`outside`: weights that are not to be held on the device; its `attach` brings the others there. `parts`: the
        components, some of which may be cut out of one model."""
        self.checkpoint = checkpoint
        self.plan = plan
        self.device = plan.device
        self._dtypes = {lane.lane: lane.dtype for lane in plan.lanes}
        self._progress = progress
        self._parked = parked or {}
        self._outside = outside
        self._parts = parts or {}
        self._place = plan.device if outside is None else "cpu"

    def dtype(self, part: str) -> torch.dtype:
        """The precision of a component."""
        found: torch.dtype = getattr(torch, self._dtypes[part])
        return found

    def folder_call(self, function: Callable[..., Any], *args: Any, what: str, **kwargs: Any) -> Any:
        """`function(folder, ..., local_files_only=True)` for tools without weights (tokenizers, processors): raises
        UnsupportedCheckpoint where they cannot be made. `what` names it."""
        try:
            with library_call():
                return function(str(self.checkpoint.root), *args, local_files_only=True, **kwargs)
        except KamadoError:
            raise
        except Exception as error:  # whatever a class makes of damaged files
            if is_shortage(error):
                raise
            first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise UnsupportedCheckpoint(f"{self.checkpoint.reference}: its {what} cannot be loaded: {first}") from error

    def pretrained(
        self, part: str, model_class: Any, config: Any, tensors: Mapping[str, TensorEntry], **settings: Any
    ) -> Any:
        """A model of transformers. `tensors`: by the names that `from_pretrained` knows. `settings`: see
        `materialize`."""
        if part in self._parked:
            return self._parked[part]
        dtype = self.dtype(part)
        model, _ = materialize(
            model_class, config, self._read(part, tensors, model_class), dtype=dtype, device=self._place,
            progress=self._progress, **settings,
        )  # fmt: skip
        return model

    def module(
        self,
        part: str,
        build: Callable[[], nn.Module],
        tensors: Mapping[str, TensorEntry],
        *,
        rename: Callable[[str], str] = lambda name: name,
        optional: Callable[[str], bool] = lambda name: False,
    ) -> Any:
        """Any other module: `build()` makes it, with weights that are thrown away, first without memory; `rename` maps
        names of tensors to those of its state; `optional(name)`: tensors of the checkpoint that it may have no place
        for. Raises UnsupportedCheckpoint where the two do not fit."""
        if part in self._parked:
            return self._parked[part]
        what = f"{self.checkpoint.reference}: its {part}"
        stored = {rename(name): entry for name, entry in tensors.items()}
        with torch.device("meta"):
            wanted = _built(what, build).state_dict()
        _check_fit(what, wanted, {name: entry.shape for name, entry in stored.items() if not optional(name)})
        model = _built(what, build)
        readable = self._read(part, {name: stored[name] for name in wanted if name in stored})
        state = {}
        for name in wanted:
            tensor = readable[name].read()
            state[name] = (tensor.to(self.dtype(part)) if tensor.is_floating_point() else tensor).to(self._place)
        model.load_state_dict(state, assign=True)
        for each in model.modules():  # buffers that no file holds
            for name, buffer in each._buffers.items():
                each._buffers[name] = None if buffer is None else buffer.to(self._place)
        model.eval()
        model.requires_grad_(False)
        return model

    def diffusers_model(self, part: str, config: Mapping[str, Any], tensors: Mapping[str, TensorEntry]) -> Any:
        """A model of diffusers, by its configuration. Raises UnsupportedCheckpoint."""
        if part in self._parked:
            return self._parked[part]
        with diffusers_code():
            from ..diffusion.components import build_components, load_weights
        whole = replace(
            self.checkpoint,
            layout="diffusers",
            config={part: ["diffusers", config["_class_name"]]},
            metadata={"components": {part: config}},
            tensors={f"{part}/{name}": entry for name, entry in tensors.items()},
        )
        return load_weights(whole, build_components(whole), self.plan, self._progress, self._outside)[part]

    def made(
        self,
        part: str,
        make: Callable[[Mapping[str, torch.Tensor], torch.dtype], nn.Module],
        tensors: Mapping[str, TensorEntry],
    ) -> Any:
        """A module that library code makes of tensors (`make(tensors, dtype)`), whose names it may change: it can be
        neither quantized nor held in part (`Part.is_whole`). Raises UnsupportedCheckpoint where it cannot be made."""
        if part in self._parked:
            return self._parked[part]
        what = f"{self.checkpoint.reference}: its {part}"
        assert self.plan.quant is None and self._outside is None, "its Part is whole"
        state = {name: each.read() for name, each in stored_tensors(tensors, self.dtype(part)).items()}
        try:
            with library_call(), torch.no_grad():
                model = make(state, self.dtype(part))
        except KamadoError:
            raise
        except Exception as error:  # whatever a library makes of tensors that do not fit
            if is_shortage(error):
                raise
            # All lines: torch tells what is wrong in later ones.
            said = " ".join(str(error).split())[:200] or type(error).__name__
            raise UnsupportedCheckpoint(f"{what} cannot be built: {said}") from error
        model.to(device=self.device, dtype=self.dtype(part))
        model.eval()
        model.requires_grad_(False)
        return model

    def _read(self, part: str, tensors: Mapping[str, TensorEntry], kind: Any = None) -> dict[str, Any]:
        found: dict[str, Any] = dict(stored_tensors(tensors, self.dtype(part)))
        keeps = next(lane for lane in self.plan.lanes if lane.lane == part).dtype != self.plan.dtype
        if self.plan.quant is not None and not keeps:
            found = dict(quantizing(found, self.plan.quant, self.dtype(part), self.device))
        if self._outside is not None:
            for lane, names in self._by_lane(part, tensors).items():
                own, dtype = {name: found[name] for name in names}, self.dtype(part)
                found |= self._outside.reading(own, dtype, prefix=f"{lane}/", single=kept_single(kind))
        return found

    def _by_lane(self, part: str, tensors: Mapping[str, TensorEntry]) -> Mapping[str, Sequence[str]]:
        """The names of tensors of a model by the component that they were planned for: `part`, or one cut out of it."""
        planned = {id(entry): lane for lane, each in self._parts.items() for entry in each.tensors.values()}
        found: dict[str, list[str]] = {}
        for name, entry in tensors.items():
            found.setdefault(planned.get(id(entry), part), []).append(name)
        return found


def _built(what: str, build: Callable[[], nn.Module]) -> nn.Module:
    try:
        with library_call(), torch.no_grad():
            return build()
    except Exception as error:  # whatever a class makes of absurd values
        if is_shortage(error):
            raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UnsupportedCheckpoint(f"{what} cannot be built: {first}") from error


def _check_fit(what: str, wanted: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    wrong = (name for name in shapes.keys() & wanted.keys() if tuple(shapes[name]) != tuple(wanted[name].shape))
    problems = {
        "lacks": wanted.keys() - shapes.keys(),
        "has no place for": shapes.keys() - wanted.keys(),
        "has another shape of": wrong,
    }
    for problem, keys in problems.items():
        names = sorted(keys)
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UnsupportedCheckpoint(f"{what} {problem} {', '.join(names[:3])}{more}: this is no such model")


def load(kind: Kind, checkpoint: Checkpoint, plan: Plan, env: LoadEnvironment) -> LibraryModel:
    """See Family.load."""
    parts = kind.parts(checkpoint)
    env.ledger.enter(plan.device, env.owner, "weights", plan.held_weight_bytes)
    names = names_outside(parts, plan)
    outside = OutsideWeights.of(plan, names, env.ledger, env.owner) if names else None
    try:
        parked = env.parked.back(plan.device) if isinstance(env.parked, ParkedModules) else None
        generator = kind.build(checkpoint, Loader(checkpoint, plan, env.progress, parked, outside, parts))
        held = _held(whole_modules(generator.modules), plan, outside)
    except BaseException:
        if outside is not None:
            outside.close()
        raise
    if held > plan.held_weight_bytes:
        env.ledger.enter(plan.device, env.owner, "weights", held - plan.held_weight_bytes)
    elif held < plan.held_weight_bytes:
        env.ledger.leave(plan.device, env.owner, "weights", plan.held_weight_bytes - held)
    place = "cpu" if plan.device == "cpu" else "gpu"
    max_rows = env.max_rows or _MAX_ROWS[place]
    lanes = {
        lane.lane: PartLane(
            f"{env.owner}/{lane.lane}",
            step_budget=env.step_budget or _STEP_BUDGET[place],
            max_rows=1 if env.deterministic else max_rows,
            device=plan.device,
            learning=_learning(checkpoint, lane, parts[lane.lane], plan),
            entries_per_position=parts[lane.lane].entries_per_position,
        )
        for lane in plan.lanes
    }
    workshop = Workshop(
        generator=generator,
        lanes=lanes,
        start=HostLane(f"{env.owner}/start", max_rows),
        device=plan.device,
        dtype=getattr(torch, plan.dtype),
    )
    return LibraryModel(checkpoint, plan, workshop, kind, outside)


def _held(modules: Mapping[str, nn.Module], plan: Plan, outside: OutsideWeights | None) -> int:
    """Bytes that the weights take on the device, in the form that they are run in."""
    if outside is not None:
        return outside.attach({f"{name}/": module for name, module in modules.items()})
    if plan.device == "cpu":
        for module in modules.values():
            tile_weights(module)
    return held_bytes(tensor for module in modules.values() for tensor in (*module.parameters(), *module.buffers()))


def _learning(checkpoint: Checkpoint, lane: LanePlan, part: Part, plan: Plan) -> PartLearning:
    """Weights that are outside of the device come and go during a forward: nothing can be learned from that."""
    if plan.outside_bytes:
        return PartLearning(None)
    return PartLearning(peak_keys(checkpoint, lane.lane, part, dtype=lane.dtype, quant=plan.quant, device=plan.device))
