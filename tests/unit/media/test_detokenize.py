"""Incremental text equals the text decoded at once, in whole characters: byte-level and byte-fallback tokenizers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from kamado.media.detokenize import IncrementalDetokenizer

Decode = Callable[[list[int]], str]
SAMPLES = (
    *("👩‍👩‍👧‍👦", "🏳️‍🌈", "🤷🏽‍♀️", "日本語の文章", "नमस्ते", "العربية", "e\u0301a\u0308", "naïve"),
    *(" the quick", "x", "\n\n", "   ", "\ufffd"),
)
TEXT = st.lists(st.one_of(st.sampled_from(SAMPLES), st.text(max_size=4)), max_size=8).map("".join)


def byte_level() -> Tokenizer:
    """Each byte a token, some pairs merged across the borders of characters, and one special token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: i for i, character in enumerate(alphabet)}
    merges = []
    for pair in ("Ġt", "th", "ãģ", "æĹ", "ðŁ", "âĢ", "ĳĢ", "¥æ"):
        if pair[0] in vocab and pair[1] in vocab:
            vocab[pair] = len(vocab)
            merges.append((pair[0], pair[1]))
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As Llama's: metaspace, known characters as tokens, everything else as bytes."""
    vocab = {"<unk>": 0} | {f"<0x{byte:02X}>": byte + 1 for byte in range(256)}
    for character in "▁abcdefghijklmnopqrstuvwxyz日語é":
        vocab[character] = len(vocab)
    merges = [("▁", "t"), ("▁t", "h"), ("▁", "▁"), ("q", "u")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<end>"])
    return tokenizer


TOKENIZERS = {"byte_level": byte_level(), "byte_fallback": byte_fallback()}


def pieces_of(decode: Decode, prompt: list[int], made: list[int]) -> list[str]:
    """What each token brought; the flush last."""
    detokenizer = IncrementalDetokenizer(decode, prompt)
    return [*(detokenizer.feed(token) for token in made), detokenizer.flush()]


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(text=TEXT)
@settings(deadline=None)
def test_all_pieces_together_are_the_text(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text).ids
    assert "".join(pieces_of(tokenizer.decode, [], ids)) == tokenizer.decode(ids) == text


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(prompt=TEXT, text=TEXT, data=st.data())
@settings(deadline=None)
def test_continues_the_prompt(kind: str, prompt: str, text: str, data: st.DataObject) -> None:
    """The cut lies between characters, as it does where a prompt was tokenized from text."""
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(prompt + text).ids
    cut = data.draw(st.integers(0, len(ids)))
    head = tokenizer.decode(ids[:cut])
    if not (prompt + text).startswith(head) or head.endswith("\ufffd"):
        return
    assert "".join(pieces_of(tokenizer.decode, ids[:cut], ids[cut:])) == (prompt + text)[len(head) :]


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(text=TEXT.map(lambda text: text.replace("\ufffd", "")), every=st.integers(4, 8))
@settings(deadline=None)
def test_only_whole_characters_come_out(kind: str, text: str, every: int) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text).ids
    end = tokenizer.token_to_id("<end>")
    mixed = [token for i, plain in enumerate(ids) for token in ([plain, end] if i % every == 0 else [plain])]
    detokenizer = IncrementalDetokenizer(tokenizer.decode, [])
    out = ""
    for i, token in enumerate(ids):
        out += detokenizer.feed(token)
        assert "\ufffd" not in out
        # Nothing that is known is held back.
        assert out == tokenizer.decode(ids[: i + 1]).split("\ufffd")[0] or kind == "byte_fallback"
    assert "".join(pieces_of(tokenizer.decode, [], mixed)) == text


@given(ids=st.lists(st.integers(0, TOKENIZERS["byte_level"].get_vocab_size() - 1), max_size=60))
@settings(deadline=None)
def test_any_bytes_byte_level(ids: list[int]) -> None:
    decode = TOKENIZERS["byte_level"].decode
    end = TOKENIZERS["byte_level"].token_to_id("<end>")
    ids = [token for token in ids if token != end]
    pieces = pieces_of(decode, [], ids)
    assert "".join(pieces) == decode(ids)
    for i in range(len(ids)):
        assert len("".join(pieces[: i + 5])) >= len(decode(ids[: i + 1])), "more than four tokens late"


@given(ids=st.lists(st.sampled_from([1 + b for b in b"\xff\xf0\x9f\x98\x80\xc3\xa9A"] + [257, 258, 259]), max_size=60))
@settings(deadline=None)
def test_any_bytes_byte_fallback_never_stick(ids: list[int]) -> None:
    tokenizer = TOKENIZERS["byte_fallback"]
    detokenizer = IncrementalDetokenizer(tokenizer.decode, [])
    letter = tokenizer.token_to_id("q")
    for token in ids:
        detokenizer.feed(token)
    late = "".join(detokenizer.feed(letter) for _ in range(3))
    assert late.endswith("qqq")
    assert detokenizer.flush() == ""


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("text", ["\ufffd" * 20, "é\ufffd\ufffd the \ufffd" * 5, "👩‍👩‍👧‍👦" * 20])
def test_long_runs_of_bytes(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text).ids
    assert "".join(pieces_of(tokenizer.decode, [], ids)) == text


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_an_unfinished_character_comes_out_in_time(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    lead = tokenizer.encode("🦊").ids[1 if kind == "byte_fallback" else 0]
    end = tokenizer.token_to_id("<end>")
    pieces = pieces_of(tokenizer.decode, tokenizer.encode("abc").ids, [lead, end, end, end, end, end])
    assert pieces == ["", "", "", "", "\ufffd", "", ""]
    assert pieces_of(tokenizer.decode, tokenizer.encode("abc").ids, [lead])[-1] == "\ufffd"


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_cost_of_a_token_is_bounded(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    longest = calls = 0

    def decode(ids: list[int]) -> str:
        nonlocal longest, calls
        longest, calls = max(longest, len(ids)), calls + 1
        return tokenizer.decode(ids)

    text = "the quick 日本語 👩‍👩‍👧‍👦 " * 40
    ids = tokenizer.encode(text).ids
    assert "".join(pieces_of(decode, ids, ids)).strip() == text.strip()
    garbage = [tokenizer.encode("🦊").ids[-2]] * 500 + [tokenizer.token_to_id("<end>")] * 500
    pieces_of(decode, ids, garbage)
    assert longest <= 40
    assert calls < 20 * len(ids)


def test_a_prompt_that_ends_in_special_tokens_still_gives_the_leading_space() -> None:
    tokenizer = TOKENIZERS["byte_fallback"]
    end = tokenizer.token_to_id("<end>")
    prompt = tokenizer.encode("question").ids + [end] * 100
    made = tokenizer.encode("the").ids
    assert "".join(pieces_of(tokenizer.decode, prompt, made)) == " the"
    assert "".join(pieces_of(tokenizer.decode, [end], made)) == "the"
    assert "".join(pieces_of(tokenizer.decode, [], made)) == "the"
