"""What tokenizers leave out of a prompt: pipelines cut it to what their models read, and say so only in a log."""

from __future__ import annotations

import copy
import functools
from typing import Any


class CutWatch:
    """What the tokenizers of one pipeline were given to read, and how much of it they kept."""

    def __init__(self, pipeline: Any, prompt: str | None, negative: str | None) -> None:
        """Puts tokenizers that tell in place of the pipeline's own."""
        from diffusers import DiffusionPipeline
        from transformers import PreTrainedTokenizerBase

        self._negative = None if negative is None or negative == prompt else _plain(negative)
        self._seen: dict[str, dict[str, tuple[int, int]]] = {}
        """By text and tokenizer: tokens, and how many of them are read."""
        inner = [part for part in vars(pipeline).values() if isinstance(part, DiffusionPipeline)]
        for each in (pipeline, *inner):
            for name, part in each.components.items():
                if isinstance(part, PreTrainedTokenizerBase):
                    setattr(each, name, self._telling(part, name))

    def notes(self, advice: str) -> list[str]:
        """A sentence on each text that was not read whole; `advice` ends that of one which nothing read whole."""
        found = []
        for text, by_tokenizer in self._seen.items():
            cut = {name: counts for name, counts in by_tokenizer.items() if counts[0] > counts[1]}
            if not cut:
                continue
            name, (tokens, read) = max(cut.items(), key=lambda item: item[1][1])
            if len(cut) == len(by_tokenizer):
                how = f"and this model reads {read}: the rest was left out{advice}"
            else:
                how = f"of which one text encoder ({name}) reads {read}"
            found.append(f"the {text} has {tokens} tokens, {how}")
        return found

    def _telling(self, tokenizer: Any, name: str) -> Any:
        """A tokenizer like this one that reports each text which it is told to cut to a length."""
        found = copy.copy(tokenizer)
        found.__class__ = _telling_class(type(tokenizer))  # type: ignore[arg-type]  # mypy doubts that classes hash
        found._kamado_report = functools.partial(self._note, name)
        return found

    def _note(self, name: str, text: str, tokens: int, read: int) -> None:
        kept = self._seen.setdefault("negative prompt" if _plain(text) == self._negative else "prompt", {})
        before = kept.get(name)
        if before is None or tokens - read > before[0] - before[1]:
            kept[name] = (tokens, read)


def _plain(text: str) -> str:
    """As pipelines may have cleaned it."""
    return " ".join(text.lower().split())


@functools.cache
def _telling_class(kind: Any) -> Any:
    def call(self: Any, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        result = kind.__call__(self, text, *args, **kwargs)
        texts = [text] if isinstance(text, str) else text
        if kwargs.get("truncation") and isinstance(texts, (list, tuple)) and all(isinstance(t, str) for t in texts):
            limit = int(kwargs.get("max_length") or self.model_max_length)
            special = kwargs.get("add_special_tokens", True)
            for each in texts:
                whole = kind.__call__(self, each, add_special_tokens=special, verbose=False)
                self._kamado_report(each, len(whole.input_ids), limit)
        return result

    return type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})
