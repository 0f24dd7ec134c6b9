"""How far a pipeline's pictures are from those of the same pipeline in full precision."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from kamado.checkpoint.types import Checkpoint
from kamado.contracts import LoadEnvironment
from kamado.errors import InvalidRequest, UnsupportedCheckpoint
from kamado.memory.ledger import Ledger
from kamado.memory.plan import Plan

from .loading import load
from .model import PipelineModel
from .similarity import Pixels, psnr, ssim

PROMPT = "a red heart, a house by the sea, a bowl of fruit"
STEPS = 8
_SEEDS = (1, 2)


def picture_figures(plans: tuple[Plan, Plan], checkpoints: tuple[Checkpoint, Checkpoint]) -> Mapping[str, float]:
    """The figures of `kamado.quality.Quality` for two checkpoints of one pipeline, each by its plan: the worse of two
    pictures of the default size. They are in memory one at a time.

    Raises UnsupportedCheckpoint for a pipeline that needs more than a prompt."""
    reference, candidate = (_pictures(checkpoint, plan) for checkpoint, plan in zip(checkpoints, plans, strict=True))
    pairs = list(zip(reference, candidate, strict=True))
    if not all(np.isfinite(picture).all() for picture in candidate):
        return {"psnr_db": float("nan"), "ssim": float("nan")}
    return {"psnr_db": min(psnr(*pair) for pair in pairs), "ssim": min(ssim(*pair) for pair in pairs)}


def _pictures(checkpoint: Checkpoint, plan: Plan) -> list[Pixels]:
    ledger = Ledger({plan.device: 1 << 62})
    model = load(checkpoint, plan, LoadEnvironment(ledger=ledger, owner="quality", offline=True))
    try:
        pipeline = model.direct_pipeline()
        arguments = _arguments(model)
        made = []
        for seed in _SEEDS:
            generator = torch.Generator("cpu").manual_seed(seed)
            with torch.inference_mode():
                output = pipeline(**arguments, generator=generator, output_type="np")
            made.append(np.asarray(output.images[0], dtype=np.float32))
        return made
    finally:
        model.close()
        gc.collect()


def _arguments(model: PipelineModel) -> dict[str, Any]:
    """Of a call that needs no more than a prompt or a class. Raises UnsupportedCheckpoint."""
    steps = {"steps": STEPS}
    for options in ({"prompt": PROMPT, **steps}, {"class_labels": [0], **steps}, steps):
        with contextlib.suppress(InvalidRequest):
            return dict(model.order(options).arguments)
    raise UnsupportedCheckpoint(f"{model.checkpoint.reference} needs more than a prompt, so it cannot be compared")
