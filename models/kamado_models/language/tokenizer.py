"""Text to token ids and back, and chats to prompts, for one checkpoint. Files are data: nothing in them names code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from kamado.checkpoint.types import Checkpoint
from kamado.errors import InvalidRequest, UnsupportedCheckpoint

from .chat_template import ChatTemplate, Worker

MAX_TEXT_CHARS = 64 << 20
T = TypeVar("T")


def guarded(function: Callable[[], T], what: str) -> T:
    """Call the tokenizers library. Its failures, also Rust panics (a BaseException), become UnsupportedCheckpoint."""
    try:
        return function()
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise UnsupportedCheckpoint(f"{what}: {type(error).__name__}: {error}") from error
        raise


class Tokenizer:
    """The tokenizer of one model. Thread safe."""

    def __init__(
        self,
        backend: Any,
        *,
        eos_ids: frozenset[int],
        bos_id: int | None,
        template: str | None = None,
        template_variables: Mapping[str, str] | None = None,
        force_bos: bool | None = None,
        marks: Mapping[str, int] | None = None,
    ) -> None:
        """`backend`: a `tokenizers.Tokenizer`. `force_bos`: whether encoded text must (True) or must not (False) start
        with `bos_id`; None leaves that to the backend. `marks`: see there."""
        backend.no_truncation()
        backend.no_padding()
        self.eos_ids = eos_ids
        """Tokens that end an answer."""
        self.bos_id = bos_id
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self.marks = dict(marks or {})
        """Tokens around code that is to be filled in, as far as files say which: "prefix", "suffix", "middle", "end",
        "repository", "file"."""
        self._backend = backend
        self._template = ChatTemplate(template) if template is not None else None
        self._variables = dict(template_variables or {})
        self._force_bos = force_bos

    @property
    def has_chat_template(self) -> bool:
        """Whether `chat_prompt` can be used."""
        return self._template is not None

    @property
    def backend(self) -> Any:
        """The `tokenizers.Tokenizer`, for those who need its vocabulary (constrained decoding)."""
        return self._backend

    def as_config(self) -> dict[str, Any]:
        """What a `tokenizer_config.json` beside the backend's `tokenizer.json` says."""
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **self._variables}
        if self._template is not None:
            config["chat_template"] = self._template.source
        return config if self._force_bos is None else {**config, "add_bos_token": self._force_bos}

    def token_id(self, token: str) -> int | None:
        """The id of exactly this token."""
        found: int | None = self._backend.token_to_id(token)
        return found

    def token_text(self, token_id: int) -> str | None:
        """How the vocabulary writes this token."""
        found: str | None = self._backend.id_to_token(token_id)
        return found

    def special_texts(self) -> frozenset[str]:
        """Texts that are special tokens wherever they stand."""
        return frozenset(each.content for each in self._backend.get_added_tokens_decoder().values() if each.special)

    def encode(self, text: str, *, add_special: bool) -> list[int]:
        """Token ids. With `add_special`, start and end tokens as the model was trained with. Raises InvalidRequest."""
        if len(text) > MAX_TEXT_CHARS:
            raise InvalidRequest(f"the text has {len(text)} characters; at most {MAX_TEXT_CHARS} are allowed")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"the text has half a surrogate pair at character {error.start}") from error
        ids: list[int] = guarded(
            lambda: self._backend.encode(text, add_special_tokens=add_special).ids, "the tokenizer failed"
        )
        if add_special and self._force_bos is not None and self.bos_id is not None:
            starts = ids[:1] == [self.bos_id]
            if self._force_bos and not starts:
                return [self.bos_id, *ids]
            if starts and not self._force_bos:
                return ids[1:]
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text. Ids beyond the vocabulary count as empty; half a character at the end reads as U+FFFD.

        Raises InvalidRequest for numbers that no token id can be.
        """
        if ids and (min(ids) < 0 or max(ids) >= 1 << 32):
            raise InvalidRequest("token ids must be from 0 to 2**32 - 1")
        text: str = guarded(
            lambda: self._backend.decode(list(ids), skip_special_tokens=skip_special), "the tokenizer failed"
        )
        return text

    def in_parts(self, messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]] | None:
        """See ChatTemplate."""
        return self._template.in_parts(messages) if self._template is not None else None

    def chat_text(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """What the chat template makes of `messages`. Raises InvalidRequest, UnsupportedCheckpoint."""
        if self._template is None:
            raise InvalidRequest("this model has no chat template; give it a plain prompt")
        variables: dict[str, Any] = {**self._variables, "add_generation_prompt": add_generation_prompt, "tools": None}
        return self._template.render(messages, {**variables, "documents": None})

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> list[int]:
        """The token ids that the model wants to see for `messages`. Raises InvalidRequest, UnsupportedCheckpoint."""
        return self.encode(self.chat_text(messages, add_generation_prompt=add_generation_prompt), add_special=False)

    def adopt(self, worker: Worker) -> None:
        """Render chats in this process, or end it where there is nothing to render."""
        if self._template is None:
            worker.kill()
        else:
            self._template.adopt(worker)

    def close(self) -> None:
        """End the process that renders chat templates; it starts again when it is needed."""
        if self._template is not None:
            self._template.close()


def may_have_template(checkpoint: Checkpoint) -> bool:
    """Whether there is a place for a chat template in it."""
    if checkpoint.layout == "gguf":
        return "tokenizer.chat_template" in checkpoint.metadata
    return any(name in checkpoint.files for name in ("chat_template.jinja", "tokenizer_config.json"))


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer that came with `checkpoint`: a folder's files, or the vocabulary inside a GGUF file.

    Raises UnsupportedCheckpoint when there is none, or one that is damaged or of an unknown kind.
    """
    if checkpoint.layout == "gguf":
        from .gguf.vocabulary import tokenizer_from_gguf

        return tokenizer_from_gguf(checkpoint)
    from .tokenizer_files import tokenizer_from_files

    return tokenizer_from_files(checkpoint)
