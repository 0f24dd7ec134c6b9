"""A loaded masked language model."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from kamado.checkpoint.types import Checkpoint
from kamado.errors import InvalidRequest, UnsupportedCheckpoint
from kamado.outputs import Output, Scored, Scores

from ..library.kinds import Bench, Generator
from ..library.loading import Loader
from .batching import in_batches, padded
from .loading import NETWORK, load_network, load_tokens, wrapped
from .masked import FILL, SCORE, check_task, network_class
from .networks import Asked
from .tokens import Row, Tokens, count

_GAPS = ("[MASK]", "<mask>")
"""What people write for a gap, whatever the model's own sign is."""
_TOP_K = 5


def build(checkpoint: Checkpoint, loader: Loader) -> Generator:
    """See Kind.build."""
    tokens = load_tokens(loader)
    if tokens.tokenizer.mask_token is None:
        raise UnsupportedCheckpoint(f"{checkpoint.reference}: its tokenizer has no mask token")
    return Filler(tokens, wrapped(load_network(loader, network_class(checkpoint)), Asked))


class Filler:
    """See Generator."""

    def __init__(self, tokens: Tokens, network: Asked) -> None:
        self.modules: Mapping[str, Any] = {NETWORK: network}
        self.tokens = tokens
        self.mask: str = tokens.tokenizer.mask_token
        self.mask_id: int = tokens.tokenizer.mask_token_id

    def prepare(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        """See Generator."""
        check_task(asked)
        if asked.get("task", FILL) == SCORE:
            rows = [self.tokens.row(each, cut=False) for each in asked["prompt"]]
            return {**asked, "rows": rows, "prompt_tokens": count(rows)}
        text = asked["prompt"][0]
        for gap in _GAPS:
            text = text.replace(gap, self.mask)
        row = self.tokens.row(text, cut=False)
        places = tuple(place for place, each in enumerate(row.ids) if each == self.mask_id)
        if not places:
            raise InvalidRequest(f"the prompt has no gap: write {self.mask} where a word is missing, or task={SCORE}")
        targets = [self._target(each) for each in asked.get("targets", ())]
        found = {"text": text, "rows": [replace(row, asked=places)], "target_ids": targets}
        return {**asked, **found, "prompt_tokens": len(row.ids)}

    def generate(self, bench: Bench, asked: Mapping[str, Any]) -> Output:
        """See Generator."""
        return self._scored(bench, asked) if asked.get("task", FILL) == SCORE else self._filled(bench, asked)

    def _filled(self, bench: Bench, asked: Mapping[str, Any]) -> Scores:
        def call(some: list[Row]) -> torch.Tensor:
            return self._logits(bench, some).softmax(dim=-1)

        (found,) = in_batches(bench, asked["rows"], self.tokens.max_tokens, call)
        best: list[str] = []
        items: list[Scored] = []
        for gap, row in enumerate(found):
            ids = self._best(row, asked)
            words = [self._word(each) for each in ids]
            best.append(words[0])
            for each, word in zip(ids, words, strict=True):
                details = {"token": each, "text": self._with(asked["text"], {gap: word})}
                index = gap if len(found) > 1 else None
                items.append(Scored(value=word.strip(), score=float(row[each]), index=index, details=details))
        return Scores(items=tuple(items), text=self._with(asked["text"], dict(enumerate(best))))

    def _best(self, row: torch.Tensor, asked: Mapping[str, Any]) -> list[int]:
        """Token ids, the likeliest first."""
        targets: Sequence[int] = list(dict.fromkeys(asked["target_ids"]))
        if targets:
            ordered = sorted(targets, key=lambda each: -float(row[each]))
            return ordered[: asked.get("top_k")]
        found: list[int] = row.topk(min(asked.get("top_k", _TOP_K), len(row))).indices.tolist()
        return found

    def _scored(self, bench: Bench, asked: Mapping[str, Any]) -> Scores:
        """Pseudo-log-likelihoods: each token's, given all others; Salazar et al., "Masked Language Model Scoring",
        2020."""
        rows: list[Row] = []
        hidden: list[tuple[int, int]] = []
        for number, row in enumerate(asked["rows"]):
            special = self.tokens.is_special(row.ids)
            for place, each in enumerate(row.ids):
                if not special[place]:
                    ids = (*row.ids[:place], self.mask_id, *row.ids[place + 1 :])
                    rows.append(replace(row, ids=ids, asked=(place,), wanted=each))
                    hidden.append((number, each))

        def call(some: list[Row]) -> torch.Tensor:
            words = torch.tensor([[row.wanted] for row in some], device=bench.device)
            return self._logits(bench, some)[:, 0].log_softmax(dim=-1).gather(1, words)[:, 0]

        sums = [0.0] * len(asked["rows"])
        counts = [0] * len(asked["rows"])
        for (number, _), found in zip(hidden, in_batches(bench, rows, self.tokens.max_tokens, call), strict=True):
            sums[number] += float(found)
            counts[number] += 1
        items = []
        for number in sorted(range(len(sums)), key=lambda each: -sums[each]):
            details = {
                "tokens": counts[number],
                "perplexity": math.exp(min(-sums[number] / max(counts[number], 1), 700)),
            }
            index = number if len(sums) > 1 else None
            items.append(Scored(value=asked["prompt"][number], score=sums[number], index=index, details=details))
        return Scores(items=tuple(items))

    def _logits(self, bench: Bench, some: list[Row]) -> torch.Tensor:
        given = padded(some, most=self.tokens.max_tokens, pad_id=self.tokens.pad_id, device=bench.device)
        return bench.model(NETWORK)(**given)  # type: ignore[no-any-return]

    def _target(self, word: str) -> int:
        """The one token that a word is, rather as it stands behind a space. Raises InvalidRequest."""
        for written in (f" {word}", word):
            ids = self.tokens.plain(written)
            if len(ids) == 1 and ids[0] != self.tokens.tokenizer.unk_token_id:
                return ids[0]
        raise InvalidRequest(f"targets: {word!r:.60} is not one token of the model's vocabulary")

    def _word(self, token: int) -> str:
        """As it stands in a text: what goes on with the word before it begins with `##`, as others of BERT's do."""
        tokenizer = self.tokens.tokenizer
        piece = tokenizer.convert_ids_to_tokens(token)
        return str(piece) if str(piece).startswith("##") else str(tokenizer.decode([token]))

    def _with(self, text: str, words: Mapping[int, str]) -> str:
        """The text with words in these of its gaps."""
        gaps = -1

        def fill(found: re.Match[str]) -> str:
            nonlocal gaps
            gaps += 1
            if gaps not in words:
                return found[0]
            word = words[gaps]
            return word[2:] if word.startswith("##") and len(word) > 2 else found[1] + word.strip()

        return re.sub(rf"(\s*){re.escape(self.mask)}", fill, text)
