"""The tokenizer of a folder: `tokenizer.json`, else a SentencePiece model, else a vocabulary and merges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kamado.checkpoint.own_code import names_class
from kamado.checkpoint.strict_json import read_bounded, read_json_object
from kamado.checkpoint.types import Checkpoint
from kamado.errors import UnsupportedCheckpoint

from .pre_tokenizers import PreTokenizer, find_pre_tokenizer
from .tokenizer import Tokenizer, guarded
from .vocabulary import Vocabulary, byte_level_bpe, sentencepiece_bpe, sentencepiece_unigram

_MAX_MODEL_BYTES = 256 << 20
_MAX_CONFIG_BYTES = 64 << 20
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_MARKS = {"prefix_token": "prefix", "suffix_token": "suffix", "middle_token": "middle", "eot_token": "end"}
"""Of tokenizers of the kind of Code Llama's."""
_MAX_IDS = 1 << 32


def _config(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    path = checkpoint.files.get(name)
    if path is None:
        return {}
    return read_json_object(path, max_bytes=_MAX_CONFIG_BYTES)


def _token_text(value: Any) -> str | None:
    """A token is a text, or an object with its text as `content`."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _special_tokens(tokenizer_config: Mapping[str, Any], special_map: Mapping[str, Any]) -> dict[str, str]:
    """`bos_token` and its like -> text."""
    found: dict[str, str] = {}
    for name in _SPECIAL:
        text = _token_text(tokenizer_config.get(name)) or _token_text(special_map.get(name))
        if text is not None:
            found[name] = text
    return found


def _token_ids(value: Any) -> Iterable[int]:
    """`eos_token_id` is a number, a list of them, or missing."""
    values = value if isinstance(value, list) else [value]
    return [i for i in values if isinstance(i, int) and not isinstance(i, bool) and 0 <= i < _MAX_IDS]


def _end_ids(checkpoint: Checkpoint, special: Mapping[str, str], backend: Any) -> frozenset[int]:
    generation = _config(checkpoint, "generation_config.json")
    text_config = checkpoint.config.get("text_config")
    sources = (generation, checkpoint.config, text_config if isinstance(text_config, Mapping) else {})
    ends = {i for source in sources for i in _token_ids(source.get("eos_token_id"))}
    if "eos_token" in special and (own := backend.token_to_id(special["eos_token"])) is not None:
        ends.add(own)
    return frozenset(ends)


def _template(checkpoint: Checkpoint, tokenizer_config: Mapping[str, Any]) -> str | None:
    """The chat template: a file of its own, or inside the configuration; of several, the one called `default`."""
    path = checkpoint.files.get("chat_template.jinja")
    if path is not None:
        try:
            return read_bounded(path).decode()
        except UnicodeDecodeError as error:
            raise UnsupportedCheckpoint(f"{path} cannot be read: {error}") from error
    value = _config(checkpoint, "chat_template.json").get("chat_template", tokenizer_config.get("chat_template"))
    if isinstance(value, list):
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, Mapping)}
        value = named.get("default")
    return value if isinstance(value, str) else None


def _from_sentencepiece(path: Path) -> Any:
    from importlib import import_module

    # Generated code, without annotations.
    schema: Any = import_module("sentencepiece.sentencepiece_model_pb2")
    protobuf: Any = import_module("google.protobuf.message")
    model = schema.ModelProto()
    try:
        model.ParseFromString(read_bounded(path, max_bytes=_MAX_MODEL_BYTES))
    except protobuf.DecodeError as error:
        raise UnsupportedCheckpoint(f"{path} is not a SentencePiece model") from error
    vocabulary = Vocabulary(
        tokens=[piece.piece for piece in model.pieces],
        kinds=[piece.type for piece in model.pieces],
        scores=[piece.score for piece in model.pieces],
        charsmap=model.normalizer_spec.precompiled_charsmap,
        space_prefix=model.normalizer_spec.add_dummy_prefix,
        collapse_spaces=model.normalizer_spec.remove_extra_whitespaces,
    )
    vocabulary.check(str(path))
    makers = {1: sentencepiece_unigram, 2: sentencepiece_bpe}
    make = makers.get(model.trainer_spec.model_type)
    if make is None:
        raise UnsupportedCheckpoint(f"{path}: its kind of model ({model.trainer_spec.model_type}) is unknown here")
    return guarded(lambda: make(vocabulary), f"{path} cannot be used")


def _from_merges(vocabulary_path: Path, merges_path: Path, pre_tokenizer: PreTokenizer) -> Any:
    ids = read_json_object(vocabulary_path, max_bytes=_MAX_MODEL_BYTES)
    if any(type(number) is not int for number in ids.values()) or {*ids.values()} != {*range(len(ids))}:
        raise UnsupportedCheckpoint(f"{vocabulary_path} must map tokens to the numbers from 0 on")
    lines = read_bounded(merges_path, max_bytes=_MAX_MODEL_BYTES).decode("utf-8", "replace").split("\n")
    vocabulary = Vocabulary(
        tokens=sorted(ids, key=lambda token: ids[token]),
        kinds=(),
        merges=[line for line in lines if line and not line.startswith("#version")],
    )
    vocabulary.check(str(vocabulary_path))
    return guarded(lambda: byte_level_bpe(vocabulary, pre_tokenizer), f"{vocabulary_path} cannot be used")


_MERGES_CLASSES = {"GPT2Tokenizer": "gpt-2", "Qwen2Tokenizer": "qwen2"}
"""Classes whose `vocab.json` and `merges.txt` say all, and how they cut text."""


def _backend(checkpoint: Checkpoint, tokenizer_config: Mapping[str, Any]) -> Any:
    from tokenizers import Tokenizer as Backend

    files = checkpoint.files
    if (path := files.get("tokenizer.json")) is not None:
        text = read_bounded(path, max_bytes=_MAX_MODEL_BYTES).decode("utf-8", "replace")
        return guarded(lambda: Backend.from_str(text), f"{path} cannot be used")
    if any(names_class(config, "AutoTokenizer") for config in (tokenizer_config, checkpoint.config)):
        # What other files of the vocabulary mean is known to that code alone.
        raise UnsupportedCheckpoint(
            f"{checkpoint.reference}: its tokenizer is code of its own, which is never used; a tokenizer.json is needed"
        )
    for name in ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"):
        if name in files:
            return _from_sentencepiece(files[name])
    kind = str(tokenizer_config.get("tokenizer_class", "")).removesuffix("Fast")
    pre_tokenizer = find_pre_tokenizer(_MERGES_CLASSES.get(kind, ""))
    if "vocab.json" in files and "merges.txt" in files and pre_tokenizer is not None:
        return _from_merges(files["vocab.json"], files["merges.txt"], pre_tokenizer)
    raise UnsupportedCheckpoint(
        f"{checkpoint.root} has no tokenizer that can be used here; tokenizer.json or tokenizer.model is needed"
    )


def _add_tokens(backend: Any, tokenizer_config: Mapping[str, Any], special: Mapping[str, str]) -> None:
    """Tokens that the configuration adds to the vocabulary, in the order of their ids, and which ones are special."""
    from tokenizers import AddedToken

    added = tokenizer_config.get("added_tokens_decoder")
    entries = added.items() if isinstance(added, Mapping) else ()
    numbered = sorted(
        (int(key), value) for key, value in entries if str(key).isdecimal() and isinstance(value, Mapping)
    )
    vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
    size = backend.get_vocab_size(with_added_tokens=True)
    # Each call builds the matcher of all added tokens anew, so runs of one kind go in together.
    runs: list[tuple[bool, list[Any]]] = []
    for token_id, value in numbered:
        text = _token_text(value)
        if text is None or (text not in vocabulary and token_id != size):
            continue
        if text not in vocabulary:
            vocabulary[text] = size
            size += 1
        flags = {
            name: value[name]
            for name in ("lstrip", "rstrip", "normalized", "single_word")
            if isinstance(value.get(name), bool)
        }
        is_special = value.get("special") is True
        if not runs or runs[-1][0] != is_special:
            runs.append((is_special, []))
        runs[-1][1].append(AddedToken(text, special=is_special, **flags))
    for is_special, tokens in runs:
        (backend.add_special_tokens if is_special else backend.add_tokens)(tokens)
    known = [text for text in special.values() if backend.token_to_id(text) is not None]
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in known])


def tokenizer_from_files(checkpoint: Checkpoint) -> Tokenizer:
    """Raises UnsupportedCheckpoint when there is no tokenizer, or a damaged one.

    Of `tokenizer_config.json` only the special tokens, the chat template and the flags for start and end tokens count:
    no class, no code and no path in it is followed.
    """
    tokenizer_config = _config(checkpoint, "tokenizer_config.json")
    special = _special_tokens(tokenizer_config, _config(checkpoint, "special_tokens_map.json"))
    backend = _backend(checkpoint, tokenizer_config)
    from_json = "tokenizer.json" in checkpoint.files
    guarded(lambda: _add_tokens(backend, tokenizer_config, special), f"{checkpoint.root}: its added tokens are damaged")
    bos_id = backend.token_to_id(special["bos_token"]) if "bos_token" in special else None
    if bos_id is None:
        bos_id = next(iter(_token_ids(checkpoint.config.get("bos_token_id"))), None)
    texts = {mark: _token_text(tokenizer_config.get(name)) for name, mark in _MARKS.items()}
    marks = {mark: backend.token_to_id(text) for mark, text in texts.items() if text is not None}
    add_bos = tokenizer_config.get("add_bos_token")
    if not isinstance(add_bos, bool):
        add_bos = None if from_json else "tokenizer.model" in checkpoint.files
    return Tokenizer(
        backend,
        eos_ids=_end_ids(checkpoint, special, backend),
        bos_id=bos_id,
        template=_template(checkpoint, tokenizer_config),
        template_variables=special,
        force_bos=add_bos,
        marks={mark: token for mark, token in marks.items() if token is not None},
    )
