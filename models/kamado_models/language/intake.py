"""What a request for text comes to: its options, checked and completed, and its tokens. Needs no weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from kamado.errors import ContextOverflow, InvalidRequest
from kamado.requests import Sampling, TextOptions, resolve_text_options
from kamado.sampling.check import check_sampling
from kamado.turns import joined_texts

from .fill import Filler
from .media.processor import MediaPrompt, Senses
from .tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFacts:
    """What requests are checked against."""

    sampling: Sampling
    """Defaults of this checkpoint."""
    vocab_size: int
    context_tokens: int
    stepwise: bool
    """See TextModel."""
    decoder_start: tuple[int, ...]
    """First decoder tokens of an encoder-decoder model; otherwise empty."""


@dataclass(frozen=True, slots=True)
class Order:
    """A request that can be run."""

    options: TextOptions
    """Without what is shown."""
    tokens: list[int]
    media: MediaPrompt | None = None
    """None: it is all text."""


class TextIntake:
    """Takes the requests for one model."""

    def __init__(
        self,
        reference: str,
        tokenizer: Tokenizer,
        facts: TextFacts,
        senses: Senses | None = None,
        *,
        why_text: str = "",
    ) -> None:
        """`senses`: of a model that takes more than text; `why_text`: why it does not, where others of its kind do."""
        self._why_text = why_text
        self._reference = reference
        self._tokenizer = tokenizer
        self._facts = facts
        self._senses = senses
        self._filler: Filler | None = None

    def ends(self, options: TextOptions) -> frozenset[int]:
        """Tokens that end the answer to such a request, beside those of the model."""
        return self._fills().layout.ends if options.is_code else frozenset()

    def _fills(self) -> Filler:
        if self._filler is None:
            self._filler = Filler(self._reference, self._tokenizer)
        return self._filler

    def order(self, options: Mapping[str, Any]) -> Order:
        """Check a request and find the tokens of its prompt. Whether there is memory for them is not judged.

        Raises InvalidRequest, ContextOverflow."""
        resolved = resolve_text_options(
            options, sampling_defaults=self._facts.sampling, chat_default=self._tokenizer.has_chat_template
        )
        check_sampling(resolved.sampling, self._facts.vocab_size)
        media = self._media(resolved) if resolved.media else None
        tokens = media.tokens if media is not None else self._tokens(resolved)
        self._check_context(len(tokens))
        return Order(replace(resolved, media=()), tokens, media)

    def _media(self, options: TextOptions) -> MediaPrompt:
        """The prompt of a request that shows something."""
        senses = self._senses
        if senses is None:
            raise InvalidRequest(f"{self._reference} takes text alone{self._why_text}, and no {options.media[0].kind}")
        items = senses.open(options.media)
        if not options.messages and not options.chat:
            assert options.prompt is not None, "media come with a prompt or in messages"
            self._check_system(options)
            return senses.prompt(senses.marked(options.prompt, items), items)
        shown = [{"type": item.kind} for item in items]
        turns = list(options.messages) or [
            {"role": "user", "content": [*shown, {"type": "text", "text": options.prompt}]}
        ]
        return senses.prompt(self._tokenizer.chat_text(self._turns(options, turns)), items)

    def _turns(self, options: TextOptions, turns: list[Any]) -> list[Any]:
        """The turns as the chat template has them, with the system prompt."""
        if not self._tokenizer.has_chat_template:
            raise InvalidRequest(f"{self._reference} has no chat template; give it a plain prompt")
        if options.system is not None:
            turns = [{"role": "system", "content": options.system}, *turns]
        if self._senses is None:
            return joined_texts(turns)
        in_parts = self._tokenizer.in_parts(turns)
        return joined_texts(turns, self._senses.mark) if in_parts is None else in_parts

    def _check_system(self, options: TextOptions) -> None:
        if options.system is not None:
            raise InvalidRequest("a system prompt needs the chat template, which this request switched off or lacks")

    def _tokens(self, options: TextOptions) -> list[int]:
        tokenizer = self._tokenizer
        if options.prompt_tokens:
            if (largest := max(options.prompt_tokens)) >= self._facts.vocab_size:
                raise InvalidRequest(
                    f"prompt_tokens: {largest} is no token; the vocabulary has {self._facts.vocab_size}"
                )
            return list(options.prompt_tokens)
        if not options.messages and not options.chat:
            self._check_system(options)
            assert options.prompt is not None
            if options.is_code and self._facts.decoder_start:
                raise InvalidRequest(
                    f"{self._reference} is an encoder and a decoder, which continues no text; leave out suffix, files, "
                    "repository, filename and stop_at"
                )
            is_code = options.is_code
            tokens = self._fills().prompt(options) if is_code else tokenizer.encode(options.prompt, add_special=True)
        else:
            turns = list(options.messages) or [{"role": "user", "content": options.prompt}]
            tokens = tokenizer.chat_prompt(self._turns(options, turns))
        if not tokens:
            raise InvalidRequest("the prompt has no tokens; give the model something to answer")
        return tokens

    def _check_context(self, num_tokens: int) -> None:
        context, is_source = self._facts.context_tokens, bool(self._facts.decoder_start)
        if num_tokens > context or (num_tokens == context and not is_source):
            raise ContextOverflow(
                f"the prompt has {num_tokens} tokens, but the context of {self._reference} is {context} "
                "tokens, prompt and answer together; shorten the prompt",
                prompt_tokens=num_tokens,
                context_tokens=context,
            )
