"""What a request for text comes to: its options, checked and completed, and its tokens. Needs no weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kamado.errors import ContextOverflow, InvalidRequest
from kamado.requests import Sampling, TextOptions, resolve_text_options
from kamado.sampling.check import check_sampling

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


class TextIntake:
    """Takes the requests for one model."""

    def __init__(self, reference: str, tokenizer: Tokenizer, facts: TextFacts) -> None:
        self._reference = reference
        self._tokenizer = tokenizer
        self._facts = facts

    def order(self, options: Mapping[str, Any]) -> tuple[TextOptions, list[int]]:
        """Check a request: (its options, the tokens of its prompt). Whether there is memory for them is not judged.

        Raises InvalidRequest, ContextOverflow."""
        resolved = resolve_text_options(
            options, sampling_defaults=self._facts.sampling, chat_default=self._tokenizer.has_chat_template
        )
        check_sampling(resolved.sampling, self._facts.vocab_size)
        tokens = self._tokens(resolved)
        self._check_context(len(tokens))
        return resolved, tokens

    def _tokens(self, options: TextOptions) -> list[int]:
        tokenizer = self._tokenizer
        if options.prompt_tokens:
            if (largest := max(options.prompt_tokens)) >= self._facts.vocab_size:
                raise InvalidRequest(
                    f"prompt_tokens: {largest} is no token; the vocabulary has {self._facts.vocab_size}"
                )
            return list(options.prompt_tokens)
        if not options.messages and not options.chat:
            if options.system is not None:
                raise InvalidRequest(
                    "a system prompt needs the chat template, which this request switched off or lacks"
                )
            assert options.prompt is not None
            tokens = tokenizer.encode(options.prompt, add_special=True)
        else:
            if not tokenizer.has_chat_template:
                raise InvalidRequest(f"{self._reference} has no chat template; give it a plain prompt")
            turns = list(options.messages) or [{"role": "user", "content": options.prompt}]
            if options.system is not None:
                turns.insert(0, {"role": "system", "content": options.system})
            tokens = tokenizer.chat_prompt(turns)
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
