"""Each program runs, with the smallest settings: no figure of such a run means anything."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from .conftest import PROGRAMS

Program = Callable[[str], ModuleType]
pytestmark = pytest.mark.slow


def run(name: str, home: Path, *arguments: object) -> str:
    """What the program prints, in a process of its own: it sets torch's threads."""
    home.mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "KAMADO_HOME": str(home)}
    command = [sys.executable, PROGRAMS / name, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("text.py", "--streams", "0"), 2),
        (("quant.py", "--layout", "tiny", "--schemes", "nonsense"), 2),
        (("speculation.py", "--model", "nonsense"), 4),
        (("llama_cpp_side.py",), 1),
    ],
)
def test_what_is_wrong_is_said_in_a_line(words: tuple[str, ...], status: int, tmp_path: Path) -> None:
    command = [sys.executable, str(PROGRAMS / words[0]), *words[1:]]
    if words[0] == "llama_cpp_side.py" and importlib.util.find_spec("llama_cpp") is not None:
        pytest.skip("it is here")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "KAMADO_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == status, done.stderr
    assert done.stderr.strip() and "Traceback" not in done.stderr


def test_peers(tmp_path: Path) -> None:
    small = ("--layout", "tiny", "--reps", 1, "--tokens", 4, "--memory", "200MB", "--work", tmp_path / "work")
    said = run("peers.py", tmp_path / "home", *small)
    for row in ("decode-generate", "loop"):
        assert any(line.startswith(row) and "goal" in line for line in said.splitlines())
    assert "llama.cpp" not in said and (tmp_path / "work" / "tiny.q8_0.gguf").exists()


def test_rows_that_need_llama_cpp_need_its_environment(
    program: Program, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    peers = program("peers")
    for typed, words in ((("--rows", "decode-int8"), "needs llama.cpp: --python"), (("--tokens", "1"), "at least 2")):
        monkeypatch.setattr(sys, "argv", ["peers.py", *typed])
        with pytest.raises(SystemExit) as ended:
            peers.parse()
        assert ended.value.code == 2 and words in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["peers.py"])
    assert peers.parse().rows == ["decode-generate", "loop"]
    monkeypatch.setattr(sys, "argv", ["peers.py", "--python", "x", "--rows", "loop", "decode-int4"])
    assert peers.parse().rows == ["decode-int4", "loop"], "in the order in which models are loaded"


def test_growth(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ("--layout", "tiny", "--reps", 1, "--tokens", 4, "--memory", "200MB")
    said = run("growth.py", tmp_path / "home", *small, "--streams", 1, 2, 4, "--contexts", 32, 64, 5000)
    rows = [json.loads(line) for line in said.splitlines() if line.startswith('{"series"')]
    assert [(row["series"], row["size"]) for row in rows] == [
        *(("streams", size) for size in (1, 2, 4)),
        *(("context", size) for size in (32, 64)),
    ], "what is longer than the model's context is left out"
    assert all(row["decode_tokens_per_s"] > 0 and row["prefill_ms"] > 0 for row in rows)
    assert said.count("greatest_exponent") == 4
    kept = tmp_path / "kept.jsonl"
    machine = {"time": "now", "device": "a CPU", "threads": 1}
    shared = {"model": "tiny", "dtype": "float32", "quant": "none", "machine": machine}
    kept.write_text("".join(json.dumps(shared | row) + "\n" for row in rows))
    monkeypatch.setattr(sys, "argv", ["growth.py", "--from", str(kept), "--plots", str(tmp_path / "plots")])
    growth = program("growth")
    if importlib.util.find_spec("matplotlib") is None:
        with pytest.raises(SystemExit, match="plots need matplotlib"):
            growth.main()
        return
    growth.main()
    plots = sorted((tmp_path / "plots").iterdir())
    assert [path.name for path in plots] == ["growth-context.png", "growth-streams.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in plots)


def test_pictures(tmp_path: Path) -> None:
    said = run("pictures.py", tmp_path / "home", "--tests", "overhead", "--steps", 2, "--reps", 1)
    assert "'theirs': 'diffusers pipeline'" in said and "'goal': 1.0" in said


def test_kinds(smollm2: Path, minilm: Path) -> None:
    from kamado.checkpoint.store import Store

    said = run("kinds.py", Store.open().home, "--seconds", 0.1, "--rounds", 1).splitlines()
    assert [line.split()[0] for line in said] == ["chat", "picture", "speech", "embedding", "fairness:"]
    assert all("slowdown" in line and "compared" in line for line in said[:4])
