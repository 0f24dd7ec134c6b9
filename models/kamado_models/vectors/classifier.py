"""A loaded model that judges texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from kamado.checkpoint.types import Checkpoint
from kamado.errors import UnsupportedCheckpoint
from kamado.outputs import Output, Scored, Scores

from ..language.tokenizer import Tokenizer, load_tokenizer
from ..library.kinds import Bench, Generator, architecture_of
from ..library.loading import Loader
from .batching import in_batches, padded
from .classifying import activation, judge_instruction, labels
from .layout import logit_score
from .loading import NETWORK, Check, load_network, load_tokens, wrapped
from .networks import Asked, Judged
from .tokens import Row, Tokens, count, cut_notes


def build(checkpoint: Checkpoint, loader: Loader, check: Check) -> Generator:
    """See Kind.build."""
    tokens = load_tokens(loader)
    network = load_network(loader, architecture_of(checkpoint))
    if not isinstance(network, Judged) and network.config.pad_token_id is None:
        network.config.pad_token_id = tokens.pad_id  # decoders find the end of a row by it
    return Classifier(checkpoint, check, tokens, wrapped(network, Judged))


def build_judge(checkpoint: Checkpoint, loader: Loader, check: Check) -> Generator:
    """See Kind.build."""
    score = logit_score(checkpoint)
    assert score is not None, "the kind claimed it"
    words = load_tokenizer(checkpoint)
    if not words.has_chat_template:
        raise UnsupportedCheckpoint(f"{checkpoint.reference} has no chat template, which says how it is asked")
    network = wrapped(load_network(loader, architecture_of(checkpoint)), Asked)
    return Judge(score, judge_instruction(checkpoint), check, words, load_tokens(loader), network)


class Classifier:
    """See Generator. Cross-encoders read a query and a document as one text."""

    def __init__(self, checkpoint: Checkpoint, check: Check, tokens: Tokens, network: Judged) -> None:
        self.modules: Mapping[str, Any] = {NETWORK: network}
        self.tokens = tokens
        self._check = check
        self.labels = labels(checkpoint)
        self.activation = activation(checkpoint)

    def prepare(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        """See Generator."""
        self._check(asked)
        cut = asked.get("truncate", True)
        texts = asked["prompt"]
        if "documents" in asked:
            rows = [self.tokens.row(texts[0], each, cut=cut) for each in asked["documents"]]
        else:
            pairs = asked.get("text_pair", [None] * len(texts))
            rows = [self.tokens.row(each, pair, cut=cut) for each, pair in zip(texts, pairs, strict=True)]
        return {**asked, "rows": rows, "prompt_tokens": count(rows)}

    def generate(self, bench: Bench, asked: Mapping[str, Any]) -> Output:
        """See Generator."""
        for note in cut_notes(asked["rows"], self.tokens.max_tokens):
            bench.note(note)

        def call(some: list[Row]) -> torch.Tensor:
            given = padded(some, most=self.tokens.max_tokens, pad_id=self.tokens.pad_id, device=bench.device)
            return bench.model(NETWORK)(**given)  # type: ignore[no-any-return]

        found = in_batches(bench, asked["rows"], self.tokens.max_tokens, call)
        logits = torch.stack(found)
        function = asked.get("activation", self.activation)
        scores = {"sigmoid": logits.sigmoid(), "softmax": logits.softmax(-1), "none": logits}[function]
        if "documents" in asked:
            return ranked(asked["documents"], scores[:, 0].tolist(), asked.get("top_n"))
        return self._labelled(scores.tolist(), asked)

    def _labelled(self, scores: Sequence[Sequence[float]], asked: Mapping[str, Any]) -> Scores:
        """All labels of the first text, the best first, then those of the next."""
        items: list[Scored] = []
        for number, row in enumerate(scores):
            order = sorted(range(len(row)), key=lambda label: -row[label])[: asked.get("top_k")]
            index = number if len(scores) > 1 else None
            items += [Scored(value=self.labels[label], score=row[label], index=index) for label in order]
        return Scores(items=tuple(items))


class Judge:
    """See Generator. How much likelier "yes" is than "no" behind a question about a query and a document, or how likely
    "yes" is where there is no such other word: `LogitScore` of sentence-transformers."""

    def __init__(
        self,
        score: tuple[int, int | None],
        instruction: str | None,
        check: Check,
        words: Tokenizer,
        tokens: Tokens,
        network: Asked,
    ) -> None:
        self._check = check
        self.modules: Mapping[str, Any] = {NETWORK: network}
        self.tokens = tokens
        self._yes, self._no = score
        self._instruction = instruction
        self._words = words

    def prepare(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        """See Generator."""
        self._check(asked)
        instruction = asked.get("instruction", self._instruction)
        rows = []
        for document in asked["documents"]:
            system = [] if instruction is None else [{"role": "system", "content": instruction}]
            query = {"role": "query", "content": asked["prompt"][0]}
            text = self._words.chat_text([*system, query, {"role": "document", "content": document}])
            rows.append(self.tokens.asked_at_the_end(text))
        return {**asked, "rows": rows, "prompt_tokens": count(rows)}

    def generate(self, bench: Bench, asked: Mapping[str, Any]) -> Output:
        """See Generator."""

        def call(some: list[Row]) -> torch.Tensor:
            given = padded(some, most=self.tokens.max_tokens, pad_id=self.tokens.pad_id, device=bench.device)
            given.pop("token_type_ids", None)
            logits: torch.Tensor = bench.model(NETWORK)(**given)[:, 0]
            return logits[:, self._yes] - (0.0 if self._no is None else logits[:, self._no])

        logits = torch.stack(in_batches(bench, asked["rows"], self.tokens.max_tokens, call))
        scores = logits if asked.get("activation") == "none" else logits.sigmoid()
        return ranked(asked["documents"], scores.tolist(), asked.get("top_n"))


def ranked(documents: Sequence[str], scores: Sequence[float], most: int | None) -> Scores:
    """The documents with their numbers, the best first; equal ones as they came."""
    order = sorted(range(len(documents)), key=lambda number: -scores[number])[:most]
    return Scores(items=tuple(Scored(value=documents[i], score=scores[i], index=i) for i in order))
