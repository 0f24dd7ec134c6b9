"""Masked language models: words for gaps, and how likely a text is. Importing this loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kamado.checkpoint.types import Checkpoint
from kamado.errors import InvalidRequest
from kamado.options import Options, one_of, several, text, whole

from ..library.kinds import About, Generator, Part, architecture_of
from .embeddings import MOST_TEXTS
from .layout import activation_bytes, is_text_model, network_tensors, positions

if TYPE_CHECKING:
    from ..library.loading import Loader

FILL, SCORE = "fill-mask", "score"
_PRETRAINING = ("BertForPreTraining", "MegatronBertForPreTraining", "AlbertForPreTraining")
"""Classes with a masked language model inside."""


class MaskedKind:
    """See Kind."""

    name = "masked"
    about = About(
        architectures=("*ForMaskedLM (BERT, RoBERTa, ModernBERT, DistilBERT, ELECTRA, DeBERTa, ALBERT, MPNet, ...)",),
        tasks=(FILL,),
        oracle="transformers' fill-mask pipeline, tiny random checkpoints",
        batching="texts of about the same length and as many gaps, of all requests",
    )

    def claims(self, checkpoint: Checkpoint) -> bool:
        """See Kind."""
        name = architecture_of(checkpoint)
        return (name.endswith("ForMaskedLM") or name in _PRETRAINING) and is_text_model(checkpoint)

    def tasks(self, checkpoint: Checkpoint) -> Sequence[str]:
        """See Kind."""
        return (FILL,)

    def makes(self, checkpoint: Checkpoint) -> Sequence[str]:
        """See Kind."""
        return ("scores",)

    def options(self, checkpoint: Checkpoint) -> Options:
        """See Kind."""
        checks = {
            "prompt": several(text(), most=MOST_TEXTS),
            "task": one_of(FILL, SCORE),
            "top_k": whole(1, 1 << 20),
            "targets": several(text(longest=1000), most=MOST_TEXTS),
        }
        return Options(what="a masked language model", checks=checks)

    def describe(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """See Kind."""
        read = positions(checkpoint)
        return {"architecture": architecture_of(checkpoint), **({"max_tokens": read} if read is not None else {})}

    def parts(self, checkpoint: Checkpoint) -> Mapping[str, Part]:
        """See Kind."""
        words: int = checkpoint.config["vocab_size"]

        def activations(size: int) -> int:
            return activation_bytes(checkpoint, size) + 64 * words * (size + 4)

        return {"network": Part(tensors=network_tensors(checkpoint), activation_bytes=activations)}

    def build(self, checkpoint: Checkpoint, loader: Loader) -> Generator:
        """See Kind."""
        from .filler import build

        return build(checkpoint, loader)

    def sample_request(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """See Kind."""
        return {"prompt": "{number}: the light at the end of the pier shows [MASK] where the rocks begin."}

    def check(self, checkpoint: Checkpoint, asked: Mapping[str, Any]) -> None:
        """See Kind."""
        check_task(asked)


def check_task(asked: Mapping[str, Any]) -> None:
    """Raise InvalidRequest for options of the other task."""
    if asked.get("task", FILL) == FILL:
        if len(asked["prompt"]) != 1:
            raise InvalidRequest("gaps are filled in one text at a time; give one prompt, or task=score")
        return
    for name in ("top_k", "targets"):
        if name in asked:
            raise InvalidRequest(f"{name} is for task={FILL}; leave it out, or task={SCORE}")


def network_class(checkpoint: Checkpoint) -> str:
    """The class that fills gaps."""
    name = architecture_of(checkpoint)
    return name.removesuffix("ForPreTraining") + "ForMaskedLM" if name in _PRETRAINING else name
