"""Models that need a second checkpoint: a vocoder, a codec. No torch."""

from __future__ import annotations

from kamado.checkpoint.own_code import wishes
from kamado.checkpoint.parts import inspect_part
from kamado.checkpoint.types import Checkpoint
from kamado.errors import InvalidRequest, UnsafeCheckpoint

from .kinds import architecture_of


def second_checkpoint(checkpoint: Checkpoint, name: str, *, classes: tuple[str, ...], usual: str = "") -> Checkpoint:
    """The component `name` of a model: what was given as such, or lies in a folder of that name below the model.
    `classes`: what it may be; `usual`: where people get it. Raises InvalidRequest where there is none, or another
    thing, UnsafeCheckpoint for one that wants code of its own run."""
    found = checkpoint.parts.get(name)
    if found is None and name not in checkpoint.parts and f"{name}/config.json" in checkpoint.files:
        found = inspect_part(f"{checkpoint.root}#{name}", name, offline=True)
    if found is None:
        example = f", like {name}={usual}" if usual else ""
        raise InvalidRequest(
            f"{checkpoint.reference} needs a component {name}, a model of its own: give it "
            f"(--component {name}=MODEL{example}), or put it into a folder {name} below the model"
        )
    if wishes(found):
        raise UnsafeCheckpoint(f"{found.reference} wants its own code run, which is done for text models only")
    kind = architecture_of(found) or str(found.config.get("model_type", ""))
    if kind not in classes:
        raise InvalidRequest(f"{found.reference} is no {name} for {checkpoint.reference}: it is {kind or 'unknown'}")
    return found
