"""Pipelines whose quantized weights an earlier load has left as they are run, and what is left for later ones."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kamado.checkpoint.types import Checkpoint
from kamado.contracts import LoadEnvironment
from kamado.memory.plan import Plan
from kamado.memory.shortage import is_shortage
from kamado.weights.prepared.entry import LEAST_BYTES, Entry, code_mark
from kamado.weights.prepared.file import Unusable
from kamado.weights.prepared.modules import fill

from ..language.materialize import RAISED_BY_MODELS, library_call
from .parts import component_tensors


def entry_of(checkpoint: Checkpoint, plan: Plan, env: LoadEnvironment) -> Entry | None:
    """Where the pipeline is kept, all of its components together; None for one that is not."""
    components: Mapping[str, Mapping[str, Any]] = checkpoint.metadata["components"]
    is_quantized = plan.quant is not None or any(config.get("quantization_config") for config in components.values())
    if env.keeping is None or env.parked is not None or plan.outside_bytes or not is_quantized:
        return None
    if checkpoint.weight_bytes < LEAST_BYTES:
        return None
    sources = {
        name: sorted({tensor.file for tensor in component_tensors(checkpoint, name).values()}) for name in components
    }
    files = sorted({path for paths in sources.values() for path in paths})
    return Entry(
        env.keeping,
        checkpoint,
        files=files,
        what="pipeline",
        config={
            "pipeline": checkpoint.config,
            "components": components,
            "files": {name: [files.index(path) for path in paths] for name, paths in sources.items()},
            "dtypes": {lane.lane: lane.dtype for lane in plan.lanes},
            "code": code_mark(Path(__file__).parent),
        },
        quant=plan.quant,
        dtype=plan.dtype,
        device=plan.device,
    )


def found_in(entry: Entry | None, built: Mapping[str, Any], plan: Plan) -> dict[str, Any] | None:
    """What `build_components` returned, with the weights that an earlier load has left; None where there are none that
    fit, and then `built` is as it was, and they are deleted."""
    file = entry.find() if entry is not None else None
    if entry is None or file is None:
        return None
    dtypes = {lane.lane: getattr(torch, lane.dtype) for lane in plan.lanes}
    try:
        components = {
            name: _empty(part, dtypes[name]) if isinstance(part, nn.Module) else part for name, part in built.items()
        }
        models = modules_of(components)
        fill(models, file, plan.device)
    except (*RAISED_BY_MODELS, Unusable) as error:
        if not is_shortage(error):
            entry.refuse(file)
        return None
    for model in models.values():
        model.eval()
        model.requires_grad_(False)
    return components


def modules_of(components: Mapping[str, Any]) -> dict[str, nn.Module]:
    """Those with weights, by the prefix of their tensors."""
    return {f"{name}/": part for name, part in components.items() if isinstance(part, nn.Module)}


def _empty(model: Any, dtype: torch.dtype) -> nn.Module:
    """A component as a module without weights. One of transformers was built as no more than a class and a
    configuration; its position tables and the like are in the file."""
    import transformers

    if not isinstance(model, transformers.PreTrainedModel):
        return model  # type: ignore[no-any-return]
    with library_call(), torch.device("meta"):
        return type(model)._from_config(deepcopy(model.config), dtype=dtype)  # type: ignore[no-any-return]
