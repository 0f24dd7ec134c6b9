"""Code around a cursor through the loop: the tokens that the library makes of the same prompt, ended by the model's own
tokens or at the end of the block; alone and beside others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kamado
import tiny
from kamado.errors import InvalidRequest
from typed import typed

MARKS = (
    "<|endoftext|>",
    "<fim_prefix>",
    "<fim_middle>",
    "<fim_suffix>",
    "<fim_pad>",
    "<repo_name>",
    "<file_sep>",
    "<x>",
)
BEFORE, BEHIND = "def halve(x):\n    ", "\n\nprint(halve(4))\n"
FILES = {"double.py": "def double(x):\n    return 2 * x\n"}
CONTEXT: dict[str, Any] = {"files": FILES, "repository": "demo", "filename": "halve.py"}
_FILE = f"<repo_name>demo<file_sep>double.py\n{FILES['double.py']}<file_sep>"
TEXTS = {
    f"<fim_prefix>{BEFORE}<fim_suffix>{BEHIND}<fim_middle>": {"suffix": BEHIND},
    f"{_FILE}<fim_prefix>halve.py\n{BEFORE}<fim_suffix>{BEHIND}<fim_middle>": {"suffix": BEHIND, **CONTEXT},
    f"{_FILE}halve.py\n{BEFORE}": CONTEXT,
}
"""As the paper of StarCoder 2 writes the prompts; and what is asked."""


@pytest.fixture(scope="module")
def starcoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with the names of StarCoder 2's tokens."""
    folder = tiny.build("starcoder2", tmp_path_factory.mktemp("starcoder2"))
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    for old, new in zip(tiny.SPECIAL_TOKENS, MARKS, strict=True):
        text = text.replace(json.dumps(old), json.dumps(new))
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": MARKS[0],
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def model(starcoder: Path) -> Iterator[kamado.Model]:
    with kamado.Runtime(device="cpu", memory="2GiB") as runtime:
        yield runtime.load(starcoder, dtype="float32", kv_tokens=2048)


def test_the_library_makes_the_same_tokens(starcoder: Path, model: kamado.Model) -> None:
    from transformers import AutoTokenizer

    library = AutoTokenizer.from_pretrained(starcoder)
    shared: dict[str, Any] = {"prompt": BEFORE, "max_tokens": 12, "temperature": 0.0, "ignore_eos": True}
    requests: list[Any] = [{**shared, **asked} for asked in TEXTS.values()]
    wanted = [tuple(tiny.greedy(starcoder, library(text)["input_ids"], 12)) for text in TEXTS]
    assert [model.generate(**request).tokens for request in requests] == wanted
    beside: list[Any] = [*requests, {"prompt": "a chat about something else", "max_tokens": 30}]
    assert [result.tokens for result in model.generate_many(beside)][:3] == wanted


@pytest.mark.parametrize("mark", [token for token in MARKS if token != "<x>"])
def test_the_model_s_own_tokens_end_it(model: kamado.Model, mark: str) -> None:
    """Of a request around a cursor; of others, the end token alone."""
    number = MARKS.index(mark)
    forced: dict[str, Any] = {"logit_bias": {number: 100.0}, "max_tokens": 3, "temperature": 0.0, "n": 2}
    result = model.generate(BEFORE, suffix=BEHIND, **forced)
    assert [(choice.text, choice.stop, choice.finish_reason) for choice in result.choices] == [("", number, "stop")] * 2
    plain = model.generate(BEFORE, chat=False, **forced)
    is_end = number in model.loaded.tokenizer.eos_ids  # type: ignore[attr-defined]
    assert plain.finish_reason == ("stop" if is_end else "length")
    assert model.generate(BEFORE, suffix=BEHIND, ignore_eos=True, **forced).finish_reason == "length"


def test_a_block_ends_it(model: kamado.Model) -> None:
    """Every token is a byte: bias and penalty make the model write a line at the margin, which is outside."""
    bias = dict.fromkeys(model.loaded.tokenizer.encode("x\n", add_special=False), 100.0)  # type: ignore[attr-defined]
    asked: dict[str, Any] = {"max_tokens": 8, "temperature": 0.0, "ignore_eos": True}
    asked |= {"logit_bias": bias, "frequency_penalty": 100.0}
    free = model.generate(BEFORE, chat=False, **asked)
    ended = model.generate(BEFORE, stop_at="block", **asked)
    assert free.finish_reason == "length" and free.text.startswith(ended.text) and ended.text in ("x", "")
    assert (ended.finish_reason, ended.choices[0].stop) == ("stop", "block")
    events = model.stream(BEFORE, stop_at="block", **asked)
    assert "".join(getattr(event, "text", "") for event in events) == ended.text


def test_the_recipe_asks_for_the_same(model: kamado.Model) -> None:
    first = model.generate(BEFORE, suffix=BEHIND, stop_at="block", max_tokens=8, seed=3, temperature=1.0, **CONTEXT)
    again = model.generate(**json.loads(json.dumps(dict(first.recipe["options"]))))
    assert again.tokens == first.tokens and again.recipe == first.recipe


def test_on_the_command_line(
    starcoder: Path,
    model: kamado.Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("behind.py").write_text(BEHIND)
    Path("double.py").write_text(FILES["double.py"])
    run, shared = typed(monkeypatch, capsys), ("--max-tokens", "9", "--seed", "1", "--memory", "1GiB")
    context = ("--file", "double.py", "--repository", "demo", "--filename", "halve.py")
    done = run(
        "run", str(starcoder), BEFORE, "--suffix", "behind.py", *context, "--stop-at", "block", *shared, "--json"
    )
    asked: dict[str, Any] = {"suffix": BEHIND, **CONTEXT, "stop_at": "block", "max_tokens": 9, "seed": 1}
    document = json.loads(done.out)
    assert document["request"] == {"prompt": BEFORE, **asked}
    assert document["text"] == model.generate(BEFORE, **asked).text
    text = run("run", str(starcoder), "", "--suffix", ")", *shared)
    assert (text.status, text.out.rstrip("\n")) == (
        0,
        model.generate("", suffix=")", max_tokens=9, seed=1).text.rstrip("\n"),
    )
    piped = run("run", str(starcoder), "--suffix", "behind.py", *shared, "--json", stdin=BEFORE.encode())
    assert json.loads(piped.out)["request"]["prompt"] == BEFORE, "to its last space"
    Path("bytes").write_bytes(b"\xff")
    for typed_options, words in (
        (("--suffix", "bytes"), "--suffix bytes is no UTF-8 text (byte 1)"),
        (("--file", "missing.py"), "--file missing.py cannot be read: No such file"),
        (("--suffix", ")", "--system", "x"), "leave out --system"),
        (("--stop-at", "line"), "--stop-at"),
    ):
        wrong = run("run", str(starcoder), "a", *typed_options)
        assert wrong.status == 2 and wrong.out == "" and words in wrong.err


def test_in_a_batch(
    starcoder: Path,
    model: kamado.Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    body = {"prompt": BEFORE, "suffix": BEHIND, "max_tokens": 6, "seed": 2}
    lines = [
        {"id": "a", **body, "files": FILES, "stop_at": "block"},
        {"custom_id": "b", "method": "POST", "url": "/v1/completions", "body": {"model": "x", **body}},
        {"custom_id": "c", "method": "POST", "url": "/v1/completions", "body": {**body, "suffix": ""}},
        {"id": "d", "messages": [{"role": "user", "content": "a"}], "suffix": "b"},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = typed(monkeypatch, capsys)
    run("batch", str(starcoder), str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out"), "--memory", "1GiB")
    found = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    asked: list[Any] = [{**body, "files": FILES, "stop_at": "block"}, body, {**body, "suffix": None, "chat": False}]
    assert [line["text"] for line in found] == [*(model.generate(**each).text for each in asked), None]
    assert "suffix can be used with prompt alone" in found[3]["error"]


def test_models_that_cannot(tmp_path: Path) -> None:
    tiny.build("llama", tmp_path / "llama")
    tiny.build("t5", tmp_path / "t5")
    with kamado.Runtime(device="cpu", memory="2GiB") as runtime:
        with pytest.raises(InvalidRequest, match="no tokens for filling in the middle"):
            runtime.load(tmp_path / "llama", request={"prompt": "a", "suffix": "b"})
        for asked in ({"suffix": "b"}, {"stop_at": "block"}):
            with pytest.raises(InvalidRequest, match="an encoder and a decoder"):
                runtime.load(tmp_path / "t5").generate("a", **asked)


def test_smollm2(smollm2: Path) -> None:
    """Its vocabulary has marks for files, and none for filling in."""
    with kamado.Runtime(device="cpu", memory="2GiB") as runtime:
        model = runtime.load(smollm2, quant="int8-weight-only")
        with pytest.raises(InvalidRequest, match="no tokens for filling in the middle"):
            model.generate("def f(", suffix=")")
        text = model.generate("int max(int a, int b) {\n", stop_at="block", max_tokens=60, temperature=0.0).text
        assert text.endswith("}") and text.count("}") - text.count("{") == 1
        asked = {"prompt": "from double import", "max_tokens": 3, "temperature": 0.0}
        tokens = model.loaded.tokenizer.encode(  # type: ignore[attr-defined]
            f"<repo_name>demo<file_sep>double.py\n{FILES['double.py']}<file_sep>a.py\nfrom double import",
            add_special=False,
        )
        named = model.generate(**asked, files=FILES, repository="demo", filename="a.py")
        assert named.usage.prompt_tokens == len(tokens)
        assert named.tokens == model.generate(prompt_tokens=tokens, max_tokens=3, temperature=0.0).tokens
