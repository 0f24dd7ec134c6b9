"""A batch of pictures: files that are there before the journal knows of them, under names that are safe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fake_pictures import FakePictureModel, draw
from kamado.batch.pictures import PictureAnswers, files_of, safe_name
from kamado.batch.runner import Progress, Summary, kind_of_batch, line_seed, open_batch
from kamado.errors import InvalidRequest
from kamado.media.pictures import open_picture, read_recipe

LINES: list[dict[str, Any]] = [
    {"id": "a", "prompt": "a cat", "seed": 7},
    {"id": "b/../c", "prompt": "a dog", "n": 2, "steps": 3},
    {"id": "d", "prompt": "boom"},
    {"prompt": "a hen"},
]


def write_input(path: Path, lines: list[Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def run(
    source: Path, folder: Path, model: FakePictureModel | None = None, file_format: str = "png", **options: Any
) -> Summary:
    answers = PictureAnswers(folder, source.parent, file_format)
    with open_batch(source, folder, **{"identity": {"model": "fake"}, **options}, answers=answers) as batch:
        if not batch.is_answered:
            batch.run(model or FakePictureModel())
        return batch.finish()


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()]


def media(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "media").iterdir()}


def test_pictures_and_their_lines(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    summary = run(write_input(tmp_path / "in.jsonl", LINES), folder)
    assert (summary.total, summary.ok, summary.failed) == (4, 3, 1)
    first, second, third, fourth = results(folder)
    assert first["files"] == ["media/a.png"] and first["seeds"] == [7] and first["error"] is None
    assert set(first) == {"id", "status", "files", "seeds", "error", "recipe"} == set(third)
    assert open_picture(folder / "media" / "a.png").tobytes() == draw(7).tobytes()
    name = safe_name("b/../c")
    assert second["files"] == [f"media/{name}.1.png", f"media/{name}.2.png"]
    assert second["seeds"][1] == second["seeds"][0] + 1 and second["seeds"][0] == line_seed(0, 2) >> 31 < 2**32
    assert read_recipe(folder / second["files"][1])["options"]["seed"] == second["seeds"][1]
    assert third["status"] == "failed" and third["files"] == [] and third["seeds"] == []
    assert third["error"] == "line 3: the request failed: boom" and third["recipe"] is None
    assert fourth["id"] == "line-4" and fourth["files"] == ["media/line-4.png"]
    assert sorted(media(folder)) == sorted(["a.png", f"{name}.1.png", f"{name}.2.png", "line-4.png"])
    assert kind_of_batch(folder) == "image" and kind_of_batch(tmp_path) is None


@pytest.mark.parametrize(("file_format", "kind"), [("webp", "WEBP"), ("jpg", "JPEG")])
def test_other_formats(tmp_path: Path, file_format: str, kind: str) -> None:
    source = write_input(tmp_path / "in.jsonl", LINES[:1])
    run(source, tmp_path / "out", file_format=file_format)
    (name,) = results(tmp_path / "out")[0]["files"]
    assert name == f"media/a.{file_format}" and Image.open(tmp_path / "out" / name).format == kind
    with pytest.raises(InvalidRequest, match="another format"):
        run(source, tmp_path / "out")


def test_notes_stand_in_their_line(tmp_path: Path) -> None:
    run(write_input(tmp_path / "in.jsonl", LINES[:1]), tmp_path / "out", FakePictureModel(notes=("cut",)))
    assert results(tmp_path / "out")[0]["notes"] == ["cut"]


def test_a_line_of_which_a_part_was_not_made_has_failed_and_keeps_the_rest(tmp_path: Path) -> None:
    folder, model = tmp_path / "out", FakePictureModel(failing=frozenset({8, *range(20, 25)}), notes=("cut",))
    lines = [{"id": "a", "prompt": "x", "seed": 7, "n": 3}, {"id": "b", "prompt": "x", "seed": 19, "n": 6}, LINES[0]]
    source = write_input(tmp_path / "in.jsonl", [*lines[:2], {**LINES[0], "id": "c"}])
    assert run(source, folder, model).failed == 2
    first, second, third = results(folder)
    assert first["status"] == "failed" and first["notes"] == ["cut"] and first["recipe"]["options"]["n"] == 3
    assert first["error"] == "line 1: picture 2 of 3 (seed 8) was not made: it is black"
    assert first["files"] == ["media/a.1.png", "media/a.3.png"] and first["seeds"] == [7, 9]
    assert read_recipe(folder / "media/a.3.png")["options"]["seed"] == 9
    assert second["files"] == ["media/b.1.png"] and second["error"].endswith("; 2 more were not made")
    assert second["error"].count("it is black") == 3 and third["status"] == "ok"
    assert sorted(media(folder)) == ["a.1.png", "a.3.png", "b.1.png", "c.png"]

    again = FakePictureModel(failing=frozenset({9}))
    assert run(source, folder, again, retry_failed=True).failed == 1
    assert [request["seed"] for request in again.requests] == [7, 19]
    assert results(folder)[0]["files"] == ["media/a.1.png", "media/a.2.png"]
    assert len(results(folder)[1]["files"]) == 6 and "a.3.png" not in media(folder)
    run(source, folder, FakePictureModel(), restart=True)
    assert all(result["status"] == "ok" and "notes" not in result for result in results(folder))


def test_bad_lines_fail_alone(tmp_path: Path) -> None:
    bad: list[tuple[dict[str, Any], str]] = [
        ({"self": 1}, "unknown option: self"),
        ({"a b": 1}, "unknown option: a b"),
        ({"preview_every": 1}, "unknown option: preview_every"),
        ({"temperature": 1}, "temperature is for text models"),
        ({"messages": []}, "messages is for text models"),
        ({"unknown": 1}, "FakePipeline takes no unknown"),
        ({"width": "wide"}, "width must be"),
        ({"image": "absent.png"}, "absent.png does not exist"),
        ({"image": 5}, "a picture must be"),
        ({"image": "https://example.com/x.png"}, "no picture is ever fetched"),
        ({"mask": "data:image/png;base64,@"}, "no valid base64"),
        ({"custom_id": "o", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}}, "OpenAI lines ask"),
    ]
    lines = [{"prompt": "x", **line} if "url" not in line else line for line, _ in bad]
    summary = run(write_input(tmp_path / "in.jsonl", [*lines, LINES[0]]), tmp_path / "out")
    assert (summary.ok, summary.failed) == (1, len(bad))
    for number, ((_, words), result) in enumerate(zip(bad, results(tmp_path / "out"), strict=False), start=1):
        assert words in result["error"] and result["error"].startswith(f"line {number}: ")


def test_paths_start_where_the_input_lies(tmp_path: Path) -> None:
    source = tmp_path / "deep" / "in.jsonl"
    lines = [
        {"prompt": "x", "image": "in.png", "mask_image": "in.png"},
        {"prompt": "x", "image": [str(tmp_path / "other.png"), "in.png"]},
    ]
    write_input(source, lines)
    draw(1).save(source.parent / "in.png")
    draw(2).save(tmp_path / "other.png")
    model = FakePictureModel()
    run(source, tmp_path / "out", model)
    first, second = model.requests
    assert first["image"].tobytes() == first["mask_image"].tobytes() == draw(1).tobytes()
    assert [image.tobytes() for image in second["image"]] == [draw(2).tobytes(), draw(1).tobytes()]
    assert all(result["status"] == "ok" for result in results(tmp_path / "out"))


def test_a_picture_that_the_format_cannot_hold_fails_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clear = Image.new("RGBA", (8, 8), (1, 2, 3, 9))
    monkeypatch.setattr("fake_pictures.draw", lambda seed, *size: clear.copy())
    monkeypatch.setattr(Image.Image, "getpixel", lambda image, at: (0, 0, 0, 9))
    summary = run(write_input(tmp_path / "in.jsonl", LINES[:1]), tmp_path / "out", file_format="jpg")
    assert summary.failed == 1 and "transparency" in results(tmp_path / "out")[0]["error"]


def test_a_full_disk_ends_the_batch_and_fails_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, folder = write_input(tmp_path / "in.jsonl", LINES), tmp_path / "out"

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr("kamado.media.pictures.save_picture", full)
        run(source, folder)
    assert run(source, folder).ok == 3


def test_interrupted_anywhere_it_ends_the_same(tmp_path: Path) -> None:
    source = write_input(tmp_path / "in.jsonl", LINES)
    run(source, tmp_path / "calm")

    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "stopped"
    for _ in range(len(LINES)):
        answers = PictureAnswers(folder, tmp_path)
        with (
            open_batch(source, folder, identity={"model": "fake"}, answers=answers) as batch,
            pytest.raises(KeyboardInterrupt),
        ):
            batch.run(FakePictureModel(), on_progress=interrupt)
        (folder / "media").mkdir(exist_ok=True)
        (folder / "media" / ".a.png.abc.part").write_bytes(b"half a pict")
    assert run(source, folder).ok == 3
    assert results(folder) == results(tmp_path / "calm") and media(folder) == media(tmp_path / "calm")


def test_restart_throws_its_own_files_away_and_no_others(tmp_path: Path) -> None:
    source, folder = write_input(tmp_path / "in.jsonl", LINES), tmp_path / "out"
    run(source, folder)
    (folder / "media" / "mine.png").write_bytes(b"mine")
    write_input(source, LINES[:1])
    with pytest.raises(InvalidRequest, match="another input sha256"):
        run(source, folder)
    assert len(media(folder)) == 5
    run(source, folder, restart=True)
    assert sorted(media(folder)) == ["a.png", "mine.png"]


def test_media_of_nobody_are_not_replaced(tmp_path: Path) -> None:
    source, folder = write_input(tmp_path / "in.jsonl", LINES), tmp_path / "out"
    (folder / "media").mkdir(parents=True)
    (folder / "media" / "a.png").write_bytes(b"mine")
    with pytest.raises(InvalidRequest, match="has files of no batch"):
        run(source, folder)
    assert media(folder) == {"a.png": b"mine"} and not (folder / "journal.jsonl").exists()
    assert run(source, folder, restart=True).ok == 3


def test_only_failed_lines_run_again(tmp_path: Path) -> None:
    source, folder, model = write_input(tmp_path / "in.jsonl", LINES), tmp_path / "out", FakePictureModel()
    run(source, folder)
    run(source, folder, model, retry_failed=True)
    assert [request["prompt"] for request in model.requests] == ["boom"]


def test_a_journal_cannot_name_files_elsewhere() -> None:
    names = ["media/a.png", "media/../x", "/etc/passwd", "media/.lock", "media/a/b", "../media/a.png", 5, "media/"]
    assert list(files_of({"files": names})) == ["media/a.png"]
    assert list(files_of({"files": "media/a.png"})) == list(files_of({})) == []


IDS = st.text(max_size=80) | st.from_regex(r"[A-Za-z0-9._-]{1,70}", fullmatch=True) | st.integers()


@given(st.lists(IDS, max_size=8, unique_by=str))
def test_any_ids_have_safe_names_of_their_own(ids: list[str | int]) -> None:
    names = [f"{safe_name(line_id)}{number}.png".lower() for line_id in ids for number in ("", ".1", ".2", ".10")]
    assert len(set(names)) == len(names)
    for name in names:
        assert len(name) < 100 and name.isascii() and not name.startswith((".", "-"))
        assert os.path.basename(name) == name and name.isprintable() and " " not in name


@pytest.mark.parametrize(
    ("line_id", "name"),
    [("a1", "a1"), ("img_07-b", "img_07-b"), (5, "5"), ("line-7", "line-7")],
)
def test_plain_ids_are_names(line_id: str | int, name: str) -> None:
    assert safe_name(line_id) == name


@pytest.mark.parametrize("line_id", ["A1", "..", "", "a.1", "a-", "-5", "con.\u00e9", "a" * 65, "a\n"])
def test_other_ids_get_a_hash(line_id: str) -> None:
    stem, dot, digest = safe_name(line_id).rpartition(".")
    assert dot and len(digest) == 12 and stem and "." not in stem


KILLED = """
import os, sys
from pathlib import Path
sys.path[:0] = sys.argv[3:]
from fake_pictures import FakePictureModel
from kamado.batch import pictures, runner
from kamado.media import pictures as files

saved, save = [], files.save_picture

def deadly(image, path, recipe):
    save(image, path, recipe)
    saved.append(path)
    if len(saved) == 3:
        os.kill(os.getpid(), 9)

files.save_picture = deadly
source, folder = Path(sys.argv[1]), Path(sys.argv[2])
answers = pictures.PictureAnswers(folder, source.parent)
with runner.open_batch(source, folder, identity={"model": "fake"}, answers=answers) as batch:
    if not batch.is_answered:
        batch.run(FakePictureModel())
    batch.finish()
"""


def test_killed_between_a_file_and_the_journal(tmp_path: Path) -> None:
    """The fifth picture of eight lines, and so on: the file is there, its line is not; it is made again."""
    source = write_input(tmp_path / "in.jsonl", [{"id": f"p{i}", "prompt": str(i), "n": 1 + i % 2} for i in range(8)])
    run(source, tmp_path / "calm")
    folder = tmp_path / "killed"
    statuses = []
    while not statuses or statuses[-1] != 0:
        command = [sys.executable, "-c", KILLED, source, folder, *filter(None, sys.path)]
        statuses.append(subprocess.run(command, check=False, timeout=120, capture_output=True).returncode)
        assert len(statuses) < 12
    assert statuses.count(-9) >= 4
    assert results(folder) == results(tmp_path / "calm") and media(folder) == media(tmp_path / "calm")
