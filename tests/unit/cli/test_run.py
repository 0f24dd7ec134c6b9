"""`kamado run` over a fake model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fake_model import FakeModel, FakeRuntime

from .conftest import Kamado


def test_an_answer(kamado: Kamado, model: FakeModel, runtime: FakeRuntime) -> None:
    done = kamado("run", "some/model", "hello there", "--max-tokens", "9", "--temperature", "0")
    assert (done.status, done.out, done.err) == (0, "You said: hello there\n", "")
    assert model.requests == [{"prompt": "hello there", "max_tokens": 9, "temperature": 0.0}]
    assert runtime.loaded[0][0] == "some/model" and runtime.closed and model.closed_streams == 1
    assert runtime.loaded[0][1]["request"] == model.requests[0]


def test_every_text_option_arrives(kamado: Kamado, model: FakeModel) -> None:
    options = (
        "--system S --max-tokens 5 --temperature 0.5 --top-p 0.9 --top-k 4 --min-p 0.1 --typical-p 0.9 --seed 3 --n 1 "
        "--repetition-penalty 1.1 --presence-penalty 0.2 --frequency-penalty 0.3 --stop a --stop b --logit-bias 4=-1.5 "
        "--logprobs 2 --ignore-eos --raw"
    )
    assert kamado("run", "m", "p", *options.split()).status == 0
    assert model.requests[0] == {
        "prompt": "p",
        "system": "S",
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "min_p": 0.1,
        "typical_p": 0.9,
        "seed": 3,
        "n": 1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "logprobs": 2,
        "frequency_penalty": 0.3,
        "stop": ["a", "b"],
        "logit_bias": {4: -1.5},
        "ignore_eos": True,
        "chat": False,
    }


def test_model_options_arrive(kamado: Kamado, runtime: FakeRuntime, tmp_path: Path) -> None:
    preset = tmp_path / "p.toml"
    preset.write_text('dtype = "bfloat16"\nkv_tokens = 64\nstep_budget = 32\n')
    kamado("run", "m", "p", "--config", str(preset), "--dtype", "float32", "--offline", "--allow-code", "m")
    options = runtime.loaded[0][1]
    assert options["allow_code"] == "m"
    assert options["dtype"] == "float32" and options["kv_tokens"] == 64 and options["step_budget"] == 32
    assert options["offline"] is True


def test_code_is_allowed_by_what_is_typed_alone(kamado: Kamado, runtime: FakeRuntime, tmp_path: Path) -> None:
    kamado("run", "m", "p")
    assert runtime.loaded[0][1]["allow_code"] is None
    preset = tmp_path / "p.toml"
    preset.write_text('allow_code = "m"\n')
    done = kamado("run", "m", "p", "--config", str(preset))
    assert done.status == 2 and "allow_code" in done.err and len(runtime.loaded) == 1


@pytest.mark.parametrize(
    "options",
    [
        ("--temperature", "-1"),
        ("--temperature", "nan"),
        ("--top-p", "0"),
        ("--max-tokens", "0"),
        ("--n", "1000"),
        ("--seed", "-1"),
        ("--stop", ""),
        ("--logit-bias", "x=1"),
        ("--logit-bias", "1"),
        ("--logit-bias", "1=999"),
        ("--config", "no-such-preset"),
        ("--kv-tokens", "0"),
        ("--dtype", "float8"),
    ],
)
def test_impossible_values_fail_before_anything_is_loaded(
    options: tuple[str, ...], kamado: Kamado, runtime: FakeRuntime
) -> None:
    done = kamado("run", "m", "p", *options)
    assert done.status == 2
    assert 1 <= len(done.err.splitlines()) <= 2 and done.out == ""
    assert runtime.loaded == []


@pytest.mark.parametrize(
    ("prompt", "stdin", "asked"),
    [
        (None, b"from a pipe\n", "from a pipe"),
        (None, b"\xef\xbb\xbftwo\nlines\r\n", "two\nlines"),
        ("question", b"", "question"),
        ("question", b"the document\n", "question\n\nthe document"),
    ],
)
def test_where_the_prompt_comes_from(
    prompt: str | None, stdin: bytes, asked: str, kamado: Kamado, model: FakeModel
) -> None:
    args = ("run", "m") if prompt is None else ("run", "m", prompt)
    assert kamado(*args, stdin=stdin).status == 0
    assert model.requests[0]["prompt"] == asked


def test_raw_keeps_the_line_end(kamado: Kamado, model: FakeModel) -> None:
    kamado("run", "m", "--raw", stdin=b"def f():\n")
    assert model.requests[0]["prompt"] == "def f():\n"


@pytest.mark.parametrize(
    ("args", "stdin", "words"),
    [
        ((), b"", "the prompt is empty"),
        ((), b" \n\n", "the prompt is empty"),
        (("",), b"", "the prompt is empty"),
        ((), b"abc\xff", "byte 0xff at offset 3"),
        ((), b"\xef\xbb\xbfab\xc3", "byte 0xc3 at offset 5"),
        (("a\udcff",), b"", "PROMPT is not valid UTF-8"),
        (("a", "--system", "\udcff"), b"", "--system is not valid UTF-8"),
    ],
)
def test_prompts_that_are_none(
    args: tuple[str, ...], stdin: bytes, words: str, kamado: Kamado, runtime: FakeRuntime
) -> None:
    done = kamado("run", "m", *args, stdin=stdin)
    assert done.status == 2 and words in done.err and done.out == ""
    assert runtime.loaded == []


def test_answers_that_were_made_are_shown_though_others_failed(
    kamado: Kamado, model: FakeModel, tmp_path: Path
) -> None:
    model.failing = frozenset({0, 2})
    told = [f"kamado: answer {number} of 3 was not made: NaN in answer {number - 1}" for number in (1, 3)]
    args = ("run", "m", "hi", "--n", "3")
    live = kamado(*args)
    lines = live.out.splitlines()
    assert (live.status, live.err.splitlines()) == (1, told)
    assert lines[:2] == ["You", "--- 2 ---"] and lines[3:] == ["--- 3 ---", "You"]
    assert lines[2].startswith("You said: hi")

    whole = kamado(*args, "-o", str(tmp_path / "x.txt"), "--json", "-q")
    document = json.loads(whole.out)
    assert (whole.status, whole.err.splitlines()) == (1, told)
    assert [choice["index"] for choice in document["choices"]] == [1]
    assert [failure["index"] for failure in document["failures"]] == [0, 2]
    assert (tmp_path / "x.txt").read_text().splitlines()[0] == "--- 2 ---"

    model.failing = frozenset({0, 1, 2})
    for extra in ((), ("--json",)):
        nothing = kamado(*args, *extra)
        assert (nothing.status, nothing.err) == (1, "kamado: NaN in answer 0\n")
    assert kamado("run", "m", "hi").status == 1


def test_a_prompt_that_is_too_long_has_both_numbers(kamado: Kamado, runtime: FakeRuntime) -> None:
    done = kamado("run", "m", stdin=b"word " * 300)
    assert done.status == 2 and "300 tokens" in done.err and "holds 200" in done.err


@pytest.mark.usefixtures("runtime")
def test_several_answers_are_separated(kamado: Kamado) -> None:
    done = kamado("run", "m", "hi", "--n", "3")
    lines = done.out.splitlines()
    assert lines[1] == "--- 2 ---" and lines[3] == "--- 3 ---" and len(lines) == 5
    assert len({lines[0], lines[2], lines[4]}) == 3


@pytest.mark.usefixtures("runtime")
def test_json_is_one_document(kamado: Kamado) -> None:
    done = kamado("run", "m", "hi \u6f22", "--json", "--n", "2", "--logprobs", "1", "--seed", "4")
    document = json.loads(done.out)
    assert done.out.count("\n") == 1 and done.err == ""
    assert document["request"] == {"prompt": "hi \u6f22", "seed": 4, "n": 2, "logprobs": 1}
    assert document["text"].startswith("You said: hi \u6f22") and len(document["choices"]) == 2
    assert document["finish_reason"] == "stop" and document["recipe"]["seed"] == 4
    assert document["usage"]["total_tokens"] == 12 and document["timings"]["ttft_s"] == 0.01
    assert document["choices"][0]["logprobs"][0] == {"token_id": 7, "text": "You", "logprob": -9999.0, "top": []}


@pytest.mark.usefixtures("runtime")
def test_an_answer_into_a_file(kamado: Kamado, tmp_path: Path) -> None:
    path = tmp_path / "answer.txt"
    done = kamado("run", "m", "hi", "-o", str(path))
    assert done.status == 0 and done.out == f"{path}\n"
    assert path.read_text() == "You said: hi\n"
    failed = kamado("run", "m", "boom now please", "-o", str(path))
    assert failed.status == 1 and path.read_text() == "You said: hi\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", [".", "no/such/folder/x.txt"])
def test_a_file_that_cannot_be_is_found_out_first(name: str, kamado: Kamado, runtime: FakeRuntime) -> None:
    assert kamado("run", "m", "hi", "-o", name).status == 2
    assert runtime.loaded == []


@pytest.mark.usefixtures("runtime")
def test_a_request_that_fails_midway(kamado: Kamado) -> None:
    done = kamado("run", "m", "boom now please")
    assert done.status == 1
    assert done.out == "You said:\n" and done.err == "kamado: the request failed: boom\n"


def test_ctrl_c_stops_the_request(kamado: Kamado, model: FakeModel, runtime: FakeRuntime) -> None:
    model.interrupt_at = 2
    done = kamado("run", "m", "hello there")
    assert (done.status, done.out, done.err) == (130, "You said:\n", "")
    assert model.closed_streams == 1 and runtime.closed


@pytest.mark.usefixtures("runtime")
def test_v_says_how_fast(kamado: Kamado) -> None:
    done = kamado("run", "m", "hello", "-v", "--max-tokens", "2")
    assert done.out == "You said:\n"
    assert "loaded in" in done.err and "answer 2 tokens" in done.err and "ended by length" in done.err


@pytest.mark.usefixtures("runtime")
def test_an_answer_cut_by_the_context_says_so(kamado: Kamado, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeModel, "answer", lambda self, resolved, asked, index: (["cut", " off"], "length"))
    assert "context is full" in kamado("run", "m", "hello").err
    assert kamado("run", "m", "hello", "--max-tokens", "2").err == ""


@pytest.mark.parametrize("name", ["x.png", "x.WAV", "x.mp4", "x.glb", "x.mid"])
def test_text_is_not_written_as_something_else(
    kamado: Kamado, model: FakeModel, runtime: FakeRuntime, tmp_path: Path, name: str
) -> None:
    done = kamado("run", "m", "hi", "-o", str(tmp_path / name))
    assert done.status == 2 and "m makes text, which is no" in done.err and len(done.err.splitlines()) == 1
    assert runtime.loaded == [] and not (tmp_path / name).exists()
