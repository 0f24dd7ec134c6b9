"""`kamado bench` and `kamado devices --measure`, as typed, with models that run."""

from __future__ import annotations

import json
from pathlib import Path

import tiny
from kamado.kernels.native import native

from .conftest import Kamado

ROOM = ("--memory", "300MB", "--device", "cpu")


def test_a_tiny_model(kamado: Kamado, quick: Kamado, tmp_path: Path) -> None:
    """The device's rates are measured with the first bench, and kept."""
    model = tiny.build("llama", tmp_path / "model")
    done = kamado("bench", model, "-p", "32", "-n", "8", "-b", "1,3", "--reps", "2", "--json", *ROOM)
    assert (done.returncode, done.stderr) == (0, b"")
    prefill, single, batch = json.loads(done.stdout)
    assert [row["test"] for row in (prefill, single, batch)] == ["pp32", "tg8", "batch3"]
    assert prefill["tokens_per_s"] > 0 and prefill["ttft_ms"] > 0 and prefill["operations_G_s"] > 0
    assert single["itl_ms_p99"] >= single["itl_ms_p50"] > 0 and 0 < single["bandwidth_utilization"] < 1
    assert 2 < batch["mean_batch"] <= 3 and single["mean_batch"] == 1.0, "they shared forwards"
    assert prefill["peak_memory_bytes"] > 50_000_000 and prefill["load_s"] > 0
    (cpu,) = [each for each in json.loads(quick("devices", "--json").stdout) if each["kind"] == "cpu"]
    kept = cpu["rates"]["read_bytes_per_s"]
    assert abs(single["bandwidth_GB_s"] * 1e9 / kept / single["bandwidth_utilization"] - 1) < 0.01

    table = quick("bench", model, "-p", "0", "-n", "4", "-b", "1", "--reps", "1", "--quant", "int8", *ROOM)
    if native() is None:  # neither a compiler nor a CPU that the kernels know
        assert table.returncode == 1 and b"kernels in C" in table.stderr
    else:
        assert table.returncode == 0 and b"float32, weights int8" in table.stdout and b"tg4" in table.stdout

    trace = tmp_path / "trace.jsonl"
    trace.write_text(
        '{"at": 0, "prompt_length": 9, "max_tokens": 4}\n{"at": 0.1, "prompt": "hello", "max_tokens": 3}\n'
    )
    done = quick("bench", model, "--load", trace, "--concurrency", "1", "--json", *ROOM)
    (row,) = json.loads(done.stdout)
    assert (done.returncode, row["requests"], row["failed"]) == (0, 2, 0) and row["total_ms_p99"] >= row[
        "ttft_ms_p50"
    ] > 0

    trace.write_text('{"prompt_length": 9000}\n{"prompt_length": 9}\n')
    failed = quick("bench", model, "--load", trace, *ROOM)
    assert failed.returncode == 1 and b"1 of 2 requests failed; the first in line 1" in failed.stderr
    assert quick("bench", model, "-n", "600", *ROOM).returncode == 2


def test_pictures(quick: Kamado, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    done = quick(
        "bench", "emoji-diffusion:64", "--offline", "--steps", "3", "--reps", "1", "-b", "1,2", "--json", *ROOM
    )
    rows = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, b"")
    assert [(row["test"], row["width"], row["height"], row["steps"], row["batch"]) for row in rows] == [
        ("image", 64, 64, 3, 1),
        ("image", 64, 64, 3, 2),
    ]
    assert all(row["steps_per_s"] > 0 and row["s_per_image"] > 0 for row in rows)
    assert all(0 < row["operations_utilization"] < 1 for row in rows)
