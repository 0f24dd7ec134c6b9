"""How byte-level BPE vocabularies cut text into words, by the name that GGUF gives to each way (`tokenizer.ggml.pre`).

The expressions are part of the published vocabularies: another expression gives other tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}"
_QWEN2 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_HEAD = r"[^\r\n\p{L}\p{N}]?"
_CASED_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = rf"{_HEAD}{_UPPER}*{_LOWER}+|{_HEAD}{_UPPER}+{_LOWER}*|\p{{N}}|{_CASED_TAIL}"
_GPT4O = (
    rf"{_HEAD}{_UPPER}*{_LOWER}+{_CONTRACTION}?|{_HEAD}{_UPPER}+{_LOWER}*{_CONTRACTION}?|\p{{N}}{{1,3}}|{_CASED_TAIL}"
)
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreTokenizer:
    """One way to cut."""

    patterns: tuple[str, ...]
    """Applied one after the other; each match becomes a word of its own."""
    nfc: bool = False
    """Whether text is composed (Unicode NFC) first."""
    ignore_merges: bool = False
    """Whether a word that is a token is taken as it is."""
    add_bos: bool = False
    """Whether a start token comes first where the file does not say."""


_NAMED: Mapping[str, PreTokenizer] = {
    "gpt-2": PreTokenizer(patterns=(_GPT2,)),
    "smollm": PreTokenizer(patterns=(r"\p{N}", _GPT2)),
    "command-r": PreTokenizer(patterns=(r"\p{N}", _GPT2), nfc=True),
    "llama-bpe": PreTokenizer(patterns=(_LLAMA3,), ignore_merges=True, add_bos=True),
    "dbrx": PreTokenizer(patterns=(_LLAMA3,)),
    "qwen2": PreTokenizer(patterns=(_QWEN2,), nfc=True),
    "tekken": PreTokenizer(patterns=(_TEKKEN,), ignore_merges=True, add_bos=True),
    "gpt-4o": PreTokenizer(patterns=(_GPT4O,)),
    "bloom": PreTokenizer(patterns=(_BLOOM,)),
    "viking": PreTokenizer(patterns=(_BLOOM, r"\p{N}")),
    "falcon": PreTokenizer(patterns=(r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    "default": PreTokenizer(patterns=(r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "deepseek-coder": PreTokenizer(patterns=(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")),
    "deepseek-v3": PreTokenizer(patterns=(r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK3), add_bos=True),
}

_SAME_AS: Mapping[str, str] = {
    **dict.fromkeys(
        ("phi-2", "mpt", "olmo", "jais", "roberta-bpe", "modern-bert", "exaone4", "mellum", "gigachat"), "gpt-2"
    ),
    **dict.fromkeys(("starcoder", "refact", "codeshell", "exaone", "minerva-7b"), "smollm"),
    **dict.fromkeys(("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2", "midm-2.0"), "llama-bpe"),
    **dict.fromkeys(("smaug-bpe", "chatglm-bpe", "glm4"), "dbrx"),
    **dict.fromkeys(("stablelm2", "deepseek-r1-qwen", "kormo", "megrez"), "qwen2"),
    **dict.fromkeys(("llama4", "kanana2"), "gpt-4o"),
    **dict.fromkeys(("poro-chat", "gpt3-finnish"), "bloom"),
}


def find_pre_tokenizer(name: str) -> PreTokenizer | None:
    """The way that GGUF calls `name`, or None if it is unknown."""
    return _NAMED.get(_SAME_AS.get(name, name))


def build(pre_tokenizer: PreTokenizer) -> Any:
    """As an object of the `tokenizers` library. The patterns leave nothing out, so bytes are made of what they cut."""
    from tokenizers import Regex, pre_tokenizers

    steps: list[Any] = [pre_tokenizers.Split(Regex(p), behavior="isolated") for p in pre_tokenizer.patterns]
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
