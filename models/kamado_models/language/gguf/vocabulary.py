"""The tokenizer inside a GGUF file."""

from __future__ import annotations

from typing import Any

from kamado.checkpoint.types import Checkpoint
from kamado.errors import UnsupportedCheckpoint

from ..pre_tokenizers import find_pre_tokenizer
from ..tokenizer import Tokenizer, guarded
from ..vocabulary import Kind, Vocabulary, byte_level_bpe, sentencepiece_bpe, sentencepiece_unigram
from .metadata import GgufMetadata

_END_TOKENS = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<EOT>",
    "<|end_of_text|>",
    "<|end_of_turn|>",
    "<end_of_utterance>",
    "<|END_OF_TURN_TOKEN|>",
)
"""Files often name one end token only, though their chat template ends a turn with another."""

_MARKS = {
    "prefix": ("fim_pre", "prefix"),
    "suffix": ("fim_suf", "suffix"),
    "middle": ("fim_mid", "middle"),
    "pad": ("fim_pad",),
    "repository": ("fim_rep",),
    "file": ("fim_sep",),
    "end": ("eot",),
}
"""Keys of the tokens around code that is to be filled in, newer ones first."""


def _vocabulary(meta: GgufMetadata, model: str) -> Vocabulary:
    return Vocabulary(
        tokens=meta.array("tokenizer.ggml.tokens"),
        kinds=meta.array("tokenizer.ggml.token_type", ()),
        scores=meta.array("tokenizer.ggml.scores", ()) if model != "gpt2" else (),
        merges=meta.array("tokenizer.ggml.merges", ()) if model == "gpt2" else (),
        charsmap=bytes(byte & 255 for byte in meta.array("tokenizer.ggml.precompiled_charsmap", ())),
        space_prefix=meta.flag("tokenizer.ggml.add_space_prefix", model != "gpt2"),
        collapse_spaces=meta.flag("tokenizer.ggml.remove_extra_whitespaces", False),
    )


def _backend(meta: GgufMetadata, model: str, vocabulary: Vocabulary, where: str) -> tuple[Any, bool]:
    """The tokenizer, and whether text starts with a start token unless the file says otherwise."""
    if model == "gpt2":
        name = meta.text("tokenizer.ggml.pre", "default")
        pre_tokenizer = find_pre_tokenizer(name)
        if pre_tokenizer is None:
            raise UnsupportedCheckpoint(
                f"{where}: the way {name!r} to cut text into words (tokenizer.ggml.pre) is unknown here"
            )
        return guarded(
            lambda: byte_level_bpe(vocabulary, pre_tokenizer), f"{where}: its vocabulary is damaged"
        ), pre_tokenizer.add_bos
    if not vocabulary.scores:
        raise UnsupportedCheckpoint(f"{where}: its vocabulary has no scores (tokenizer.ggml.scores)")
    make = sentencepiece_bpe if model == "llama" else sentencepiece_unigram
    return guarded(lambda: make(vocabulary), f"{where}: its vocabulary is damaged"), model == "llama"


def _end_ids(meta: GgufMetadata, vocabulary: Vocabulary) -> frozenset[int]:
    ends = {meta.optional_integer(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")}
    found = {
        token: i
        for i, token in enumerate(vocabulary.tokens)
        if token in _END_TOKENS and vocabulary.kind(i) in (Kind.CONTROL, Kind.USER_DEFINED)
    }
    if "<|return|>" in found and "<|call|>" in found:
        # gpt-oss: this one ends a message, not the answer.
        found.pop("<|end|>", None)
    return frozenset(end for end in (*ends, *found.values()) if end is not None and end < len(vocabulary.tokens))


def _marks(meta: GgufMetadata, vocabulary: Vocabulary) -> dict[str, int]:
    """See Tokenizer.marks."""
    found = {
        mark: [meta.optional_integer(f"tokenizer.ggml.{name}_token_id") for name in names]
        for mark, names in _MARKS.items()
    }
    known = {
        mark: next((token for token in tokens if token is not None and 0 <= token < len(vocabulary.tokens)), None)
        for mark, tokens in found.items()
    }
    return {mark: token for mark, token in known.items() if token is not None}


def _with_ends(backend: Any, bos: tuple[str, int] | None, eos: tuple[str, int] | None) -> None:
    """Have the backend put start and end tokens around a text."""
    from tokenizers import processors

    used = [pair for pair in (bos, eos) if pair is not None]
    if used:
        parts = [*([bos[0]] if bos else []), "$A", *([eos[0]] if eos else [])]
        backend.post_processor = processors.TemplateProcessing(single=parts, special_tokens=used)


def tokenizer_from_gguf(checkpoint: Checkpoint) -> Tokenizer:
    """Raises UnsupportedCheckpoint when the file has no vocabulary, or one of an unknown kind."""
    meta = GgufMetadata(checkpoint)
    where = str(checkpoint.root)
    model = meta.text("tokenizer.ggml.model", "")
    if model in ("", "none", "no_vocab"):
        raise UnsupportedCheckpoint(f"{where} has no tokenizer in it")
    if model not in ("gpt2", "llama", "t5"):
        raise UnsupportedCheckpoint(f"{where}: its tokenizer is of the kind {model!r}; known are gpt2, llama and t5")
    vocabulary = _vocabulary(meta, model)
    vocabulary.check(where)
    backend, bos_default = _backend(meta, model, vocabulary, where)

    def named(key: str) -> tuple[str, int] | None:
        token_id = meta.optional_integer(f"tokenizer.ggml.{key}_token_id")
        known = token_id is not None and token_id < len(vocabulary.tokens)
        return (vocabulary.tokens[token_id], token_id) if token_id is not None and known else None

    special = {
        key: named(name) for key, name in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    add_bos = meta.flag("tokenizer.ggml.add_bos_token", bos_default)
    add_eos = meta.flag("tokenizer.ggml.add_eos_token", model == "t5")
    guarded(
        lambda: _with_ends(backend, special["bos"] if add_bos else None, special["eos"] if add_eos else None),
        f"{where}: its special tokens are damaged",
    )
    return Tokenizer(
        backend,
        eos_ids=_end_ids(meta, vocabulary),
        bos_id=special["bos"][1] if special["bos"] else None,
        template=meta.text("tokenizer.chat_template") if meta.has("tokenizer.chat_template") else None,
        template_variables={f"{key}_token": pair[0] for key, pair in special.items() if pair},
        marks=_marks(meta, vocabulary),
    )
