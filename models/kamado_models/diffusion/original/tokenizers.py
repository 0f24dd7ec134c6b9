"""Tokenizers for single files, which hold none. Imports no torch."""

from __future__ import annotations

from dataclasses import replace

from kamado.checkpoint.resolve import resolve_tokenizers
from kamado.checkpoint.types import Checkpoint
from kamado.errors import HubUnreachable, ModelNotFound

from .assemble import tokenizers_wanted


def with_tokenizers(checkpoint: Checkpoint, *, offline: bool) -> Checkpoint:
    """A single file with the repository of its kind as `base`, where nothing else supplies the tokenizers: as far as
    tokenizers go, which is a few megabytes. Other checkpoints stay as they are.

    Raises ModelNotFound (HubUnreachable), which says what to give."""
    if checkpoint.layout != "safetensors":
        return checkpoint
    wanted, repository = tokenizers_wanted(checkpoint)
    if not wanted:
        return checkpoint
    try:
        found = resolve_tokenizers(repository, wanted, offline=offline)
    except ModelNotFound as error:
        kind = HubUnreachable if isinstance(error, HubUnreachable) else ModelNotFound
        raise kind(
            f"{checkpoint.reference} holds no {', '.join(wanted)}, and {repository} cannot be had; "
            f"name a folder of its kind of pipeline (base, --base), or the folders of the tokenizers (--component "
            f"{wanted[0]}=FOLDER)"
        ) from error
    return replace(
        checkpoint,
        base=Checkpoint(
            reference=repository, root=found.root, layout="diffusers", config={}, metadata={"components": {}},
            tensors={}, files=found.files, revision=found.revision,
        ),
    )  # fmt: skip
