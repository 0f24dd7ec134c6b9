"""`kamado grid` over a fake model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fake_model import FakeModel, FakeRuntime
from fake_pictures import FakePictureModel, draw
from kamado.media.pictures import open_picture
from kamado.media.recipes import read_recipe
from typed import Kamado

AXES = (
    "--axis",
    "prompt=a cat",
    "--axis",
    "prompt=a dog, asleep",
    "--axis",
    "seed=1..3",
    "--width",
    "16",
    "--height",
    "16",
)


def test_a_grid(kamado: Kamado, pictures: FakePictureModel, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = kamado("grid", "fake", "-o", str(out), *AXES, "--json")
    assert (done.status, done.err) == (0, "")
    document = json.loads(done.out)
    assert document["cells"] == document["ok"] == 6 and document["sheets"] == [str(out / "sheet-001.png")]
    index = json.loads((out / "index.json").read_text())
    assert [cell["values"] for cell in index["cells"]][3] == {"prompt": "a dog, asleep", "seed": 1}
    assert index["fixed"] == {"width": 16, "height": 16}
    for cell in index["cells"]:
        (name,) = cell["files"]
        assert open_picture(out / name).tobytes() == draw(cell["values"]["seed"], 16, 16).tobytes()
        assert read_recipe(out / name)["options"]["prompt"] == cell["values"]["prompt"]
    with Image.open(out / "sheet-001.png") as sheet:
        assert sheet.width > 3 * 256


def test_it_goes_on_where_it_was(
    kamado: Kamado, pictures: FakePictureModel, runtime: FakeRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert kamado("grid", "fake", "-o", str(whole), *AXES).status == 0
    pictures.requests.clear()
    plain, calls = pictures.generate, iter(range(100))

    def interrupted(prompt: str | None = None, **options: Any) -> Any:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return plain(prompt, **options)

    monkeypatch.setattr(pictures, "generate", interrupted, raising=False)
    stopped = kamado("grid", "fake", "-o", str(cut), *AXES)
    assert stopped.status == 130 and "stopped after 3 of 6" in stopped.err
    assert not (cut / "index.json").exists() and not list(cut.glob("sheet-*"))
    done = kamado("grid", "fake", "-o", str(cut), *AXES)
    assert done.status == 0 and len(pictures.requests) == 6
    for name in ("index.json", "sheet-001.png", "grid.jsonl", "results.jsonl"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    pictures.requests.clear()
    assert kamado("grid", "fake", "-o", str(cut), *AXES, "--cell", "64").status == 0
    assert pictures.requests == []


def test_another_grid_in_the_same_folder(kamado: Kamado, pictures: FakePictureModel, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    assert kamado("grid", "fake", "a cat", "-o", out, "--axis", "seed=1..2").status == 0
    before = (tmp_path / "out" / "grid.jsonl").read_bytes()
    other = kamado("grid", "fake", "a cat", "-o", out, "--axis", "seed=1..3")
    assert other.status == 2 and "holds another grid" in other.err
    assert (tmp_path / "out" / "grid.jsonl").read_bytes() == before
    done = kamado("grid", "fake", "a cat", "-o", out, "--axis", "seed=1..3", "--restart")
    assert done.status == 0 and len(list((tmp_path / "out" / "media").iterdir())) == 3


def test_failed_cells_are_shown_and_tried_again(kamado: Kamado, pictures: FakePictureModel, tmp_path: Path) -> None:
    pictures.failing = frozenset({2})
    args = ("grid", "fake", "a cat", "-o", str(tmp_path / "out"), "--axis", "seed=1..3")
    done = kamado(*args)
    assert done.status == 1 and "1 of 3 cells failed" in done.err
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert [cell["status"] for cell in index["cells"]] == ["ok", "failed", "ok"]
    pictures.failing = frozenset()
    assert kamado(*args, "--retry-failed").status == 0


def test_without_seeds_all_cells_have_one(kamado: Kamado, pictures: FakePictureModel, tmp_path: Path) -> None:
    assert kamado("grid", "fake", "a cat", "-o", str(tmp_path / "out"), "--axis", "steps=2,3").status == 0
    assert [(request["seed"], request["steps"]) for request in pictures.requests] == [(0, 2), (0, 3)]


def test_input_pictures_as_an_axis(
    kamado: Kamado, pictures: FakePictureModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    draw(1).save("a.png")
    draw(2).save("b.png")
    args = ("grid", "fake", "a cat", "-o", "out", "--axis")
    assert kamado(*args, "image=a.png,b.png").status == 0
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert index["axes"] == [{"name": "image", "values": ["a.png", "b.png"]}]
    assert read_recipe(tmp_path / "out" / "media" / "0001.png")["inputs"]["image"]
    absent = kamado("grid", "fake", "a cat", "-o", "other", "--axis", "image=a.png,none.png")
    assert absent.status == 2 and "--axis image: none.png does not exist" in absent.err
    assert not (tmp_path / "other").exists()


def test_a_folder_that_cannot_be_made(kamado: Kamado, pictures: FakePictureModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "x"):
        done = kamado("grid", "fake", "a cat", "-o", str(folder), "--axis", "seed=1..2")
        assert done.status == 2 and f"{tmp_path / 'file'} is a file" in done.err
    assert pictures.requests == []


def test_texts(kamado: Kamado, texts: FakeModel, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = kamado(
        "grid",
        "fake",
        "-o",
        str(out),
        "--axis",
        "prompt=one two",
        "--axis",
        "prompt=three",
        "--axis",
        "temperature=0,1",
    )
    assert done.status == 0, done.err
    index = json.loads((out / "index.json").read_text())
    assert all(cell["text"] for cell in index["cells"]) and (out / "sheet-001.png").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "a grid needs axes"),
        (("--axis", "seed"), "write it like seed=1..8"),
        (("--axis", "seed=1,1"), "twice"),
        (("--axis", "seed=1..2", "--seed", "3"), "cannot have one value for all"),
        (("--axis", "seed=1..2", "--n", "2"), "leave --n out"),
        (("--axis", "steps=4,0"), "--axis steps: steps must be"),
        (("--axis", "seed=1,-5"), "--axis seed: seed"),
        (("--axis", "temperature=0,1"), "--axis temperature: --temperature is for text models"),
        (("--axis", "prompt=[1]"), "--axis prompt: 1 is no text"),
        (("--axis", "seed=1..2", "--format", "gif"), "--format gif"),
        (("--axis", "seed=1..2", "--cell", "5000"), "5000"),
        (("--axis", "seed=1,2", "--axis", "unknown=null,3"), "the cell with seed 1, unknown 3: FakePipeline takes no"),
    ],
)
def test_what_makes_no_grid(
    args: tuple[str, ...], words: str, kamado: Kamado, pictures: FakePictureModel, tmp_path: Path
) -> None:
    prompt = () if any(arg.startswith("prompt") for arg in args) else ("a cat",)
    done = kamado("grid", "fake", *prompt, "-o", str(tmp_path / "out"), *args)
    assert done.status == 2 and words in done.err and len(done.err.splitlines()) <= 2
    assert pictures.requests == [] and not (tmp_path / "out").exists()
