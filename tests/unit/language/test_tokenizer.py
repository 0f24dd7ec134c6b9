"""Tokenizers from folders and from GGUF metadata, against the libraries that made them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

import tiny
from kamado.checkpoint.types import Checkpoint
from kamado.errors import InvalidRequest, UnsupportedCheckpoint
from kamado_models.language.pre_tokenizers import _NAMED, _SAME_AS, find_pre_tokenizer
from kamado_models.language.tokenizer import Tokenizer, load_tokenizer
from kamado_models.language.vocabulary import Vocabulary, byte_level_bpe

TEXTS = ["Hello  wörld", "<s> a<|im_end|>b", " x", "", "\n\n", "日本 😀", "a<foo>b c", "  two  spaces "]


def folder(path: Path, config: dict[str, Any] | None = None) -> Checkpoint:
    files = {file.name: file for file in path.iterdir()}
    return Checkpoint(
        reference=str(path),
        root=path,
        layout="transformers",
        config=config or {},
        metadata={},
        tensors={},
        files=files,
    )


def gguf_checkpoint(**metadata: Any) -> Checkpoint:
    values = {"general.architecture": "llama"} | {f"tokenizer.{k.replace('__', '.')}": v for k, v in metadata.items()}
    return Checkpoint(
        reference="m.gguf", root=Path("m.gguf"), layout="gguf", config={}, metadata=values, tensors={}, files={}
    )


def byte_letters() -> list[str]:
    """The letters that stand for the 256 bytes in byte-level BPE."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


# Folders


def test_folder_with_tokenizer_json(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tiny.write_tokenizer(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    ours, theirs = load_tokenizer(folder(tmp_path, {"eos_token_id": 7})), AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        for special in (True, False):
            ids = ours.encode(text, add_special=special)
            assert ids == theirs(text, add_special_tokens=special)["input_ids"]
            assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    messages = [{"role": "user", "content": "Why?"}]
    assert ours.chat_prompt(messages) == theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert ours.eos_ids == {2, 5, 7}
    assert (ours.bos_id, ours.vocab_size) == (theirs.bos_token_id, len(theirs))
    ours.close()


def test_folder_without_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    with pytest.raises(UnsupportedCheckpoint, match="has no tokenizer that can be used here"):
        load_tokenizer(folder(tmp_path))


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"model": 3}', '{"model": {"type": "BPE", "vocab": {"a": -1}}}', "\ud7ff"]
)
def test_damaged_tokenizer_json(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UnsupportedCheckpoint, match=r"tokenizer\.json cannot be used"):
        load_tokenizer(folder(tmp_path))


@pytest.mark.parametrize(
    "values",
    [
        {"tokenizer_class": "os.system", "auto_map": {"AutoTokenizer": ["evil.py", None]}},
        {"vocab_file": "/etc/passwd", "tokenizer_file": "../../x", "name_or_path": "https://example.com"},
        {"trust_remote_code": True, "model_max_length": "x", "bos_token": {"content": ["a"]}, "eos_token": 3},
        {"added_tokens_decoder": {"x": {}, "-1": {"content": "q"}, "9999999": {"content": "far"}, "3": "no"}},
        {"chat_template": {"a": 1}, "add_bos_token": "yes"},
    ],
)
def test_values_of_the_configuration_are_only_data(values: dict[str, Any], tmp_path: Path) -> None:
    tiny.write_tokenizer(tmp_path)
    plain = load_tokenizer(folder(tmp_path))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | values))
    changed = load_tokenizer(folder(tmp_path))
    assert changed.vocab_size == plain.vocab_size
    for text in TEXTS:
        assert changed.encode(text, add_special=False) == plain.encode(text, add_special=False)


def test_chat_template_of_its_own_file_comes_first(tmp_path: Path) -> None:
    tiny.write_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("from the file {{ eos_token }}")
    tokenizer = load_tokenizer(folder(tmp_path))
    assert tokenizer.chat_text([{"role": "user", "content": "x"}]) == "from the file </s>"
    tokenizer.close()


def test_of_named_templates_the_default_counts(tmp_path: Path) -> None:
    tiny.write_tokenizer(tmp_path)
    for name in ("chat_template.jinja", "chat_template.json"):
        (tmp_path / name).unlink(missing_ok=True)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["chat_template"] = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(folder(tmp_path))
    assert tokenizer.chat_text([]) == "yes"
    tokenizer.close()


@pytest.mark.parametrize("add_bos", [True, False])
def test_add_bos_token_of_the_configuration_is_obeyed(add_bos: bool, tmp_path: Path) -> None:
    tiny.write_tokenizer(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": "<s>", "add_bos_token": add_bos}))
    tokenizer = load_tokenizer(folder(tmp_path))
    assert (tokenizer.encode("x", add_special=True)[0] == tokenizer.bos_id) is add_bos
    assert tokenizer.encode("x", add_special=False)[0] != tokenizer.bos_id


def test_vocab_and_merges(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    letters = byte_letters()
    ids = {token: i for i, token in enumerate([*letters, "he", "ll", "hell", "Ġ" + "w"])}
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "w")]
    (tmp_path / "vocab.json").write_text(json.dumps(ids))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in merges) + "\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    backend = Backend(models.BPE(vocab=ids, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = load_tokenizer(folder(tmp_path))
    for text in ["hello world", *TEXTS]:
        assert tokenizer.encode(text, add_special=True) == backend.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text, add_special=False)) == text


# SentencePiece

CORPUS = [f"the cat number {i} sat on mat {i * 7} and été 日本 abc foo" for i in range(300)]


@pytest.fixture(scope="module", params=["bpe", "bpe-plain", "unigram"])
def spm(request: pytest.FixtureRequest) -> tuple[str, bytes]:
    kind = request.param.partition("-")[0]
    plain = {"add_dummy_prefix": False, "remove_extra_whitespaces": False, "normalization_rule_name": "identity"}
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        vocab_size=400 if kind == "bpe" else 110,
        model_type=kind,
        byte_fallback=kind == "bpe",
        user_defined_symbols=["<foo>"],
        minloglevel=2,
        **(plain if "plain" in request.param else {}),
    )
    return request.param, model.getvalue()


SPM_TEXTS = ["the cat", " x", "  the  mat ", "sat<foo>on mat", "", "été 日本", "½ ﬁ"]


def test_sentencepiece_model_of_a_folder(spm: tuple[str, bytes], tmp_path: Path) -> None:
    kind, model = spm
    (tmp_path / "tokenizer.model").write_bytes(model)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    tokenizer = load_tokenizer(folder(tmp_path))
    reference = sentencepiece.SentencePieceProcessor(model_proto=model)
    for text in SPM_TEXTS:
        ids = tokenizer.encode(text, add_special=False)
        assert ids == reference.encode(text), (kind, text)
        if reference.unk_id() not in ids:
            assert tokenizer.decode(ids) == reference.decode(ids)
    assert tokenizer.encode("the", add_special=True)[0] == tokenizer.bos_id == reference.bos_id()
    assert tokenizer.eos_ids == {reference.eos_id()}


def charsmap_of(model: bytes) -> bytes:
    from sentencepiece import sentencepiece_model_pb2

    result: bytes = sentencepiece_model_pb2.ModelProto.FromString(model).normalizer_spec.precompiled_charsmap
    return result


def test_sentencepiece_vocabulary_in_gguf(spm: tuple[str, bytes]) -> None:
    kind, model = spm
    reference = sentencepiece.SentencePieceProcessor(model_proto=model)
    count = reference.vocab_size()
    kinds = [
        2 if reference.is_unknown(i) else 3 if reference.is_control(i) else 6 if reference.is_byte(i) else 1
        for i in range(count)
    ]
    kinds[reference.piece_to_id("<foo>")] = 4
    tokenizer = load_tokenizer(
        gguf_checkpoint(
            ggml__model="t5" if kind == "unigram" else "llama",
            ggml__precompiled_charsmap=[byte - 256 if byte > 127 else byte for byte in charsmap_of(model)],
            ggml__tokens=[reference.id_to_piece(i) for i in range(count)],
            ggml__scores=[reference.get_score(i) for i in range(count)],
            ggml__token_type=kinds,
            ggml__bos_token_id=reference.bos_id(),
            ggml__eos_token_id=reference.eos_id(),
            ggml__add_space_prefix="plain" not in kind,
            ggml__remove_extra_whitespaces="plain" not in kind,
        )
    )
    for text in ["the cat", " x", "  the  mat", "sat<foo>on mat", "", "été 日本", "😀", "½ ﬁ"]:
        assert tokenizer.encode(text, add_special=False) == reference.encode(text), (kind, text)
    start, end = ([], [reference.eos_id()]) if kind == "unigram" else ([reference.bos_id()], [])
    assert tokenizer.encode("the", add_special=True) == [*start, *reference.encode("the"), *end]
    assert tokenizer.decode(reference.encode("the été")) == "the été"


def test_what_is_no_sentencepiece_model(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\xff\xfe nonsense")
    with pytest.raises(UnsupportedCheckpoint, match="is not a SentencePiece model"):
        load_tokenizer(folder(tmp_path))


# Byte-level BPE in GGUF


def byte_level(pre: str, *more: str, **metadata: Any) -> Tokenizer:
    tokens = [*byte_letters(), "<eos>", *more]
    kinds = [1] * 256 + [3] * (len(tokens) - 256)
    return load_tokenizer(
        gguf_checkpoint(
            ggml__model="gpt2",
            ggml__pre=pre,
            ggml__tokens=tokens,
            ggml__token_type=kinds,
            ggml__merges=[],
            ggml__eos_token_id=256,
            **metadata,
        )
    )


@pytest.fixture(scope="module")
def all_ways() -> dict[str, Tokenizer]:
    return {name: byte_level(name) for name in _NAMED}


@given(text=st.text())
def test_no_way_to_cut_loses_text(text: str, all_ways: dict[str, Tokenizer]) -> None:
    import unicodedata

    for name, tokenizer in all_ways.items():
        expected = unicodedata.normalize("NFC", text) if _NAMED[name].nfc else text
        assert tokenizer.decode(tokenizer.encode(text, add_special=False), skip_special=False) == expected, name


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("gpt-2", "I'll pay 123 now!!  ok", ["I", "'ll", " pay", " 123", " now", "!!", " ", " ok"]),
        ("smollm", "pay 123 now", ["pay", " ", "1", "2", "3", " now"]),
        ("llama-bpe", "I'LL pay 12345\n\n x", ["I", "'LL", " pay", " ", "123", "45", "\n\n", " x"]),
        ("qwen2", "pay 12 (now)\n", ["pay", " ", "1", "2", " (", "now", ")\n"]),
        ("gpt-4o", "camelCase HTTPServer's 1234", ["camel", "Case", " HTTPServer's", " ", "123", "4"]),
        ("tekken", "camelCase's 12", ["camel", "Case", "'s", " ", "1", "2"]),
        ("deepseek-coder", "if x1:\n日本", ["if", " x", "1", ":", "\n", "日本"]),
        ("deepseek-v3", "(foo) 1234 日本", ["(foo", ")", " ", "123", "4", " ", "日本"]),
        ("falcon", "pay 1234", ["pay", " ", "123", "4"]),
        ("bloom", "Hello, world", ["Hello", ",", " world"]),
    ],
)
def test_how_words_are_cut(pre: str, text: str, words: list[str]) -> None:
    from tokenizers import decoders

    from kamado_models.language.pre_tokenizers import build

    way = find_pre_tokenizer(pre)
    assert way is not None
    decoder = decoders.ByteLevel()
    assert [decoder.decode([word]) for word, _ in build(way).pre_tokenize_str(text)] == words


def test_same_names_lead_somewhere() -> None:
    assert all(find_pre_tokenizer(name) is not None for name in _SAME_AS)
    assert find_pre_tokenizer("no-such") is None


def test_unknown_way_to_cut_is_refused() -> None:
    with pytest.raises(UnsupportedCheckpoint, match="'no-such' to cut text"):
        byte_level("no-such")


def test_end_tokens_of_gguf() -> None:
    assert byte_level("gpt-2", "<|im_end|>", "<x>").eos_ids == {256, 257}
    assert byte_level("gpt-2", "<|end|>", "<|return|>", "<|call|>").eos_ids == {256, 258, 259}
    assert byte_level("gpt-2", "<a>", ggml__eot_token_id=257).eos_ids == {256, 257}


def test_start_tokens_of_gguf() -> None:
    assert byte_level("gpt-2", "<bos>", ggml__bos_token_id=257).encode("a", add_special=True)[0] != 257
    assert byte_level("llama-bpe", "<bos>", ggml__bos_token_id=257).encode("a", add_special=True)[0] == 257
    tokenizer = byte_level("gpt-2", "<bos>", ggml__bos_token_id=257, ggml__add_bos_token=True, ggml__add_eos_token=True)
    ids = tokenizer.encode("a", add_special=True)
    assert (ids[0], ids[-1], len(ids)) == (257, 256, 3)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "has no tokenizer"),
        ({"ggml__model": "none"}, "has no tokenizer"),
        ({"ggml__model": "rwkv"}, "of the kind 'rwkv'"),
        ({"ggml__model": "gpt2"}, "lacks the value tokenizer.ggml.tokens"),
        ({"ggml__model": "gpt2", "ggml__tokens": [1, 2], "ggml__pre": "gpt-2"}, "no texts"),
        (
            {"ggml__model": "gpt2", "ggml__tokens": ["a"], "ggml__token_type": [1, 1], "ggml__pre": "gpt-2"},
            "1 tokens, 2 kinds",
        ),
        ({"ggml__model": "gpt2", "ggml__tokens": ["a"], "ggml__merges": ["b c"], "ggml__pre": "gpt-2"}, "is damaged"),
        ({"ggml__model": "llama", "ggml__tokens": ["a"]}, "has no scores"),
        ({"ggml__model": 7}, "must be a text"),
    ],
)
def test_damaged_vocabularies_are_refused(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=message):
        load_tokenizer(gguf_checkpoint(**metadata))


# The interface


@pytest.fixture(scope="module")
def simple() -> Tokenizer:
    vocabulary = Vocabulary(tokens=[*byte_letters(), "<eos>"], kinds=[1] * 256 + [3])
    way = find_pre_tokenizer("gpt-2")
    assert way is not None
    return Tokenizer(byte_level_bpe(vocabulary, way), eos_ids=frozenset({256}), bos_id=None)


def test_half_a_surrogate_pair_is_a_bad_request(simple: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="half a surrogate pair at character 1"):
        simple.encode("a\ud800", add_special=False)


@pytest.mark.parametrize("ids", [[-1], [2**32], [10**30]])
def test_impossible_ids_are_a_bad_request(ids: list[int], simple: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="token ids"):
        simple.decode(ids)


def test_ids_beyond_the_vocabulary_are_empty(simple: Tokenizer) -> None:
    assert simple.decode([simple.vocab_size + 5]) == ""


def test_a_chat_needs_a_template(simple: Tokenizer) -> None:
    assert not simple.has_chat_template
    with pytest.raises(InvalidRequest, match="no chat template"):
        simple.chat_prompt([{"role": "user", "content": "x"}])
    simple.close()


def test_long_repeats_take_no_longer_than_they_should(simple: Tokenizer) -> None:
    import time

    started = time.monotonic()
    assert len(simple.encode("a" * 200_000, add_special=False)) == 200_000
    assert time.monotonic() - started < 20
