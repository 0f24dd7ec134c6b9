"""Commands as typed, with the real model."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from .conftest import PROGRAM, Kamado, environment, hear_interrupts


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("args", [("--help",), ("--version",), ("devices",), ("run", "--help")])
def test_answers_at_once(kamado: Kamado, args: tuple[str, ...]) -> None:
    kamado(*args)  # byte code and file cache
    times = []
    for _ in range(3):
        start = time.monotonic()
        done = kamado(*args)
        times.append(time.monotonic() - start)
        assert done.returncode == 0 and done.stdout and not done.stderr
    assert min(times) < 0.5


def test_plan_reads_headers_only(kamado: Kamado, smollm2: Path) -> None:
    done = kamado("plan", smollm2, "--json", "--device", "cpu")
    plan = json.loads(done.stdout)
    assert done.returncode == 0 and not done.stderr
    assert plan["fits"] is True and plan["architecture"] == "LlamaForCausalLM" and plan["weight_bytes"] > 10**8
    small = kamado("plan", smollm2, "--memory", "10MB", "--device", "cpu")
    assert small.returncode == 3 and b"fits" in small.stdout
    assert small.stderr.startswith(b"kamado: ") and small.stderr.count(b"\n") == 1


def test_run_answers(kamado: Kamado, smollm2: Path) -> None:
    done = kamado("run", smollm2, "What is the capital of France?", "--max-tokens", "12", "--temperature", "0")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"Paris" in done.stdout and done.stdout.endswith(b"\n")


def test_run_json_and_stdin(kamado: Kamado, quick: Kamado, smollm2: Path) -> None:
    args = ("run", smollm2, "--json", "--max-tokens", "4", "--temperature", "1.5", "--seed", "5", "--n", "2")
    first = kamado(*args, stdin="Say something about \u6f22\u5b57.\n".encode())
    document = json.loads(first.stdout)
    assert document["request"]["prompt"] == "Say something about \u6f22\u5b57."
    assert document["usage"]["completion_tokens"] == 8 and document["finish_reason"] == "length"
    assert len(document["choices"]) == 2 and document["recipe"]["options"]["seed"] == 5
    again = json.loads(quick(*args, stdin="Say something about \u6f22\u5b57.\n".encode()).stdout)
    assert [choice["text"] for choice in again["choices"]] == [choice["text"] for choice in document["choices"]]


@pytest.mark.parametrize(
    ("args", "stdin", "status", "words"),
    [
        (("MODEL", "hi", "--temperature", "-1"), b"", 2, "temperature"),
        (("MODEL", "hi", "--nonsense"), b"", 2, "--nonsense"),
        (
            ("MODEL", "hi", "--quant", "int3"),
            b"",
            2,
            "must be one of none, int8, int8-weight-only, int8-dynamic, int4, nf4",
        ),
        (("MODEL", "hi", "--quant", "fp8-dynamic", "--device", "cpu"), b"", 2, "take fp8,"),
        (("MODEL", "hi", "--device", "cuda:77"), b"", 2, "cuda:77"),
        (("MODEL", "hi", "--device", "toaster"), b"", 2, "toaster"),
        (("MODEL", "hi", "--memory", "12zz"), b"", 2, "12zz"),
        (("MODEL", "hi", "--config", "absent"), b"", 2, "absent"),
        (("MODEL", "hi", "--memory", "10MB"), b"", 3, "10MB|MiB"),
        (("MODEL",), b"", 2, "empty"),
        (("MODEL",), b"ab\xff", 2, "offset 2"),
        (("MODEL", b"ab\xff"), b"", 2, "UTF-8"),
        (("MODEL",), b"word " * 9000, 2, "8192"),
        (("./absent.gguf", "hi"), b"", 4, "absent.gguf"),
        (("no-such-name", "hi"), b"", 4, "no-such-name"),
        (("no such name", "hi"), b"", 2, "no such name"),
        (("GARBAGE", "hi"), b"", 4, "garbage"),
        (("PICKLE", "hi"), b"", 5, "pickle"),
    ],
)
def test_bad_input_of_each_kind(
    args: tuple[str | bytes, ...], stdin: bytes, status: int, words: str, kamado: Kamado, smollm2: Path, tmp_path: Path
) -> None:
    (tmp_path / "garbage.gguf").write_bytes(b"GGUF" + b"\xff" * 64)
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
    names = {"MODEL": smollm2, "GARBAGE": tmp_path / "garbage.gguf", "PICKLE": tmp_path / "pickled"}
    typed = [names.get(arg, arg) if isinstance(arg, str) else arg for arg in args]
    done = kamado("run", *typed, stdin=stdin)
    err = done.stderr.decode()
    assert done.returncode == status, err
    assert done.stdout == b"" and 1 <= err.count("\n") <= 2 and "Traceback" not in err
    assert any(word in err for word in words.split("|"))


@pytest.mark.slow
def test_ctrl_c_ends_a_run_at_once(smollm2: Path, tmp_path: Path) -> None:
    args = [PROGRAM, "run", smollm2, "Tell me a very long story.", "--ignore-eos", "--max-tokens", "4000"]
    with subprocess.Popen(
        args,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(tmp_path),
        preexec_fn=hear_interrupts,  # noqa: PLW1509 - nothing but a signal is set in it
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(10)
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        rest, err = process.communicate(timeout=60)
    assert time.monotonic() - start < 10
    assert process.returncode == 130 and err == b"" and rest.endswith(b"\n")


@pytest.mark.slow
def test_a_batch_of_every_kind_of_line(kamado: Kamado, smollm2: Path, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    body = {"model": "any", "messages": messages, "max_tokens": 12, "temperature": 0}
    requests: list[Any] = [
        {"id": "own", "prompt": "Name a colour.", "max_tokens": 5},
        {"id": "chat", "messages": messages, "max_tokens": 12, "temperature": 0},
        {"custom_id": "oai", "method": "POST", "url": "/v1/chat/completions", "body": body},
        {"id": "long", "prompt": "word " * 9000},
        {"id": "odd", "prompt_tokens": [10**9]},
    ]
    source, folder = tmp_path / "in.jsonl", tmp_path / "out"
    source.write_text("".join(json.dumps(request) + "\n" for request in requests) + "{broken\n")
    done = kamado("batch", smollm2, source, "-o", folder)
    assert done.returncode == 1
    results = lines_of(folder / "results.jsonl")
    assert [result["id"] for result in results] == ["own", "chat", "oai", "long", "odd", "line-6"]
    assert [result["status"] for result in results] == ["ok"] * 3 + ["failed"] * 3
    assert "Paris" in results[1]["text"] and results[2]["text"] == results[1]["text"]
    assert all(f"line {number}:" in results[number - 1]["error"] for number in (4, 5, 6))
    changed = kamado("batch", smollm2, source, "-o", folder, "--max-tokens", "3")
    assert (
        changed.returncode == 2
        and b"other options: --max-tokens: not given, now 3" in changed.stderr
        and b"--restart" in changed.stderr
    )


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_killed_batch_goes_on_and_ends_the_same(kamado: Kamado, smollm2: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    requests = [{"id": i, "prompt": f"Write {i} words.", "max_tokens": 4, "temperature": 0.9} for i in range(9)]
    source.write_text("".join(json.dumps(request) + "\n" for request in requests))
    options = ("--deterministic", "--concurrency", "3")
    assert kamado("batch", smollm2, source, "-o", tmp_path / "calm", *options).returncode == 0
    chance, folder = random.Random(3), tmp_path / "killed"
    args = [PROGRAM, "batch", smollm2, source, "-o", folder, *options]
    for _ in range(2):
        with subprocess.Popen(args, stdout=subprocess.DEVNULL, env=environment(tmp_path)) as process:
            journal = folder / "journal.jsonl"
            limit, before = time.monotonic() + 120, journal.stat().st_size if journal.exists() else 200
            while time.monotonic() < limit and process.poll() is None:
                if journal.exists() and journal.stat().st_size > max(before, 200) + 600 * chance.randint(1, 3):
                    break
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
    assert not (folder / "results.jsonl").exists() and journal.read_bytes().count(b"\n") > 2
    assert kamado("batch", smollm2, source, "-o", folder, *options).returncode == 0
    assert (folder / "results.jsonl").read_bytes() == (tmp_path / "calm" / "results.jsonl").read_bytes()
