"""A batch answers every line once, whatever interrupts it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fake_model import CancellingModel, FakeModel
from kamado.batch.journal import Journal
from kamado.batch.runner import Progress, Summary, line_seed, open_batch
from kamado.errors import Cancelled, GenerationFailed, InvalidRequest

LINES = [
    {"id": "a", "prompt": "hello there"},
    {"id": "b", "messages": [{"role": "user", "content": "hi"}], "temperature": 0.7},
    {"id": "c", "prompt": "boom"},
    {"id": "d", "prompt": "x", "n": 2, "logprobs": 1},
]


def write_input(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def run(source: Path, folder: Path, model: FakeModel | None = None, **options: Any) -> Summary:
    with open_batch(source, folder, **{"identity": {"model": "fake"}, **options}) as batch:
        if not batch.is_answered:
            batch.run(model or FakeModel())
        return batch.finish()


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_line_is_answered_in_input_order(tmp_path: Path) -> None:
    summary = run(write_input(tmp_path / "in.jsonl", LINES), tmp_path / "out")
    assert (summary.total, summary.ok, summary.failed) == (4, 3, 1)
    first, second, third, fourth = results(tmp_path / "out")
    assert [first["id"], second["id"], third["id"], fourth["id"]] == ["a", "b", "c", "d"]
    assert first["text"] == "You said: hello there"
    assert first["usage"] == {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6}
    assert first["recipe"]["seed"] == line_seed(0, 1)
    assert set(first) == {"id", "status", "text", "finish_reason", "error", "usage", "recipe"}
    assert third["status"] == "failed" and third["error"] == "line 3: the request failed: boom"
    assert third["text"] is None and third["usage"] is None
    assert [choice["index"] for choice in fourth["choices"]] == [0, 1]
    assert fourth["choices"][0]["logprobs"][0]["logprob"] == -9999.0


def test_a_line_of_which_a_part_was_not_made_has_failed_and_keeps_the_rest(tmp_path: Path) -> None:
    source = write_input(tmp_path / "in.jsonl", [{"id": "d", "prompt": "x", "n": 3}])
    assert run(source, tmp_path / "out", FakeModel(failing=frozenset({0, 1}))).failed == 1
    (result,) = results(tmp_path / "out")
    told = [f"answer {number} of 3 was not made: NaN in answer {number - 1}" for number in (1, 2)]
    assert result["status"] == "failed" and result["error"] == "line 1: " + "; ".join(told)
    assert [choice["index"] for choice in result["choices"]] == [2] and result["text"] == result["choices"][0]["text"]
    assert run(source, tmp_path / "out", retry_failed=True).ok == 1


def test_bad_lines_fail_alone_with_their_number(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    deep = b'{"id": "deep", "prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    source.write_bytes(
        b'\xef\xbb\xbf{"id": "first", "prompt": "hi"}\r\n'
        b"\n   \r\n"
        b"{not json}\n"
        b"[1]\n"
        b'{"id": "opt", "prompt": "hi", "self": 1}\n'
        b'{"id": "first", "prompt": "again"}\n'
        b'{"id": "twice", "prompt": "a", "prompt": "b"}\n'
        b'{"id": true, "prompt": "a"}\n'
        b'{"id": "nan", "prompt": "a", "temperature": NaN}\n'
        b'{"id": "range", "prompt": "a", "temperature": -1}\n'
        b'{"id": "latin", "prompt": "\xe9"}\n'
        b'{"id": "half", "prompt": "\\ud800"}\n'
        b'{"id": "opt", "prompt": "the id of a line that failed"}\n'
        b'{"id": "long", "prompt": "' + b"word " * 300 + b'"}\n'
        b'{"id": "big", "prompt": "hi", "seed": ' + b"9" * 5000 + b"}\n" + deep + b"\n"
        b'{"prompt": "no id and no line end"}'
    )
    summary = run(source, tmp_path / "out")
    found = results(tmp_path / "out")
    assert (summary.total, summary.ok) == (16, 2)
    assert found[0]["id"] == "first" and found[0]["status"] == "ok"
    assert found[-1] | {"recipe": None} == found[-1] | {"id": "line-18", "status": "ok", "recipe": None}
    errors = {result["error"].split(":")[0]: result["error"] for result in found[1:-1]}
    assert list(errors) == [f"line {number}" for number in range(4, 18)]
    for number, words in {
        4: "not JSON",
        5: "must be a JSON object",
        6: "unknown option: self",
        7: "'first' is that of line 1",
        8: "'prompt' is there twice",
        9: "id must be",
        10: "NaN",
        11: "temperature must be at least 0",
        12: "not UTF-8",
        13: "surrogate",
        14: "is that of line 6",
        15: "300 tokens",
    }.items():
        assert words in errors[f"line {number}"]
    assert found[3]["id"] == "opt" and found[1]["id"] == "line-4"


def test_a_huge_line_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kamado.batch.lines.InputFile.__init__.__kwdefaults__", {"max_line_bytes": 1000})
    source = write_input(tmp_path / "in.jsonl", [{"id": 1, "prompt": "x" * 5000}, {"id": 2, "prompt": "hi"}])
    run(source, tmp_path / "out")
    big, small = results(tmp_path / "out")
    assert big["status"] == "failed" and "line 1: the line is longer" in big["error"]
    assert small["id"] == 2 and small["status"] == "ok"


def test_options_of_the_command_are_defaults_of_the_lines(tmp_path: Path) -> None:
    model = FakeModel()
    source = write_input(
        tmp_path / "in.jsonl", [{"prompt": "a"}, {"prompt": "b", "max_tokens": 1, "temperature": None}]
    )
    run(source, tmp_path / "out", model, defaults={"max_tokens": 2, "temperature": 0.5}, seed=9)
    assert model.requests[0] == {"prompt": "a", "max_tokens": 2, "temperature": 0.5, "seed": line_seed(9, 1)}
    assert model.requests[1] == {"prompt": "b", "max_tokens": 1, "temperature": 0.5, "seed": line_seed(9, 2)}


def test_a_finished_batch_needs_no_model_again(tmp_path: Path) -> None:
    source, folder = write_input(tmp_path / "in.jsonl", LINES), tmp_path / "out"
    run(source, folder)
    before = (folder / "results.jsonl").read_bytes()
    with open_batch(source, folder, identity={"model": "fake"}) as batch:
        assert batch.is_answered
    model = FakeModel()
    run(source, folder, model)
    assert model.requests == []
    assert (folder / "results.jsonl").read_bytes() == before


def test_an_empty_input_gives_empty_results(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b"\n\n")
    assert run(tmp_path / "in.jsonl", tmp_path / "out").total == 0
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"identity": {"model": "other"}}, "another model"),
        ({"defaults": {"max_tokens": 5}}, "with other options: max_tokens: not given, now 5; give another folder"),
        ({"identity": {"components": {"vae": ["x"]}}}, "with other components: vae: not given, now .'x'.; give"),
        ({"seed": 1}, "another seed"),
    ],
)
def test_another_batch_in_the_folder_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    source, folder = write_input(tmp_path / "in.jsonl", LINES), tmp_path / "out"
    run(source, folder)
    with pytest.raises(InvalidRequest, match=words) as caught:
        run(source, folder, **changes)
    assert "--restart" in str(caught.value)
    run(source, folder, restart=True, **changes)


def test_a_changed_input_is_refused(tmp_path: Path) -> None:
    source, folder = write_input(tmp_path / "in.jsonl", LINES), tmp_path / "out"
    run(source, folder)
    write_input(source, LINES[:1])
    with pytest.raises(InvalidRequest, match="another input sha256"):
        run(source, folder)
    assert len(results(folder)) == 4
    run(source, folder, restart=True)
    assert len(results(folder)) == 1


def test_another_model_under_the_same_name_is_noticed(tmp_path: Path) -> None:
    source, folder = write_input(tmp_path / "in.jsonl", [{"prompt": str(i)} for i in range(8)]), tmp_path / "out"
    with open_batch(source, folder, identity={}) as batch, pytest.raises(Cancelled):
        batch.run(CancellingModel(), concurrency=1)
    updated = FakeModel(recipe_model="updated")
    with open_batch(source, folder, identity={}) as batch, pytest.raises(InvalidRequest, match="not those that gave"):
        batch.run(updated)
    assert updated.closed_streams == 1
    with open_batch(source, folder, identity={}, restart=True) as batch:
        batch.run(updated)
        assert batch.finish().ok == 8


def test_another_precision_under_the_same_name_is_noticed(tmp_path: Path) -> None:
    """What `--dtype auto` means may change between two runs."""
    source, folder = write_input(tmp_path / "in.jsonl", [{"prompt": str(i)} for i in range(8)]), tmp_path / "out"
    with open_batch(source, folder, identity={}) as batch, pytest.raises(Cancelled):
        batch.run(CancellingModel(), concurrency=1)
    with (
        open_batch(source, folder, identity={}) as batch,
        pytest.raises(InvalidRequest, match=r"another dtype \('float32', now 'bfloat16'\); .*--restart"),
    ):
        batch.run(FakeModel(recipe_dtype="bfloat16"))
    with open_batch(source, folder, identity={}) as batch:
        batch.run(FakeModel())
        assert batch.finish().ok == 8


def test_an_input_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    source = write_input(tmp_path / "in.jsonl", LINES)
    with open_batch(source, tmp_path / "out", identity={}) as batch:
        write_input(source, [*LINES[:3], {"id": "e", "prompt": "new"}])
        with pytest.raises(InvalidRequest, match="was changed"):
            batch.run(FakeModel())


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    source, folder = write_input(tmp_path / "in.jsonl", LINES), tmp_path / "out"
    folder.mkdir()
    for name, words in (("results.jsonl", "no journal"), ("journal.jsonl", "not a batch journal")):
        (folder / name).write_text("mine\n")
        with pytest.raises(InvalidRequest, match=words):
            run(source, folder)
        assert (folder / name).read_text() == "mine\n"
        (folder / name).unlink()


def test_what_a_kill_left_half_written_is_removed(tmp_path: Path) -> None:
    source, folder = write_input(tmp_path / "in.jsonl", LINES), tmp_path / "out"
    folder.mkdir()
    (folder / ".results.jsonl.0123456789abcdef.part").write_text("half")
    (folder / ".other.part").write_text("not ours")
    run(source, folder)
    assert {path.name for path in folder.iterdir()} == {".lock", ".other.part", "journal.jsonl", "results.jsonl"}


def test_missing_input_and_folder_in_use(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"cannot read .*absent"):
        run(tmp_path / "absent", tmp_path / "out")
    source = write_input(tmp_path / "in.jsonl", LINES)
    with (
        open_batch(source, tmp_path / "out", identity={}),
        pytest.raises(InvalidRequest, match="another batch is running"),
    ):
        run(source, tmp_path / "out", identity={})


def test_only_failed_lines_run_again(tmp_path: Path) -> None:
    source, folder = write_input(tmp_path / "in.jsonl", LINES), tmp_path / "out"
    run(source, folder)
    model = FakeModel()
    summary = run(source, folder, model, retry_failed=True)
    assert [request["prompt"] for request in model.requests] == ["boom"]
    assert (summary.total, summary.ok, summary.failed) == (4, 3, 1)


def test_a_closed_runtime_stops_the_batch_and_fails_no_line(tmp_path: Path) -> None:
    source, folder = write_input(tmp_path / "in.jsonl", [{"prompt": str(i)} for i in range(8)]), tmp_path / "out"
    with open_batch(source, folder, identity={}) as batch:
        with pytest.raises(Cancelled):
            batch.run(CancellingModel())
        with pytest.raises(GenerationFailed, match="have no answer yet"):
            batch.finish()
    assert run(source, folder, identity={}).ok == 8


def test_interrupting_loses_nothing(tmp_path: Path) -> None:
    source, folder = write_input(tmp_path / "in.jsonl", [{"prompt": str(i)} for i in range(8)]), tmp_path / "out"
    model = FakeModel()

    def interrupt(progress: Progress) -> None:
        if progress.answered == 5:
            raise KeyboardInterrupt

    with open_batch(source, folder, identity={}) as batch, pytest.raises(KeyboardInterrupt):
        batch.run(model, on_progress=interrupt)
    assert model.closed_streams == 1
    again = FakeModel()
    run(source, folder, again, identity={})
    assert len(again.requests) == 3


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_journal_is_cut_to_its_last_whole_record(tmp_path: Path, cut: int) -> None:
    source, folder = write_input(tmp_path / "in.jsonl", LINES), tmp_path / "out"
    run(source, folder)
    whole = (folder / "results.jsonl").read_bytes()
    journal = folder / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-cut])
    model = FakeModel()
    run(source, folder, model)
    assert len(model.requests) == 1
    assert (folder / "results.jsonl").read_bytes() == whole


def test_a_journal_torn_anywhere_recovers_what_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path, {"x": 1}) as journal:
        for number in range(3):
            journal.add(number, "d", {"n": number})
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with Journal(path, {"x": 1}) as journal:
            # The header is the first line; what follows are whole records.
            assert len(journal) == max(0, data[:size].count(b"\n") - 1)
            assert [result["n"] for result in journal.results()] == list(range(len(journal)))
            for number in range(len(journal), 3):
                journal.add(number, "d", {"n": number})
        assert path.read_bytes() == data


def test_garbage_after_a_power_cut_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path, {}) as journal:
        journal.add(1, "d", {"n": 1})
    good = path.read_bytes()
    for garbage in (b"\0" * 100, b"\0" * 50 + b"\n", b'{"line": 2}\n', b"[" * 50_000 + b"\n"):
        path.write_bytes(good + garbage)
        with Journal(path, {}) as journal:
            assert len(journal) == 1
        assert path.read_bytes() == good


def test_a_full_disk_leaves_no_half_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.jsonl"
    real_write = os.write

    def short_write(descriptor: int, data: bytes) -> int:
        if len(data) < 30:
            raise OSError(28, "No space left on device")
        return real_write(descriptor, data[:20])

    with Journal(path, {}) as journal:
        journal.add(1, "d", {"n": 1})
        good = path.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr("kamado.batch.journal.os.write", short_write)
            with pytest.raises(OSError, match="No space"):
                journal.add(2, "d", {"n": 2})
        assert path.read_bytes() == good
        journal.add(2, "d", {"n": 2})
        assert [result["n"] for result in journal.results()] == [1, 2]


_CHILD = """
import sys
from pathlib import Path
from fake_model import FakeModel
from kamado.batch.runner import open_batch
source, folder = Path(sys.argv[1]), Path(sys.argv[2])
with open_batch(source, folder, identity={"model": "fake"}, defaults={"temperature": 0.8}) as batch:
    print("open", flush=True)
    if not batch.is_answered:
        batch.run(FakeModel(delay_s=0.0005))
    batch.finish()
"""


@pytest.fixture
def child(tmp_path: Path) -> Iterator[list[str]]:
    script = tmp_path / "child.py"
    script.write_text(f"import sys\nsys.path[:0] = {[*sys.path, str(Path(__file__).parents[2])]!r}\n{_CHILD}")
    yield [sys.executable, str(script)]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_killed_twenty_times_the_results_are_those_of_an_undisturbed_run(tmp_path: Path, child: list[str]) -> None:
    lines: list[Any] = [{"id": f"r{i}", "prompt": f"word {i} \u00e9\u6f22", "n": 1 + i % 3} for i in range(400)]
    lines[50] = {"id": "r49", "prompt": "an id that is taken"}
    lines[60] = {"id": "r60", "prompt": "boom"}
    source = write_input(tmp_path / "in.jsonl", lines)
    calm = subprocess.run([*child, str(source), str(tmp_path / "calm")], check=False, capture_output=True, text=True)
    assert calm.returncode == 0, calm.stderr
    chance, kills, folder = random.Random(7), 0, tmp_path / "killed"
    for _ in range(20):
        with subprocess.Popen([*child, str(source), str(folder)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(chance.uniform(0, 0.03))
            process.send_signal(signal.SIGKILL)
        kills += process.returncode == -signal.SIGKILL
    assert kills >= 10, "the batch was too quick to be killed"
    answered = [json.loads(line) for line in (folder / "journal.jsonl").read_bytes().split(b"\n")[1:-1]]
    assert len(answered) > 0 and not (folder / "results.jsonl").exists()
    done = subprocess.run([*child, str(source), str(folder)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (folder / "results.jsonl").read_bytes() == (tmp_path / "calm" / "results.jsonl").read_bytes()
    numbers = [json.loads(line)["line"] for line in (folder / "journal.jsonl").read_bytes().splitlines()[1:]]
    assert sorted(numbers) == list(range(1, 401)), "each line is answered exactly once"
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "journal.jsonl", "results.jsonl"]
