"""Sentence models: texts into vectors. Importing this loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from kamado.checkpoint.types import Checkpoint
from kamado.errors import InvalidRequest
from kamado.options import Check, Options, flag, one_of, several, text, whole

from ..library.kinds import About, Generator, Part, architecture_of, num_parameters
from .layout import (
    POOLINGS,
    activation_bytes,
    makes_vectors,
    network_tensors,
    positions,
    sentences,
    step_tensors,
    vector_size,
)

if TYPE_CHECKING:
    from ..library.loading import Loader

MOST_TEXTS = 16384
"""Of one request."""
STEPS = "steps"
"""The lane of the layers behind the pooling."""


class EmbeddingKind:
    """See Kind."""

    name = "embedding"
    about = About(
        architectures=(
            "sentence-transformers' layout over BERT, RoBERTa, MPNet, DistilBERT, ModernBERT, T5, Qwen3, ...",
            "*Model",
        ),
        tasks=("feature-extraction", "sentence-similarity"),
        oracle="transformers' networks and the formulas of poolings, tiny random checkpoints; all-MiniLM-L6-v2",
        batching="texts of about the same length, of all requests",
    )

    def claims(self, checkpoint: Checkpoint) -> bool:
        """See Kind."""
        return makes_vectors(checkpoint)

    def tasks(self, checkpoint: Checkpoint) -> Sequence[str]:
        """See Kind."""
        return ("feature-extraction", "sentence-similarity")

    def makes(self, checkpoint: Checkpoint) -> Sequence[str]:
        """See Kind."""
        return ("embedding",)

    def options(self, checkpoint: Checkpoint) -> Options:
        """See Kind."""
        names = tuple(sentences(checkpoint).prompts)
        checks: dict[str, Check] = {
            "prompt": several(text(), most=MOST_TEXTS),
            "instruction": text(empty=True),
            "normalize": flag,
            "dimensions": whole(1, 1 << 20),
            "pooling": one_of(*POOLINGS),
            "truncate": flag,
            **({"prompt_name": one_of(*names)} if names else {}),
        }
        return Options(what="an embedding model", checks=checks)

    def describe(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """See Kind."""
        how = sentences(checkpoint)
        read = [limit for limit in (how.max_tokens, positions(checkpoint)) if limit is not None]
        return {
            "architecture": architecture_of(checkpoint),
            "pooling": "+".join(how.poolings) if how.is_told else "mean (the checkpoint names none)",
            "dimensions": how.dimensions or vector_size(checkpoint, how),
            "normalized": bool(how.steps) and how.steps[-1].kind == "Normalize",
            **({"max_tokens": min(read)} if read else {}),
            **({"prompts": dict(how.prompts)} if how.prompts else {}),
        }

    def parts(self, checkpoint: Checkpoint) -> Mapping[str, Part]:
        """See Kind."""
        behind = step_tensors(checkpoint, sentences(checkpoint).steps)
        size = num_parameters(behind) // 8 + 4096

        def activations(number: int) -> int:
            return activation_bytes(checkpoint, number)

        parts = {"network": Part(tensors=network_tensors(checkpoint, bare=True), activation_bytes=activations)}
        if behind:
            parts[STEPS] = Part(tensors=behind, activation_bytes=lambda number: number * size)
        return parts

    def build(self, checkpoint: Checkpoint, loader: Loader) -> Generator:
        """See Kind."""
        from .embedder import build

        return build(checkpoint, loader, partial(self.check, checkpoint))

    def check(self, checkpoint: Checkpoint, asked: Mapping[str, Any]) -> None:
        """See Kind."""
        if "instruction" in asked and "prompt_name" in asked:
            raise InvalidRequest("give instruction or prompt_name, not both: each is what goes before the texts")
        how = sentences(checkpoint)
        size = vector_size(checkpoint, how, 1 if "pooling" in asked else None)
        if size and asked.get("dimensions", 0) > size:
            raise InvalidRequest(f"dimensions: the model's vectors have {size}, not {asked['dimensions']}")
        layers = any(step.kind != "Normalize" for step in how.steps)
        if layers and (asked.get("pooling", how.poolings[0]),) != how.poolings and "pooling" in asked:
            raise InvalidRequest("pooling: this model's layers behind the pooling were made for its own")
