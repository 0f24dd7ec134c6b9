"""Building tokenizers out of a bare vocabulary: tokens, kinds, scores or merges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from kamado.errors import UnsupportedCheckpoint

from .pre_tokenizers import PreTokenizer
from .pre_tokenizers import build as build_pre_tokenizer

MAX_TOKENS = 1 << 22
MAX_TOKEN_CHARS = 4096
SPACE = "\u2581"
"""SentencePiece's mark for a space."""


class Kind(IntEnum):
    """What a token is; numbers as in SentencePiece and GGUF."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Tokens by id, and what a model file says of them."""

    tokens: Sequence[str]
    kinds: Sequence[int]
    """`Kind` of each token; empty means all are normal."""
    scores: Sequence[float] = ()
    """SentencePiece: the higher, the sooner a piece is put together."""
    merges: Sequence[str] = ()
    """Byte-level BPE: `left right`, best first."""
    charsmap: bytes = field(default=b"", repr=False)
    """SentencePiece's compiled normalization, empty for none."""
    space_prefix: bool = False
    """Whether text gets a space in front (SentencePiece)."""
    collapse_spaces: bool = False
    """Whether several spaces become one (SentencePiece)."""

    def kind(self, token_id: int) -> int:
        """`Kind` of one token."""
        return self.kinds[token_id] if self.kinds else Kind.NORMAL

    def check(self, where: str) -> None:
        """Raises UnsupportedCheckpoint for a vocabulary that contradicts itself. `where`: the file."""
        count = len(self.tokens)
        if (
            not 0 < count <= MAX_TOKENS
            or (self.kinds and len(self.kinds) != count)
            or (self.scores and len(self.scores) != count)
        ):
            raise UnsupportedCheckpoint(
                f"{where}: its vocabulary has {count} tokens, {len(self.kinds)} kinds and {len(self.scores)} scores"
            )
        if any(not isinstance(token, str) or len(token) > MAX_TOKEN_CHARS for token in self.tokens):
            raise UnsupportedCheckpoint(f"{where}: its vocabulary has tokens that are no texts, or too long")


def _ids(vocabulary: Vocabulary) -> dict[str, int]:
    """Token -> id; of equal tokens the first counts."""
    ids: dict[str, int] = {}
    for token_id, token in enumerate(vocabulary.tokens):
        ids.setdefault(token, token_id)
    return ids


def _add_special(tokenizer: Any, vocabulary: Vocabulary) -> None:
    """Control tokens are special; user-defined ones are found in text as they are."""
    from tokenizers import AddedToken

    special, plain = [], []
    for token_id, token in enumerate(vocabulary.tokens):
        kind = vocabulary.kind(token_id)
        if kind in (Kind.CONTROL, Kind.UNKNOWN) and token:
            special.append(AddedToken(token, special=True, normalized=False))
        elif kind == Kind.USER_DEFINED and token.strip(SPACE + " \n\t\r"):
            # Runs of spaces are left to the merges: in text they are spaces, in the vocabulary they are marks.
            plain.append(AddedToken(token, special=False, normalized=False))
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(plain)


def byte_level_bpe(vocabulary: Vocabulary, pre_tokenizer: PreTokenizer) -> Any:
    """GPT-2's kind of BPE, as a `tokenizers.Tokenizer`."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in vocabulary.merges)]
    model = models.BPE(vocab=_ids(vocabulary), merges=merges, ignore_merges=pre_tokenizer.ignore_merges)
    tokenizer = Tokenizer(model)
    if pre_tokenizer.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = build_pre_tokenizer(pre_tokenizer)
    tokenizer.decoder = decoders.ByteLevel()
    _add_special(tokenizer, vocabulary)
    return tokenizer


def _merges_of_scores(ids: dict[str, int], vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """All ways to put a piece together from two others, pieces with high scores first."""
    order = sorted(
        (i for token, i in ids.items() if len(token) > 1 and vocabulary.kind(i) in (Kind.NORMAL, Kind.USER_DEFINED)),
        key=lambda i: (-vocabulary.scores[i], i),
    )
    merges = []
    for i in order:
        token = vocabulary.tokens[i]
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [(left, right) for left, right in pairs if left in ids and right in ids]
        merges += sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    return merges


def _spaces(vocabulary: Vocabulary) -> tuple[Any, Any]:
    """Pre-tokenizer and decoder that turn spaces into marks and back."""
    from tokenizers import decoders, pre_tokenizers

    scheme = "first" if vocabulary.space_prefix else "never"
    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if vocabulary.space_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    return pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme, split=False), decoders.Sequence(steps)


def _normalizer(vocabulary: Vocabulary) -> Any:
    from tokenizers import Regex, normalizers

    steps: list[Any] = [normalizers.Precompiled(vocabulary.charsmap)] if vocabulary.charsmap else []
    if vocabulary.collapse_spaces:
        # A space in front may stay where one is put there anyway.
        steps += [
            normalizers.Strip(left=not vocabulary.space_prefix, right=True),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    return normalizers.Sequence(steps) if steps else None


def _finish_sentencepiece(tokenizer: Any, vocabulary: Vocabulary) -> Any:
    if (normalizer := _normalizer(vocabulary)) is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer, tokenizer.decoder = _spaces(vocabulary)
    _add_special(tokenizer, vocabulary)
    return tokenizer


def sentencepiece_bpe(vocabulary: Vocabulary) -> Any:
    """SentencePiece's BPE (Llama 2, Gemma), as a `tokenizers.Tokenizer`."""
    from tokenizers import Tokenizer, models

    ids = _ids(vocabulary)
    unknown = next((t for i, t in enumerate(vocabulary.tokens) if vocabulary.kind(i) == Kind.UNKNOWN), None)
    has_bytes = all(f"<0x{byte:02X}>" in ids for byte in range(256))
    model = models.BPE(
        vocab=ids, merges=_merges_of_scores(ids, vocabulary), unk_token=unknown, fuse_unk=True, byte_fallback=has_bytes
    )
    return _finish_sentencepiece(Tokenizer(model), vocabulary)


def sentencepiece_unigram(vocabulary: Vocabulary) -> Any:
    """SentencePiece's unigram model (T5, UL2), as a `tokenizers.Tokenizer`."""
    from tokenizers import Tokenizer, models

    unknown = next((i for i in range(len(vocabulary.tokens)) if vocabulary.kind(i) == Kind.UNKNOWN), None)
    has_bytes = "<0x00>" in set(vocabulary.tokens)
    model = models.Unigram(
        vocab=list(zip(vocabulary.tokens, vocabulary.scores, strict=True)), unk_id=unknown, byte_fallback=has_bytes
    )
    return _finish_sentencepiece(Tokenizer(model), vocabulary)
