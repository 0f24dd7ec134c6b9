"""`kamado replay` over a fake model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fake_model import FakeRuntime
from fake_pictures import FakePictureModel, draw
from kamado.errors import ModelNotFound
from kamado.media.pictures import open_picture, read_recipe, save_picture

from .conftest import Kamado


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a picture."""
    monkeypatch.chdir(tmp_path)
    FakePictureModel().generate(prompt="a cat", seed=7).save("x.png")
    return tmp_path


def test_equal(kamado: Kamado, pictures: FakePictureModel, runtime: FakeRuntime) -> None:
    done = kamado("replay", "x.png")
    assert (done.status, done.out) == (0, "x-replay.png\n")
    assert done.err.splitlines() == [
        "the recipe in x.png asks fake for it, with seed 7",
        "equal: every pixel is that of x.png",
    ]
    assert runtime.loaded[0][0] == "fake" and runtime.loaded[0][1]["dtype"] == "float32"
    assert pictures.requests == [{"prompt": "a cat", "seed": 7, "n": 1}]
    named = kamado("replay", "x.png", "-o", "y.webp", "--json", "-q")
    document = json.loads(named.out)
    assert named.err == "" and document["files"] == ["y.webp"] and document["equal"] is True
    assert document["differences"] == [] and document["seeds"] == [7] and document["recipe"]["dtype"] == "float32"


def test_loading_is_that_of_the_recipe_unless_typed(
    kamado: Kamado, pictures: FakePictureModel, runtime: FakeRuntime
) -> None:
    save_picture(draw(7), "x.png", {**read_recipe("x.png"), "dtype": "bfloat16", "quant": "int8"})
    kamado("replay", "x.png", "--offline")
    assert runtime.loaded[-1][1] | {"progress": None} == runtime.loaded[-1][1] | {
        "dtype": "bfloat16",
        "quant": "int8-weight-only",  # which the name meant in recipes that hold it
        "offline": True,
        "allow_code": None,
        "progress": None,
    }
    pictures.changes = {"dtype": "float32"}
    done = kamado("replay", "x.png", "--dtype", "float32", "--quant", "nf4", "--model", "my/fake")
    assert runtime.loaded[-1][0] == "my/fake"
    assert runtime.loaded[-1][1]["dtype"] == "float32" and runtime.loaded[-1][1]["quant"] == "nf4"
    assert "different now: dtype: bfloat16 then, float32 now" in done.err and done.status == 0


def test_an_edited_picture_is_status_1(kamado: Kamado, pictures: FakePictureModel) -> None:
    picture, recipe = open_picture("x.png"), read_recipe("x.png")
    picture.putpixel((0, 0), (1, 2, 3))
    save_picture(picture, "x.png", recipe)
    done = kamado("replay", "x.png")
    assert done.status == 1 and done.out == "x-replay.png\n" and Path("x-replay.png").exists()
    assert "not equal: 1 pixel differs" in done.err and "x.png was changed after it was made" in done.err
    pictures.changes = {"device": "cuda:0"}
    other = kamado("replay", "x.png")
    assert other.status == 0 and "different now: device: cpu then, cuda:0 now" in other.err
    assert "was changed" not in other.err
    save_picture(picture.resize((4, 4)), "x.png", recipe)
    pictures.changes = {}
    smaller = kamado("replay", "x.png", "--json")
    assert smaller.status == 1 and "the size is another one" in smaller.err
    assert json.loads(smaller.out)["same_size"] is False


def test_rounding_of_a_batch_is_status_0_and_said(kamado: Kamado, pictures: FakePictureModel) -> None:
    pictures.noise = 1
    alone = kamado("replay", "x.png", "--json")
    assert alone.status == 1 and "1 pixel differs, by up to 1 of 255" in alone.err and "rounding" not in alone.err
    document = json.loads(alone.out)
    assert document["rounding"] == 0 and document["as_expected"] is False
    save_picture(draw(7), "x.png", {**read_recipe("x.png"), "batched": True})
    done = kamado("replay", "x.png", "--json")
    assert done.status == 0 and "1 pixel differs, by up to 1 of 255" in done.err
    assert "that is rounding: it was made in a batch with others" in done.err
    document = json.loads(done.out)
    assert document["rounding"] == 1 and document["as_expected"] is True and document["equal"] is False
    pictures.noise = 2
    more = kamado("replay", "x.png")
    assert more.status == 1 and "a batch moves no value by more than 1, and nothing that the recipe" in more.err


def test_local_files_are_named(kamado: Kamado, pictures: FakePictureModel, runtime: FakeRuntime) -> None:
    local = {
        "model": {"reference": "./mine"},
        "base": {"reference": "./base"},
        "components": {"vae": {"reference": "./vae"}},
        "adapters": [{"reference": "./a.safetensors", "weight": 0.5}],
    }
    save_picture(draw(7), "x.png", {**read_recipe("x.png"), **local})
    args = ["replay", "x.png"]
    for option, value in (("--adapter", "b"), ("--base", "c"), ("--component", "vae=d"), ("--model", "fake")):
        done = kamado(*args)
        assert done.status == 4 and "which is not here" in done.err and f"({option}" in done.err
        args += [option, value]
    assert runtime.loaded == [] and kamado(*args).status == 0
    reference, options = runtime.loaded[0]
    assert reference == "fake" and options["base"] == "c" and options["components"] == {"vae": ["d"]}
    assert pictures.requests[0]["adapters"] == [{"reference": "b", "weight": 0.5}]
    many = kamado(*args, "--adapter", "e")
    assert many.status == 2 and "with 1 adapters ('./a.safetensors'), not 2" in many.err


@pytest.mark.usefixtures("pictures")
def test_jpeg_cannot_tell(kamado: Kamado) -> None:
    save_picture(draw(7), "x.jpg", read_recipe("x.png"))
    done = kamado("replay", "x.jpg", "--json")
    assert done.status == 0 and "loses detail" in done.err and json.loads(done.out)["equal"] is None


@pytest.mark.usefixtures("pictures")
def test_input_pictures(kamado: Kamado) -> None:
    FakePictureModel().generate(prompt="a cat", seed=7, image=draw(1), mask=draw(2)).save("made.png")
    draw(1).save("in.png")
    draw(2).save("mask.png")
    missing = kamado("replay", "made.png", "--image", "in.png")
    assert missing.status == 2 and "give it (--mask)" in missing.err
    wrong = kamado("replay", "made.png", "--image", "mask.png", "--mask", "mask.png")
    assert wrong.status == 2 and "is not the one that made.png was made from" in wrong.err
    assert kamado("replay", "made.png", "--image", "in.png", "--mask", "mask.png").status == 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("absent.png",), "does not exist"),
        (("plain.png",), "carries no recipe"),
        (("x.png", "-o", "x.png"), "compared with"),
        (("x.png", "-o", "y.txt"), "use .png"),
        (("x.png", "-o", "no/y.png"), "does not exist"),
        (("x.png", "--image", "plain.png"), "made without an input picture"),
        (("x.png", "y.png"), "unexpected extra argument"),
        ((), "Missing argument"),
    ],
)
def test_what_cannot_be(
    args: tuple[str, ...], words: str, kamado: Kamado, pictures: FakePictureModel, runtime: FakeRuntime, folder: Path
) -> None:
    draw(1).save("plain.png")
    done = kamado("replay", *args)
    assert done.status == 2 and words in done.err and done.out == ""
    assert runtime.loaded == [] and pictures.requests == []
    assert sorted(path.name for path in folder.iterdir()) == ["plain.png", "x.png"]


@pytest.mark.usefixtures("pictures")
def test_a_model_that_is_not_here(kamado: Kamado, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*_: object) -> None:
        raise ModelNotFound("no model is called 'fake'")

    monkeypatch.setattr("kamado.cli.replay.abilities", nowhere)
    done = kamado("replay", "x.png")
    assert done.status == 4 and "x.png was made with it; name it as it is called here (--model)" in done.err


def test_ctrl_c_leaves_nothing(kamado: Kamado, pictures: FakePictureModel, folder: Path) -> None:
    pictures.interrupt_at = 1
    assert kamado("replay", "x.png").status == 130
    assert [path.name for path in folder.iterdir()] == ["x.png"]
