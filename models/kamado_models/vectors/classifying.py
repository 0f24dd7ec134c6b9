"""Models that judge: rerankers (cross-encoders, and language models that answer yes or no), and classifiers of texts.
Importing this loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from kamado.checkpoint.types import Checkpoint
from kamado.errors import InvalidRequest
from kamado.options import Check, Options, flag, one_of, several, text, whole

from ..library.kinds import About, Generator, Part, architecture_of
from .embeddings import MOST_TEXTS
from .layout import activation_bytes, is_text_model, logit_score, module_kinds, network_tensors, positions, prompts_of

if TYPE_CHECKING:
    from ..library.loading import Loader

CLASSIFIERS = "ForSequenceClassification"
SAMPLE: Mapping[str, Any] = {
    "prompt": "{number}: what is the light at the end of the pier for?",
    "documents": ["The light shows ships where the rocks begin, and how far it is to the harbour."] * 8,
}


class ClassifyingKind:
    """See Kind. One label: a reranker. Several: a classifier."""

    name = "classifying"
    about = About(
        architectures=("*ForSequenceClassification (cross-encoders, classifiers)",),
        tasks=("text-ranking", "text-classification"),
        oracle="transformers' networks and text-classification pipeline, tiny random checkpoints",
        batching="texts, or pairs of them, of about the same length, of all requests",
    )

    def claims(self, checkpoint: Checkpoint) -> bool:
        """See Kind."""
        return architecture_of(checkpoint).endswith(CLASSIFIERS) and is_text_model(checkpoint)

    def tasks(self, checkpoint: Checkpoint) -> Sequence[str]:
        """See Kind."""
        return ("text-ranking", "text-classification") if len(labels(checkpoint)) == 1 else ("text-classification",)

    def makes(self, checkpoint: Checkpoint) -> Sequence[str]:
        """See Kind."""
        return ("scores",)

    def options(self, checkpoint: Checkpoint) -> Options:
        """See Kind."""
        checks: dict[str, Check] = {
            "prompt": several(text(), most=MOST_TEXTS),
            "truncate": flag,
            "activation": one_of("sigmoid", "softmax", "none"),
        }
        if len(labels(checkpoint)) == 1:
            checks |= {"documents": several(text(), most=MOST_TEXTS), "top_n": whole(1, MOST_TEXTS)}
            return Options(what="a reranking model", checks=checks, aliases={"query": "prompt"})
        checks |= {"text_pair": several(text(), most=MOST_TEXTS), "top_k": whole(1, 1 << 20)}
        return Options(what="a model that classifies texts", checks=checks)

    def describe(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """See Kind."""
        read = positions(checkpoint)
        return {
            "architecture": architecture_of(checkpoint),
            "labels": list(labels(checkpoint))[:50],
            **({"max_tokens": read} if read is not None else {}),
        }

    def parts(self, checkpoint: Checkpoint) -> Mapping[str, Part]:
        """See Kind."""
        return {
            "network": Part(
                tensors=network_tensors(checkpoint), activation_bytes=lambda size: activation_bytes(checkpoint, size)
            )
        }

    def build(self, checkpoint: Checkpoint, loader: Loader) -> Generator:
        """See Kind."""
        from .classifier import build

        return build(checkpoint, loader, partial(self.check, checkpoint))

    def sample_request(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """See Kind."""
        return SAMPLE if len(labels(checkpoint)) == 1 else {}

    def check(self, checkpoint: Checkpoint, asked: Mapping[str, Any]) -> None:
        """See Kind."""
        _check_ranking(asked)
        if asked.get("activation") == "softmax" and len(labels(checkpoint)) == 1:
            raise InvalidRequest("activation: a model with one label has no softmax; take sigmoid or none")
        pairs = asked.get("text_pair")
        if pairs is not None and len(pairs) != len(asked["prompt"]):
            raise InvalidRequest(f"text_pair has {len(pairs)} texts, and prompt {len(asked['prompt'])}")


class JudgingKind:
    """See Kind. Language models that rerank by what they think of "yes", as sentence-transformers describes them."""

    name = "judging"
    about = About(
        architectures=("*ForCausalLM with sentence-transformers' LogitScore (Qwen3-Reranker, ...)",),
        tasks=("text-ranking",),
        oracle="transformers' network, tiny random checkpoints",
        batching="questions of about the same length, of all requests",
    )

    def claims(self, checkpoint: Checkpoint) -> bool:
        """See Kind."""
        return "LogitScore" in module_kinds(checkpoint) and is_text_model(checkpoint)

    def tasks(self, checkpoint: Checkpoint) -> Sequence[str]:
        """See Kind."""
        return ("text-ranking",)

    def makes(self, checkpoint: Checkpoint) -> Sequence[str]:
        """See Kind."""
        return ("scores",)

    def options(self, checkpoint: Checkpoint) -> Options:
        """See Kind."""
        checks: dict[str, Check] = {
            "prompt": several(text(), most=1),
            "documents": several(text(), most=MOST_TEXTS),
            "top_n": whole(1, MOST_TEXTS),
            "instruction": text(),
            "activation": one_of("sigmoid", "none"),
        }
        return Options(what="a reranking model", checks=checks, aliases={"query": "prompt"})

    def describe(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """See Kind."""
        read = positions(checkpoint)
        return {"architecture": architecture_of(checkpoint), **({"max_tokens": read} if read is not None else {})}

    def parts(self, checkpoint: Checkpoint) -> Mapping[str, Part]:
        """See Kind."""
        logit_score(checkpoint)
        return {
            "network": Part(
                tensors=network_tensors(checkpoint), activation_bytes=lambda size: activation_bytes(checkpoint, size)
            )
        }

    def build(self, checkpoint: Checkpoint, loader: Loader) -> Generator:
        """See Kind."""
        from .classifier import build_judge

        return build_judge(checkpoint, loader, partial(self.check, checkpoint))

    def sample_request(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """See Kind."""
        return SAMPLE

    def check(self, checkpoint: Checkpoint, asked: Mapping[str, Any]) -> None:
        """See Kind."""
        _check_ranking(asked)
        if "documents" not in asked:
            raise InvalidRequest("give documents: the texts that are ordered by how well they answer the prompt")


def _check_ranking(asked: Mapping[str, Any]) -> None:
    """Raise InvalidRequest where query, documents and their number do not go together."""
    if "documents" in asked and len(asked["prompt"]) != 1:
        raise InvalidRequest(f"documents are ordered for one query, and prompt has {len(asked['prompt'])}")
    if "top_n" in asked and "documents" not in asked:
        raise InvalidRequest("top_n says how many of the documents come back; give documents")


def labels(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The names of the labels, by number. Where there are none: LABEL_0, ..."""
    config = checkpoint.config
    named = config.get("id2label")
    if isinstance(named, Mapping) and named:
        return tuple(str(named.get(str(number), f"LABEL_{number}")) for number in range(len(named)))
    count = config.get("num_labels")
    return tuple(f"LABEL_{number}" for number in range(count if isinstance(count, int) and 0 < count <= 1 << 20 else 2))


def activation(checkpoint: Checkpoint) -> str:
    """What makes scores of a classifier's numbers, where nobody asks for another: "sigmoid", "softmax" or "none". As
    sentence-transformers and the library's own pipeline choose."""
    count = len(labels(checkpoint))
    told = checkpoint.config.get("sentence_transformers")
    names = [told.get("activation_fn")] if isinstance(told, Mapping) else []
    names.append(checkpoint.config.get("sbert_ce_default_activation_function"))
    found = next((name.rpartition(".")[2] for name in names if isinstance(name, str)), None)
    if found in ("Sigmoid", "Identity"):
        return "sigmoid" if found == "Sigmoid" else "none"
    problem = checkpoint.config.get("problem_type")
    if count > 1:
        return {"multi_label_classification": "sigmoid", "regression": "none"}.get(str(problem), "softmax")
    return "sigmoid"


def judge_instruction(checkpoint: Checkpoint) -> str | None:
    """The instruction that a reranking language model is given, where its files name one."""
    known, usual = prompts_of(checkpoint)
    return None if usual is None else known[usual]
