"""`kamado batch` over a fake model that makes pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fake_model import FakeModel, FakeRuntime
from fake_pictures import FakePictureModel, draw

from .conftest import Kamado


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text('{"id": "a", "prompt": "a cat"}\n{"id": "b", "prompt": "a dog", "steps": 9, "n": 2}\n')
    return path


def test_a_batch(kamado: Kamado, pictures: FakePictureModel, source: Path, tmp_path: Path) -> None:
    args = ("batch", "fake", str(source), "-o", str(tmp_path / "out"), "--steps", "3", "--option", "clip_skip=1")
    done = kamado(*args)
    assert done.status == 0 and done.out == f"{tmp_path / 'out' / 'results.jsonl'}\n"
    assert "2 lines" in done.err and "3 pictures" in done.err and "pictures/s" in done.err
    assert [(request["steps"], request["clip_skip"]) for request in pictures.requests] == [(3, 1), (9, 1)]
    assert sorted(path.name for path in (tmp_path / "out" / "media").iterdir()) == ["a.png", "b.1.png", "b.2.png"]
    again = json.loads(kamado(*args, "--json").out)
    assert again["ok"] == 2 and again["answered_earlier"] == 2 and again["pictures"] == 0
    assert "completion_tokens" not in again and len(pictures.requests) == 2


def test_a_finished_batch_needs_no_model(
    kamado: Kamado, pictures: FakePictureModel, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ("batch", "fake", str(source), "-o", str(tmp_path / "out"))
    assert kamado(*args).status == 0
    monkeypatch.setattr("kamado.cli.batch.abilities", lambda *_: pytest.fail("nobody needs to know"))
    assert kamado(*args).status == 0
    assert len(pictures.requests) == 2


def test_input_pictures_of_all_lines(
    kamado: Kamado, pictures: FakePictureModel, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    draw(1).save("x.png")
    args = ("batch", "fake", str(source), "-o", str(tmp_path / "out"), "--image", "x.png")
    assert kamado(*args).status == 0
    assert [request["image"] for request in pictures.requests] == [str(tmp_path / "here" / "x.png")] * 2
    assert kamado(*args, "--image", "absent.png").status == 2


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--temperature", "1"), "--temperature is for text models"),
        (("--width", "0"), "width must be"),
        (("--format", "gif"), "gif"),
    ],
)
def test_options_that_cannot_be(
    args: tuple[str, ...], words: str, kamado: Kamado, pictures: FakePictureModel, source: Path, tmp_path: Path
) -> None:
    done = kamado("batch", "fake", str(source), "-o", str(tmp_path / "out"), *args)
    assert done.status == 2 and words in done.err
    assert pictures.requests == [] and not (tmp_path / "out").exists()


def test_options_of_pictures_for_a_text_model(
    kamado: Kamado, model: FakeModel, runtime: FakeRuntime, source: Path, tmp_path: Path
) -> None:
    for args, words in ((("--steps", "3"), "picture models"), (("--format", "png"), "models that make files")):
        done = kamado("batch", "fake", str(source), "-o", str(tmp_path / "out"), *args)
        assert done.status == 2 and f"{args[0]} is for {words}" in done.err
    assert runtime.loaded == [] and model.requests == []


def test_a_folder_with_a_batch_of_texts(kamado: Kamado, runtime: FakeRuntime, source: Path, tmp_path: Path) -> None:
    source.write_text('{"prompt": "hi"}\n')
    args = ("batch", "fake", str(source), "-o", str(tmp_path / "out"))
    assert kamado(*args).status == 0
    runtime.model = FakePictureModel()
    done = kamado(*args, "--retry-failed")
    assert done.status == 2 and "another" in done.err and runtime.model.requests == []
    assert not (tmp_path / "out" / "media").exists()
