"""Language models whose quantized weights an earlier load has left as they are run, and what is left for later ones.

With the weights lies what was found out of the model: which layers can be paged, whether its native forward and its
stand-in compute what its modules do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kamado.checkpoint.types import Checkpoint
from kamado.contracts import Lane, LoadEnvironment
from kamado.kernels.native import library_mark
from kamado.memory.plan import Plan
from kamado.memory.shortage import is_shortage
from kamado.weights.prepared.entry import LEAST_BYTES, Entry, Kept, code_mark
from kamado.weights.prepared.file import Contents, Unusable
from kamado.weights.prepared.modules import fill
from kamado.weights.quantized.tensor import is_quantized

from .config import transformers_classes
from .decoder import Decoder, sizes_of_json
from .materialize import RAISED_BY_MODELS, library_call
from .pages import LayerShape

_MOST_PLAIN = 32
"""Linear layers that are laid out anew are described as they were before: so small a part of the model at most."""
_DAMAGED = (KeyError, TypeError, ValueError, AttributeError)


@dataclass(slots=True)
class Facts:
    """What was found out of a model on the way. None: not asked yet."""

    paged: tuple[tuple[LayerShape, ...] | None, str] | None = None
    """See PagedVerdict."""
    native: bool | None = None
    sizes: Mapping[str, Any] | None = None
    """Of the stand-in, where it computes the same."""
    wants_sizes: bool = False
    """Whether a stand-in is of use: what is found out will be kept."""

    def as_json(self) -> dict[str, Any]:
        """For `facts_of_json`."""
        paged = None
        if self.paged is not None:
            layers, reason = self.paged
            shapes = None if layers is None else [
                [at.num_heads, at.key_dim, at.value_dim, at.window] for at in layers
            ]  # fmt: skip
            paged = [shapes, reason]
        return {"paged": paged, "native": self.native, "native_of": library_mark(), "sizes": self.sizes}


def facts_of_json(told: Mapping[str, Any]) -> Facts:
    """What of it holds here. Raises one of _DAMAGED for what is none."""
    facts = Facts(sizes=told["sizes"])
    if told["paged"] is not None:
        shapes, reason = told["paged"]
        facts.paged = None if shapes is None else tuple(LayerShape(*shape) for shape in shapes), str(reason)
    if told["native_of"] == library_mark():
        facts.native = told["native"]
    return facts


@dataclass(frozen=True, slots=True)
class Found:
    """What an earlier load has left."""

    entry: Entry
    file: Contents
    facts: Facts

    def stand_in(self, plan: Plan) -> Decoder | None:
        """The model without transformers, where that may be."""
        if self.facts.sizes is None or self.facts.paged is None or plan.device != "cpu":
            return None
        try:
            model = Decoder(sizes_of_json(self.facts.sizes))
            fill({"": model}, self.file, plan.device)
        except (*_DAMAGED, Unusable):
            return None
        return model

    def model(self, checkpoint: Checkpoint, plan: Plan) -> Any | None:
        """transformers' model; None where the weights do not fit it, which are deleted then."""
        config, model_class = transformers_classes(checkpoint)
        try:
            with library_call(), torch.device("meta"):
                model = model_class._from_config(deepcopy(config), dtype=getattr(torch, plan.dtype))
            fill({"": model}, self.file, plan.device)
        except (*RAISED_BY_MODELS, Unusable) as error:
            if not is_shortage(error):
                self.entry.refuse(self.file)
            return None
        model.eval()
        model.requires_grad_(False)
        return model


def entry_of(checkpoint: Checkpoint, plan: Plan, env: LoadEnvironment) -> Entry | None:
    """Where the model is kept; None for one that is not."""
    is_quantized = plan.quant is not None or bool(checkpoint.config.get("quantization_config"))
    if env.keeping is None or env.parked is not None or plan.outside_bytes or not is_quantized:
        return None
    if checkpoint.weight_bytes < LEAST_BYTES:
        return None
    return Entry(
        env.keeping,
        checkpoint,
        files=[tensor.file for tensor in checkpoint.tensors.values()],
        what="language",
        config={"model": checkpoint.config, "code": code_mark(Path(__file__).parent)},
        quant=plan.quant,
        dtype=plan.dtype,
        device=plan.device,
    )


def found_in(entry: Entry | None) -> Found | None:
    """What is there, and of use."""
    file = entry.find() if entry is not None else None
    if entry is None or file is None:
        return None
    try:
        return Found(entry, file, facts_of_json(file.told["facts"]))
    except _DAMAGED:
        entry.refuse(file)
        return None


def kept_in(entry: Entry | None, model: Any, *, packs: bool) -> Kept | None:
    """Note the model as it is now, before its plain linear layers are laid out anew, if they will be (`packs`)."""
    if entry is None:
        return None
    kept = entry.keep({"": model})
    if kept is None or not packs:
        return kept
    linears = (module.weight for module in model.modules() if isinstance(module, torch.nn.Linear))
    plain = sum(weight.nbytes for weight in linears if not is_quantized(weight))
    return kept if plain * _MOST_PLAIN <= kept.nbytes else None


def after_first_result(lane: Lane, then: Callable[[], None]) -> None:
    """Call `then` once, when the lane has computed the first token."""
    run = lane.run

    def told(works: Any) -> Any:
        results = run(works)
        if any(result is not None for result in results):
            lane.run = run  # type: ignore[method-assign]
            then()
        return results

    lane.run = told  # type: ignore[method-assign]
