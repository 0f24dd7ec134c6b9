"""`kamado run` over a fake model that makes pictures."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fake_model import FakeModel, FakeRuntime
from fake_pictures import FakePictureModel, draw
from kamado.cli.output import Output
from kamado.cli.pictures import slug
from kamado.media.pictures import open_picture, read_recipe

from .conftest import Kamado


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_picture_into_a_file(kamado: Kamado, pictures: FakePictureModel, runtime: FakeRuntime) -> None:
    done = kamado("run", "fake", "a red heart", "--seed", "7", "--steps", "3", "-o", "x.png")
    assert (done.status, done.out, done.err) == (0, "x.png\n", "")
    assert pictures.requests == [{"prompt": "a red heart", "seed": 7, "steps": 3}]
    assert open_picture("x.png").tobytes() == draw(7).tobytes()
    assert read_recipe("x.png")["options"] == {"prompt": "a red heart", "seed": 7, "steps": 3, "n": 1}
    assert runtime.closed and runtime.loaded[0][1]["request"] == pictures.requests[0]


def test_every_option_arrives(kamado: Kamado, pictures: FakePictureModel) -> None:
    for name in ("a.png", "b.png", "mask.png", "edges.webp"):
        draw(1).save(name)
    options = (
        "--width 16 --height 24 --steps 5 --guidance 2.5 --negative blurry --scheduler euler --strength 0.5 --n 2 "
        "--image a.png --image b.png --mask mask.png --control edges.webp --option clip_skip=2 --option labels=[1,2] "
        "--control-scale 0.5 --control-scale 1 --weighting a1111 --adapter x.safetensors:0.5 --adapter org/y "
        "--adapter-image a.png --hires 2 --hires-strength 0.3 --hires-steps 4 --tiling --outpaint left=8 "
        "--outpaint feather=2 --step-cache 0.1"
    )
    done = kamado("run", "fake", "p", "-o", "x.png", "--seed", "1", *options.split(), "--json")
    (request,) = pictures.requests
    single = ("mask", "control", "ip_adapter_image")
    assert len(request.pop("image")) == 2 and all(request.pop(name).size == (8, 8) for name in single)
    assert request == {
        "prompt": "p",
        "width": 16,
        "height": 24,
        "steps": 5,
        "guidance": 2.5,
        "negative": "blurry",
        "scheduler": "euler",
        "strength": 0.5,
        "n": 2,
        "seed": 1,
        "clip_skip": 2,
        "labels": [1, 2],
        "control_scale": [0.5, 1.0],
        "weighting": "a1111",
        "adapters": ["x.safetensors:0.5", "org/y"],
        "hires": 2.0,
        "hires_strength": 0.3,
        "hires_steps": 4,
        "tiling": True,
        "step_cache": 0.1,
        "outpaint": {"left": 8, "feather": 2},
    }
    document = json.loads(done.out)
    assert done.err == "" and document["files"] == ["x-1.png", "x-2.png"] and document["seeds"] == [1, 2]
    assert document["request"]["image"] == ["a.png", "b.png"] and document["request"]["mask"] == "mask.png"
    assert document["finish_reason"] == "complete" and document["timings"]["total_s"] == 0.1
    names = {"model", "request", "files", "seeds", "failures", "finish_reason", "notes", "timings", "recipe"}
    assert set(document) == names and document["failures"] == []
    assert [open_picture(name).size for name in document["files"]] == [(16, 24)] * 2


@pytest.mark.usefixtures("pictures")
def test_files_without_a_name_replace_nothing(kamado: Kamado, folder: Path) -> None:
    args = ("run", "org/fake", "A red  HEART!", "--seed", "7")
    assert [kamado(*args).out for _ in range(3)] == [f"a-red-heart-7{end}.png\n" for end in ("", "-2", "-3")]
    assert kamado(*args, "--n", "2").out == "a-red-heart-7-4.png\na-red-heart-8.png\n"
    assert kamado("run", "org/fake", "?!", "--seed", "1", "-q").out == "fake-1.png\n"
    assert len(list(folder.iterdir())) == 6 and all(Image.open(path).size == (8, 8) for path in folder.iterdir())


@pytest.mark.parametrize("name", ["x.webp", "x.JPG", "x.jpeg"])
@pytest.mark.usefixtures("pictures")
def test_the_suffix_decides_the_format(name: str, kamado: Kamado) -> None:
    assert kamado("run", "fake", "p", "-o", name).status == 0
    assert Image.open(name).format == {"x.webp": "WEBP"}.get(name, "JPEG")
    assert read_recipe(name)["options"]["prompt"] == "p"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("-o", "x.txt"), "use .png"),
        (("-o", "x"), "use .png"),
        (("-o", "no/x.png"), "no folder no"),
        (("-o", "."), "is a folder"),
        (("-o", "x.png", "--n", "2"), "x-2.png is a folder"),
        (("--image", "absent.png"), "absent.png does not exist"),
        (("--image", "text.png"), "no picture of a kind"),
        (("--mask", "."), "is no file"),
        (("--width", "0"), "width must be"),
        (("--steps", "-1"), "steps must be"),
        (("--strength", "0"), "strength must be"),
        (("--guidance", "nan"), "guidance must be"),
        (("--n", "2000"), "n must be a whole number from 1 to 1024"),
        (("--seed", str(2**63)), "seed must be"),
        (("--negative", "\udcff"), "--negative is not valid UTF-8"),
        (("--temperature", "1"), "--temperature is for text models, and fake makes pictures"),
        (("--max-tokens", "9"), "--max-tokens is for text models"),
        (("--raw",), "--raw is for text models"),
        (("--stop", "x"), "--stop is for text models"),
        (("--outpaint", "left"), "SIDE=PIXELS"),
        (("--outpaint", "left=-1"), "SIDE=PIXELS"),
        (("--outpaint", "left=1", "--outpaint", "left=2"), "each side once"),
        (("--outpaint", "up=1"), "outpaint"),
        (("--option", "x"), "NAME=JSON"),
        (("--option", "a-b=1"), "NAME=JSON"),
        (("--option", "x=NaN"), "is not JSON"),
        (("--option", "x=red"), "is not JSON"),
        (("--option", "x=null"), "leave it out"),
        (("--option", "self=1"), "cannot be used"),
        (("--option", "seed=1"), "it is --seed"),
        (("--option", "x=1", "--option", "x=2"), "x was given already"),
        (("--steps", "2", "--option", "num_inference_steps=2"), "steps was given already"),
        (("--option", "preview_every=2"), "--preview DIR says where"),
        (("--preview", "text.png"), "is a file"),
        (("--preview", "text.png/x"), "cannot be made"),
    ],
)
def test_what_cannot_be_is_found_out_before_a_model_is_loaded(
    args: tuple[str, ...], words: str, kamado: Kamado, pictures: FakePictureModel, runtime: FakeRuntime
) -> None:
    Path("text.png").write_text("no picture")
    Path("x-2.png").mkdir()
    done = kamado("run", "fake", "a prompt", *args)
    assert done.status == 2 and words in done.err and done.out == ""
    assert 1 <= len(done.err.splitlines()) <= 2
    assert runtime.loaded == [] and pictures.requests == []
    assert sorted(os.listdir()) == ["text.png", "x-2.png"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.usefixtures("pictures")
def test_a_folder_that_cannot_be_written_to_is_found_out_first(kamado: Kamado, runtime: FakeRuntime) -> None:
    Path("locked").mkdir(mode=0o500)
    done = kamado("run", "fake", "p", "-o", "locked/x.png")
    assert done.status == 2 and "cannot be written to" in done.err and runtime.loaded == []


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
@pytest.mark.parametrize("kind", ["runtime", "pictures"])
def test_a_place_that_takes_no_files_is_found_out_first(
    kamado: Kamado, runtime: FakeRuntime, kind: str, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(kind)
    done = kamado("run", "fake", "p", "-o", "/proc/x.png" if kind == "pictures" else "/proc/x.txt")
    assert done.status == 2 and "the folder /proc cannot be written to: " in done.err and runtime.loaded == []


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--width", "64"), "--width is for picture models, and fake makes text"),
        (("--option", "labels=[1]"), "--option labels is for picture models"),
        (("--adapter", "x"), "--adapter is for picture models"),
        (("--adapter-image", "x.png"), "--adapter-image is for picture models"),
        (("--hires-steps", "2"), "--hires-steps is for picture models"),
        (("--preview", "there"), "--preview is for picture models"),
        (("--option", 'prompt="x"'), "--option prompt cannot be used: it is an argument"),
        (("--n", "200"), "n must be a whole number from 1 to 128"),
    ],
)
def test_a_text_model_takes_no_options_of_pictures(
    args: tuple[str, ...], words: str, kamado: Kamado, model: FakeModel, runtime: FakeRuntime
) -> None:
    done = kamado("run", "fake", "hi", *args)
    assert done.status == 2 and words in done.err
    assert runtime.loaded == [] and model.requests == []


def test_a_model_of_another_kind(kamado: Kamado, pictures: FakePictureModel, runtime: FakeRuntime) -> None:
    pictures.capabilities = ("video",)
    done = kamado("run", "fake", "hi", "-o", "x.png")
    assert done.status == 2 and "this makes video files, which end in .mp4" in done.err and runtime.loaded == []
    done = kamado("run", "fake", "hi", "--voice", "anna")
    assert done.status == 2 and "--voice cannot be used with fake, which makes video" in done.err


def test_where_the_prompt_comes_from(
    kamado: Kamado, pictures: FakePictureModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures.needs_prompt = False
    monkeypatch.setattr("kamado.cli.prompt._is_file_or_pipe", lambda stream: True)
    for args, stdin in (((), b"from a pipe\r\n"), (("",), b"left alone"), (("a",), b"left alone"), ((), b"")):
        assert kamado("run", "fake", *args, stdin=stdin).status == 0
    assert [request.get("prompt") for request in pictures.requests] == ["from a pipe", "", "a", None]
    assert kamado("run", "fake", stdin=b"\xff").status == 2


def test_a_picture_model_never_chats(
    kamado: Kamado, pictures: FakePictureModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kamado.cli.run._is_terminal", lambda stream: True)
    monkeypatch.setattr("kamado.cli.output.Output.is_terminal", True)
    monkeypatch.setattr("kamado.cli.prompt._is_file_or_pipe", lambda stream: False)
    done = kamado("run", "fake")
    assert done.status == 2 and "give a prompt" in done.err
    pictures.needs_prompt = False
    assert kamado("run", "fake", "--seed", "3").out == "fake-3.png\n"


@pytest.mark.usefixtures("pictures")
def test_previews(kamado: Kamado) -> None:
    assert kamado("run", "fake", "p", "-o", "x.png", "--steps", "3", "--preview", "new/one").status == 0
    assert sorted(os.listdir("new/one")) == [f"preview-{step:04}.png" for step in (1, 2, 3)]
    assert open_picture("new/one/preview-0002.png").tobytes() == draw(2).tobytes()
    args = ("--steps", "4", "--n", "2", "--option", "preview_every=2", "--preview", "two")
    assert kamado("run", "fake", "p", "-o", "x.png", *args).status == 0
    assert sorted(os.listdir("two")) == [f"preview-{index}-{step:04}.png" for index in (1, 2) for step in (2, 4)]


def test_a_failure_leaves_the_file_that_was_there(kamado: Kamado, pictures: FakePictureModel, folder: Path) -> None:
    draw(3).save("x.png")
    before = Path("x.png").read_bytes()
    assert kamado("run", "fake", "boom", "-o", "x.png").status == 1
    assert kamado("run", "fake", "boom").status == 1
    pictures.interrupt_at = 2
    done = kamado("run", "fake", "a cat", "-o", "x.png")
    assert (done.status, done.out, done.err) == (130, "", "")
    assert pictures.jobs[-1].cancelled
    assert os.listdir(folder) == ["x.png"] and Path("x.png").read_bytes() == before


def test_pictures_that_were_made_are_written_though_others_failed(kamado: Kamado, pictures: FakePictureModel) -> None:
    pictures.failing, pictures.notes = frozenset({9}), ("the prompt was cut",)
    args = ("run", "fake", "a cat", "--seed", "7", "--n", "4")
    told = "kamado: picture 3 of 4 (seed 9) was not made: it is black\n"
    done = kamado(*args, "-o", "x.png")
    assert (done.status, done.out) == (1, "x-1.png\nx-2.png\nx-4.png\n")
    assert done.err == f"the prompt was cut\n{told}"
    assert sorted(os.listdir()) == ["x-1.png", "x-2.png", "x-4.png"]
    assert open_picture("x-4.png").tobytes() == draw(10).tobytes()
    assert read_recipe("x-4.png")["options"]["seed"] == 10

    named = kamado(*args, "--json", "-q")
    document = json.loads(named.out)
    assert (named.status, named.err) == (1, told)
    assert document["files"] == ["a-cat-7.png", "a-cat-8.png", "a-cat-10.png"] and document["seeds"] == [7, 8, 10]
    assert document["failures"] == [{"index": 2, "seed": 9, "error": "it is black"}]
    assert document["notes"] == ["the prompt was cut", told.removeprefix("kamado: ").strip()]

    pictures.failing = frozenset(range(7, 11))
    before = sorted(os.listdir())
    nothing = kamado(*args, "-o", "y.png")
    assert (nothing.status, nothing.out, nothing.err) == (1, "", "kamado: it is black\n")
    assert sorted(os.listdir()) == before


@pytest.mark.usefixtures("pictures")
def test_the_bar_counts_the_steps_of_all_pictures(kamado: Kamado, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int | None]] = []
    monkeypatch.setattr(Output, "shows_progress", True)
    monkeypatch.setattr("kamado.cli.output._bar", lambda stream, unit: FakeBar(unit, seen))
    assert kamado("run", "fake", "p", "--n", "3", "--steps", "2", "-o", "x.png").status == 0
    assert seen == [(1, 6), (2, 6), (3, 6), (4, 6), (5, 6), (6, 6)]


class FakeBar:
    """What is shown of it."""

    def __init__(self, unit: str, seen: list[tuple[int, int | None]]) -> None:
        self._seen = seen
        self._counts = unit == "steps"

    def __enter__(self) -> None:
        """Nothing to show."""

    def __exit__(self, *_: object) -> None:
        """Nothing to hide."""

    def add_task(self, label: str, *, total: int | None, detail: str) -> int:
        return 1

    def update(self, task: int, *, completed: int, detail: str, total: int | None = None) -> None:
        if self._counts:
            self._seen.append((completed, total))


def test_notes_are_passed_on(kamado: Kamado, pictures: FakePictureModel) -> None:
    pictures.notes = ("the prompt was cut",)
    done = kamado("run", "fake", "p", "-o", "x.png", "--json")
    assert done.err == "the prompt was cut\n" and json.loads(done.out)["notes"] == ["the prompt was cut"]
    assert kamado("run", "fake", "p", "-o", "x.png", "-q").err == ""


def test_libraries_are_quiet_while_a_model_runs_unless_asked(
    kamado: Kamado, pictures: FakePictureModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    loggers = [logging.getLogger(name) for name in ("transformers", "diffusers")]
    before, seen = [logger.level for logger in loggers], []
    real = FakePictureModel.submit

    def submit(self: FakePictureModel, *args: Any, **options: Any) -> Any:
        seen.append([logger.getEffectiveLevel() for logger in loggers])
        return real(self, *args, **options)

    monkeypatch.setattr(FakePictureModel, "submit", submit)
    assert kamado("run", "fake", "p", "-o", "x.png").status == 0
    assert kamado("run", "fake", "boom", "-o", "x.png").status == 1
    assert [logger.level for logger in loggers] == before and seen == [[logging.ERROR] * 2] * 2
    kamado("run", "fake", "p", "-o", "x.png", "-v")
    assert seen[-1] == [logger.getEffectiveLevel() for logger in loggers]


@pytest.mark.usefixtures("pictures")
def test_v_says_what_was_made(kamado: Kamado) -> None:
    assert "1 x 8 x 8 pixels in 100 ms, seed 5" in kamado("run", "fake", "p", "--seed", "5", "-v").err


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("A red heart, please!", "a-red-heart-please"),
        ("\u6f22\u5b57 und \u00c4pfel", "\u6f22\u5b57-und-\u00e4pfel"),
        ("../../etc/passwd", "etc-passwd"),
        ("word " * 40, "word-word-word-word-word-word-word-word-word-word-word-word"),
        ("x" * 200, "x" * 60),
        ("\udcff\n\x1b[31m", "31m"),
        (" ... ", ""),
    ],
)
def test_slugs(text: str, name: str) -> None:
    assert slug(text) == name


@given(st.text())
def test_any_prompt_gives_a_name_that_a_file_can_have(text: str) -> None:
    name = slug(text)
    assert len(name.encode()) <= 60 and "/" not in name and "\0" not in name and name == name.strip("-. ")


def test_help_names_every_option(kamado: Kamado) -> None:
    shown = kamado("run", "--help").out
    sizes = ("width", "height", "steps", "guidance", "negative", "scheduler", "strength")
    assert all(f"--{name} " in shown for name in (*sizes, "image", "mask", "control", "option", "preview", "n", "seed"))
