"""Prompts around a cursor, in the layouts of the models, against the libraries' own tokenizers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kamado.checkpoint.types import Checkpoint
from kamado.errors import InvalidRequest
from kamado.requests import resolve_text_options
from kamado_models.language.fill import Filler
from kamado_models.language.tokenizer import Tokenizer, load_tokenizer

STARCODER = ("<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>", "<repo_name>", "<file_sep>")
QWEN = (STARCODER[0], *(f"<|{token[1:-1]}|>" for token in STARCODER[1:]))
DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", "<｜end▁of▁sentence｜>")
CODESTRAL = ("<s>", "</s>", "[PREFIX]", "[SUFFIX]", "[MIDDLE]")
FILES = {"a.py": "x = 1\n", "lib/b.py": "y"}


def byte_level(special: Sequence[str], *, starts: bool = False) -> Tokenizer:
    """Every byte is a token; the first special token starts a text, if one does."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
    from tokenizers import Tokenizer as Backend

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*special, *alphabet, "ĠĠ"])}
    backend = Backend(models.BPE(vocab=vocabulary, merges=[("Ġ", "Ġ")]))
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if starts:
        backend.post_processor = processors.TemplateProcessing(
            single=[special[0], "$A"], special_tokens=[(special[0], 0)]
        )
    return Tokenizer(backend, eos_ids=frozenset(), bos_id=0 if starts else None)


def prompt(tokenizer: Tokenizer, **asked: Any) -> list[int]:
    return Filler("m", tokenizer).prompt(resolve_text_options({"prompt": "def f(", **asked}))


CONTEXT = {"files": FILES, "repository": "r", "filename": "c.py"}
LAYOUTS: dict[str, tuple[Sequence[str], bool, dict[str, Any], str]] = {
    "StarCoder 2": (STARCODER, False, {"suffix": ")\n"}, "<fim_prefix>def f(<fim_suffix>)\n<fim_middle>"),
    "StarCoder 2, files": (
        STARCODER, False, {"suffix": ")", **CONTEXT},
        "<repo_name>r<file_sep>a.py\nx = 1\n<file_sep>lib/b.py\ny"
        "<file_sep><fim_prefix>c.py\ndef f(<fim_suffix>)<fim_middle>",
    ),
    "StarCoder 2, files before": (
        STARCODER, False, CONTEXT, "<repo_name>r<file_sep>a.py\nx = 1\n<file_sep>lib/b.py\ny<file_sep>c.py\ndef f("
    ),
    "StarCoder 2, nameless": (
        STARCODER, False, {"files": FILES}, "<file_sep>a.py\nx = 1\n<file_sep>lib/b.py\ny<file_sep>def f("
    ),
    "Qwen": (QWEN, False, {"suffix": ")\n"}, "<|fim_prefix|>def f(<|fim_suffix|>)\n<|fim_middle|>"),
    "Qwen, files": (
        QWEN, False, {"suffix": ")", **CONTEXT},
        "<|repo_name|>r\n<|file_sep|>a.py\nx = 1\n\n<|file_sep|>lib/b.py\ny\n"
        "<|file_sep|>c.py\n<|fim_prefix|>def f(<|fim_suffix|>)<|fim_middle|>",
    ),
    "Qwen, one file": (QWEN, False, {"filename": "c.py"}, "<|file_sep|>c.py\ndef f("),
    "DeepSeek": (
        DEEPSEEK, True, {"suffix": ")\n"},
        "<｜begin▁of▁sentence｜><｜fim▁begin｜>def f(<｜fim▁hole｜>)\n<｜fim▁end｜>",
    ),
    "DeepSeek, files": (
        DEEPSEEK, True, {"suffix": ")", "files": FILES, "filename": "c.py"},
        "<｜begin▁of▁sentence｜><｜fim▁begin｜>#a.py\nx = 1\n\n#lib/b.py\ny\n#c.py\ndef f(<｜fim▁hole｜>)<｜fim▁end｜>",
    ),
    "Codestral": (CODESTRAL, True, {"suffix": ")\n"}, "<s>[SUFFIX])\n[PREFIX]def f("),
    "nothing behind": (STARCODER, False, {"suffix": ""}, "def f("),
    "a text that begins": (DEEPSEEK, True, {"stop_at": "block"}, "<｜begin▁of▁sentence｜>def f("),
}  # fmt: skip


@pytest.mark.parametrize(("special", "starts", "asked", "text"), LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(special: Sequence[str], starts: bool, asked: dict[str, Any], text: str) -> None:
    """The tokens are those of the text as papers and model cards write it."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = byte_level(special, starts=starts)
    library = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend)
    assert prompt(tokenizer, **asked) == library(text, add_special_tokens=False)["input_ids"]


SPACE = "▁"
LLAMA = [
    *("<unk>", "<s>", "</s>"), *(f"<0x{byte:02X}>" for byte in range(256)), SPACE, *"defxrt()=:1",
    *("de", f"{SPACE}d", f"{SPACE}de", f"{SPACE}x", f"{SPACE}<PRE>", f"{SPACE}<SUF>", f"{SPACE}<MID>", f"{SPACE}<EOT>"),
]  # fmt: skip
MERGES = [("d", "e"), (SPACE, "d"), (SPACE, "de"), (SPACE + "d", "e"), (SPACE, "x")]


def codellama(space: bool) -> Any:
    from transformers import CodeLlamaTokenizer

    ids = {token: number for number, token in enumerate(LLAMA)}
    return CodeLlamaTokenizer(vocab=ids, merges=MERGES, add_prefix_space=space)


def from_folder(path: Path) -> Tokenizer:
    files = {file.name: file for file in path.iterdir()}
    facts: dict[str, Any] = {"layout": "transformers", "config": {}, "metadata": {}, "tensors": {}, "files": files}
    return load_tokenizer(Checkpoint(reference="m", root=path, **facts))


def from_gguf(**metadata: Any) -> Tokenizer:
    values = {f"tokenizer.{name.replace('__', '.')}": value for name, value in metadata.items()}
    facts: dict[str, Any] = {"layout": "gguf", "config": {}, "tensors": {}, "files": {}}
    whole = {"general.architecture": "llama"} | values
    return load_tokenizer(Checkpoint(reference="m.gguf", root=Path("m.gguf"), metadata=whole, **facts))


def llama_file() -> Tokenizer:
    """Scores in the order of the merges."""
    order = {left + right: -float(number) for number, (left, right) in enumerate(MERGES)}
    kinds = [
        3 if token in ("<s>", "</s>") else 2 if token == "<unk>" else 6 if token[:3] == "<0x" else 1 for token in LLAMA
    ]
    scores = [order.get(token, -1000.0) for token in LLAMA]
    marks = {
        f"ggml__{name}_token_id": LLAMA.index(f"{SPACE}<{text}>")
        for name, text in (("prefix", "PRE"), ("suffix", "SUF"), ("middle", "MID"), ("eot", "EOT"))
    }
    return from_gguf(
        ggml__model="llama", ggml__tokens=LLAMA, ggml__scores=scores, ggml__token_type=kinds, ggml__bos_token_id=1,
        ggml__eos_token_id=2, **marks,
    )  # fmt: skip


def llama_folder(path: Path) -> Tokenizer:
    codellama(True).save_pretrained(path)
    return from_folder(path)


@pytest.mark.parametrize("source", ["folder", "file"])
@pytest.mark.parametrize(
    ("before", "behind"),
    [
        ("de", " x"),
        ("de ", " = 1"),
        (" de\n", "\n  x"),
        ("de", "de"),
        ("d", "x\n"),
        ("", "x"),
        ("\n", "  de"),
        ("é", "é"),
    ],
)
def test_code_llama(source: str, before: str, behind: str, tmp_path: Path) -> None:
    """The prefix has the space that the tokenizer puts before a text, the suffix has none: as Meta's own code has it.
    transformers 5 puts one before the suffix, too, unless there is one."""
    tokenizer = llama_folder(tmp_path) if source == "folder" else llama_file()
    found = Filler("m", tokenizer).prompt(resolve_text_options({"prompt": before, "suffix": behind}))
    assert found == codellama(False)(f"{before}<FILL_ME>{behind}")["input_ids"]
    if behind.startswith(" "):
        assert found == codellama(True)(f"{before}<FILL_ME>{behind}")["input_ids"]
    assert tokenizer.token_id(f"{SPACE}<EOT>") in Filler("m", tokenizer).layout.ends


def test_what_is_between_keeps_its_space() -> None:
    from kamado.media.detokenize import IncrementalDetokenizer

    tokenizer = llama_file()
    asked = Filler("m", tokenizer).prompt(resolve_text_options({"prompt": "de", "suffix": "x"}))
    text = IncrementalDetokenizer(tokenizer.decode, asked)
    assert text.feed(LLAMA.index(f"{SPACE}x")) + text.flush() == " x"


def test_ids_that_a_file_tells() -> None:
    """Whatever the tokens are called."""
    from tokenizers import pre_tokenizers

    own = ["<e>", "<1>", "<2>", "<3>", "<4>", "<5>", "<6>"]
    names = ("fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep")
    tokenizer = from_gguf(
        ggml__model="gpt2",
        ggml__pre="gpt-2",
        ggml__tokens=[*own, *sorted(pre_tokenizers.ByteLevel.alphabet())],
        ggml__token_type=[3] * len(own) + [1] * 256,
        ggml__merges=[],
        ggml__eos_token_id=0,
        **{f"ggml__{name}_token_id": number for number, name in enumerate(names, 1)},
    )
    found = prompt(tokenizer, suffix=")", repository="r", filename="c")
    assert found == tokenizer.encode("<5>r\n<6>c\n<1>def f(<2>)<3>", add_special=False)
    assert Filler("m", tokenizer).layout.ends == {1, 2, 3, 4, 5, 6}


@given(
    before=st.lists(st.sampled_from(["a", " ", "\n", *STARCODER, "é"]), max_size=8).map("".join),
    behind=st.lists(st.sampled_from([" ", "\n", *STARCODER, "é"]), min_size=1, max_size=8).map("".join),
)
def test_code_that_writes_about_these_tokens_is_text(before: str, behind: str) -> None:
    tokenizer = byte_level(STARCODER)
    found = Filler("m", tokenizer).prompt(
        resolve_text_options({"prompt": before, "suffix": behind, "files": {"<file_sep>": before}})
    )
    controls = [token for token in found if token < len(STARCODER)]
    assert controls == [6, 6, 1, 3, 2], "those of the layout alone"
    assert tokenizer.decode(found) == "<file_sep>\n" + before + before + behind


@pytest.mark.parametrize(
    ("special", "asked", "words"),
    [
        (("<x>",), {"suffix": "a"}, "m has no tokens for filling in the middle.*StarCoder 2"),
        (("<fim_prefix>", "<fim_suffix>"), {"suffix": "a"}, "no tokens for filling in"),
        (("<x>",), {"files": {"a": "b"}}, "m has no tokens for other files"),
        (("<fim_prefix>", "<fim_suffix>", "<fim_middle>"), {"filename": "a"}, "no tokens for other files"),
    ],
)
def test_models_without_such_tokens(special: Sequence[str], asked: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        prompt(byte_level(special), **asked)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"prompt": "a", "suffix": 3}, "suffix must be text"),
        ({"prompt": "a", "files": ["b"]}, "files must be"),
        ({"prompt": "a", "files": {"b": 3}}, "files: b must be text"),
        ({"prompt": "a", "files": {"": "b"}}, "a path must be one line"),
        ({"prompt": "a", "files": {"a\nb": "b"}}, "a path must be one line"),
        ({"prompt": "a", "repository": "a\nb"}, "repository must be one line"),
        ({"prompt": "a", "filename": 5}, "filename must be one line"),
        ({"prompt": "a", "stop_at": "line"}, "stop_at must be block"),
        ({"prompt": "a", "suffix": "b", "chat": True}, "leave out chat"),
        ({"prompt": "a", "suffix": "b", "image": "c.png"}, "leave out image"),
        ({"prompt": "a", "stop_at": "block", "system": "b"}, "leave out system"),
        ({"messages": [{"role": "user", "content": "a"}], "suffix": "b"}, "suffix can be used with prompt alone"),
        ({"prompt_tokens": [1], "stop_at": "block"}, "stop_at can be used with prompt alone"),
        ({"prompt": "", "filename": "b"}, "the prompt is empty"),
        ({"prompt": "", "suffix": ""}, "the prompt is empty"),
    ],
)
def test_what_cannot_be_asked(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        resolve_text_options(asked, chat_default=True)


def test_there_is_no_chat_around_a_cursor() -> None:
    assert resolve_text_options({"prompt": "a"}, chat_default=True).chat
    for asked in ({"suffix": "b"}, {"suffix": ""}, {"stop_at": "block"}, {"files": {}}, {"repository": "r"}):
        assert not resolve_text_options({"prompt": "a", **asked}, chat_default=True).chat
    assert resolve_text_options({"prompt": "", "suffix": "b"}).prompt == ""


json_values: Callable[..., Any] = lambda: st.recursive(  # noqa: E731
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.fixed_dictionaries(
        {}, optional={name: json_values() for name in ("suffix", "files", "repository", "filename", "stop_at")}
    )
)
def test_anything_that_json_can_say_is_taken_or_refused(asked: dict[str, Any]) -> None:
    try:
        options = resolve_text_options({"prompt": "a", **asked})
    except InvalidRequest:
        return
    json.dumps(dict(options.files))
