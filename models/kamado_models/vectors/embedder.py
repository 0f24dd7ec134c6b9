"""A loaded sentence model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from kamado.checkpoint.types import Checkpoint
from kamado.errors import InvalidRequest
from kamado.outputs import Embedding, Output

from ..library.kinds import Bench, Generator, architecture_of
from ..library.loading import Loader
from .batching import in_batches, padded, pooled_mask
from .embeddings import STEPS
from .layout import Sentences, sentences, step_tensors
from .loading import NETWORK, Check, load_network, load_tokens, wrapped
from .networks import Pooled, Steps, normalized
from .tokens import Row, Tokens, count, cut_notes


def build(checkpoint: Checkpoint, loader: Loader, check: Check) -> Generator:
    """See Kind.build."""
    how = sentences(checkpoint)
    network = wrapped(load_network(loader, architecture_of(checkpoint), bare=True), Pooled)
    tensors = step_tensors(checkpoint, how.steps)
    layers = None
    if tensors:
        last = how.steps[-1].kind == "Normalize"
        layers = loader.module(STEPS, lambda: Steps(how.steps[:-1] if last else how.steps), tensors)
    return Embedder(how, check, load_tokens(loader, how.max_tokens), network, layers)


class Embedder:
    """See Generator."""

    def __init__(self, how: Sentences, check: Check, tokens: Tokens, network: Pooled, layers: Steps | None) -> None:
        self.modules: Mapping[str, Any] = {NETWORK: network, **({} if layers is None else {STEPS: layers})}
        self.how = how
        self._check = check
        self.tokens = tokens

    def prepare(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        """See Generator."""
        self._check(asked)
        before = asked.get("instruction")
        if before is None:
            before = self.how.prompts.get(asked.get("prompt_name", self.how.default_prompt), "")
        skipped = self.tokens.prefix(self._clean(before)) if before and not self.how.counts_prompt else 0
        cut = asked.get("truncate", True)
        rows = [self.tokens.row(self._clean(before + each), cut=cut, skipped=skipped) for each in asked["prompt"]]
        if any(row.skipped >= len(row.ids) for row in rows):
            raise InvalidRequest(
                "nothing is left of a text behind its instruction: they are longer than the model reads"
            )
        return {**asked, "rows": rows, "prompt_tokens": count(rows)}

    def generate(self, bench: Bench, asked: Mapping[str, Any]) -> Output:
        """See Generator."""
        rows = asked["rows"]
        poolings = asked.get("pooling", "+".join(self.how.poolings))
        if not self.how.is_told and "pooling" not in asked:
            bench.note("the checkpoint does not say how tokens become a vector: it is their mean (pooling)")
        for note in cut_notes(rows, self.tokens.max_tokens):
            bench.note(note)

        def call(some: list[Row]) -> torch.Tensor:
            given = padded(some, most=self.tokens.max_tokens, pad_id=self.tokens.pad_id, device=bench.device)
            given.pop("token_type_ids", None)
            mask = pooled_mask(some, given["attention_mask"])
            vectors = bench.model(NETWORK)(**given, pooled_mask=mask, poolings=poolings)
            return self._finished(bench, vectors, asked)

        vectors = torch.stack(in_batches(bench, rows, self.tokens.max_tokens, call))
        return Embedding(vectors=vectors.float().numpy())

    def _finished(self, bench: Bench, vectors: torch.Tensor, asked: Mapping[str, Any]) -> torch.Tensor:
        ends = bool(self.how.steps) and self.how.steps[-1].kind == "Normalize"
        if STEPS in self.modules:
            vectors = bench.model(STEPS)(vectors)
        wanted = asked.get("dimensions", self.how.dimensions)
        if wanted is not None:
            vectors = vectors[:, :wanted]
        return normalized(vectors) if asked.get("normalize", ends) else vectors.float()

    def _clean(self, text: str) -> str:
        """As sentence-transformers does."""
        return text.strip().lower() if self.how.lower else text.strip()
