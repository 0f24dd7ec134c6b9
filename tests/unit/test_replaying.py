"""Pictures made again from their recipes, which may be anybody's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fake_pictures import FakePictureModel, draw
from kamado.errors import HubUnreachable, InvalidRequest, ModelNotFound
from kamado.media.compare import Comparison, compare_pictures, keeps_pixels
from kamado.media.inputs import described_inputs
from kamado.media.pictures import open_picture, read_recipe, save_picture
from kamado.replaying import Replay, Replayable, replayable
from media_recipes import ODD_RECIPES


def make(path: Path, model: FakePictureModel | None = None, **options: Any) -> Path:
    """A picture of the fake model's at `path`."""
    (model or FakePictureModel()).generate(**{"prompt": "a cat", "seed": 7, **options}).save(path)
    return path


def again(found: Replayable, model: FakePictureModel | None = None) -> Replay:
    return found.finish((model or FakePictureModel()).generate(**found.options))


def with_recipe(path: Path, changes: dict[str, Any]) -> Path:
    """The file with another recipe in it."""
    save_picture(open_picture(path), path, {**read_recipe(path), **changes})
    return path


@pytest.mark.parametrize("name", ["x.png", "x.webp", "x.PNG"])
def test_equal_pixels(tmp_path: Path, name: str) -> None:
    source = make(tmp_path / name, width=16)
    model = FakePictureModel()
    found = replayable(source)
    assert found.reference == "fake" and found.loading == {"dtype": "float32", "quant": "none"}
    done = again(found, model)
    assert model.requests == [{"prompt": "a cat", "width": 16, "seed": 7, "n": 1}]
    assert done.equal is True and done.as_expected and done.differences == ()
    assert done.path == source.with_name(f"x-replay{source.suffix}")
    assert open_picture(done.path).tobytes() == open_picture(source).tobytes()
    assert read_recipe(done.path) == read_recipe(source)
    assert again(replayable(source)).path.name == f"x-replay-2{source.suffix}"


def test_jpeg_and_lossy_webp_cannot_tell(tmp_path: Path) -> None:
    jpeg = make(tmp_path / "x.jpg")
    lossy = tmp_path / "lossy.webp"
    save_picture(draw(7), lossy, read_recipe(jpeg), lossless=False)
    for source in (jpeg, lossy):
        done = again(replayable(source))
        assert done.equal is None and done.as_expected and done.path.suffix == source.suffix


def test_the_suffix_may_lie_or_be_missing(tmp_path: Path) -> None:
    made = make(tmp_path / "x.png").rename(tmp_path / "x")
    assert again(replayable(made)).path.name == "x-replay.png"
    lying = made.rename(tmp_path / "x.jpg")
    assert again(replayable(lying)).equal is True


def test_an_edited_file_is_noticed(tmp_path: Path) -> None:
    source = make(tmp_path / "x.png")
    picture, recipe = open_picture(source), read_recipe(source)
    picture.putpixel((3, 4), (9, 9, 9))
    picture.putpixel((5, 4), (9, 9, 9))
    save_picture(picture, source, recipe)
    done = again(replayable(source, tmp_path / "y.png"))
    assert done.equal is False and not done.as_expected and done.path == tmp_path / "y.png"
    assert done.comparison.different == 2 and done.comparison.largest > 50
    save_picture(picture.resize((4, 4)), source, recipe)
    smaller = again(replayable(source, tmp_path / "y.png"))
    assert smaller.equal is False and not smaller.comparison.same_size and not smaller.as_expected


def test_one_that_was_made_alone_must_be_equal(tmp_path: Path) -> None:
    source = make(tmp_path / "x.png")
    assert "batched" not in read_recipe(source)
    off_by_one = again(replayable(source), FakePictureModel(noise=1))
    assert off_by_one.equal is False and off_by_one.comparison.largest == 1 and off_by_one.rounding == 0
    assert not off_by_one.as_expected
    assert again(replayable(source)).as_expected


@pytest.mark.parametrize("made_alone", [True, False])
def test_in_a_batch_then_or_now_rounding_is_no_surprise(tmp_path: Path, made_alone: bool) -> None:
    source = make(tmp_path / "x.png", FakePictureModel(batched=not made_alone))
    assert read_recipe(source).get("batched") is (None if made_alone else True)
    for noise, expected in ((0, True), (1, True), (2, False)):
        done = again(replayable(source), FakePictureModel(noise=noise, batched=made_alone))
        assert done.equal is (noise == 0) and done.rounding == 1 and done.as_expected is expected
    half = with_recipe(source, {"dtype": "bfloat16", "batched": True})
    for noise, expected in ((16, True), (17, False)):
        done = again(replayable(half), FakePictureModel(noise=noise, changes={"dtype": "bfloat16"}))
        assert done.rounding == 16 and done.as_expected is expected


def test_other_versions_are_no_surprise(tmp_path: Path) -> None:
    source = make(tmp_path / "x.png")
    newer = again(replayable(source), FakePictureModel(noise=2, changes={"kamado": "9.9", "device": "cuda:0"}))
    assert newer.equal is False and newer.as_expected and newer.rounding == 0
    assert newer.differences == ("device: cpu then, cuda:0 now", "kamado: 0.1.0 then, 9.9 now")
    elsewhere = with_recipe(source, {"hardware": "one", "threads": 1})
    moved = again(replayable(elsewhere), FakePictureModel(noise=2, changes={"hardware": "other", "threads": 2}))
    assert moved.as_expected and moved.differences == ("hardware: one then, other now", "threads: 1 then, 2 now")


def test_input_pictures_must_be_those_of_the_recipe(tmp_path: Path) -> None:
    draw(1).save(tmp_path / "in.png")
    draw(2).save(tmp_path / "mask.png")
    source = make(tmp_path / "x.png", image=[draw(1), draw(2)], mask=draw(2))
    pair = [tmp_path / "in.png", tmp_path / "mask.png"]
    done = again(replayable(source, inputs={"image": pair, "mask": tmp_path / "mask.png"}))
    assert done.equal and done.differences == ()
    for inputs, words in (
        ({}, "made from an input picture \\(image\\); give it \\(--image\\)"),
        ({"image": pair}, "input picture \\(mask\\); give it"),
        ({"image": pair[::-1], "mask": pair[1]}, "\\(image\\) is not the one"),
        ({"image": pair[:1], "mask": pair[1]}, "\\(image\\) is not the one"),
        ({"image": pair, "mask": pair[0]}, "\\(mask\\) is not the one"),
        ({"image": pair, "mask": pair[1], "control": pair[0]}, "made without an input picture \\(control\\)"),
        ({"image": tmp_path / "absent.png"}, "does not exist"),
        ({"images": pair}, "'images' is no input that"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            replayable(source, inputs=inputs)


def test_one_input_picture_in_another_format_is_the_same(tmp_path: Path) -> None:
    source = make(tmp_path / "x.png", image=draw(1))
    draw(1).save(tmp_path / "copy.webp", lossless=True)
    assert again(replayable(source, inputs={"image": tmp_path / "copy.webp"})).equal
    assert again(replayable(source, inputs={"image": [draw(1)]})).equal
    assert described_inputs({"image": draw(1), "mask": None}) == read_recipe(source)["inputs"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"options": {"prompt": "x", "image": "/etc/passwd"}}, "'image', which no recipe may have"),
        ({"options": {"prompt": "x", "mask_image": "/etc/passwd"}}, "no recipe may have"),
        ({"options": {"self": 1}}, "no recipe may have"),
        ({"options": {"a b": 1}}, "no recipe may have"),
        ({"options": None}, "holds no options"),
        ({"model": {}}, "does not say which model"),
        ({"inputs": {"a b": {"sha256": "00"}}}, "'a b', which this version cannot take"),
    ],
)
def test_recipes_that_cannot_be_followed(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        replayable(with_recipe(make(tmp_path / "x.png"), changes))


def test_a_recipe_chooses_no_number_of_pictures_no_deadline_and_no_previews(tmp_path: Path) -> None:
    options = {"prompt": "x", "seed": 7, "n": 1000, "deadline_s": 1e-9, "preview_every": 1}
    source = with_recipe(make(tmp_path / "x.png"), {"options": options})
    assert replayable(source).options == {"prompt": "x", "seed": 7, "n": 1}


def test_another_name_for_the_model(tmp_path: Path) -> None:
    source = make(tmp_path / "x.png")
    assert replayable(source, model="my/fake").reference == "my/fake"
    assert replayable(with_recipe(source, {"model": "odd"}), model="my/fake").reference == "my/fake"
    pinned = with_recipe(source, {"model": {"reference": "org/fake", "revision": "abc123"}})
    assert replayable(pinned).reference == "org/fake@abc123"
    advice = r"nobody\. .*x\.png was made with it; name it .* \(--model\)"
    with pytest.raises(ModelNotFound, match=advice), replayable(source).explained():
        raise ModelNotFound("nobody")
    with pytest.raises(HubUnreachable), replayable(source).explained():
        raise HubUnreachable("no network")
    with pytest.raises(ModelNotFound, match=r"^nobody$"), replayable(source, model="x").explained():
        raise ModelNotFound("nobody")


def test_adapters_of_the_recipe(tmp_path: Path) -> None:
    adapters = [{"reference": "style.safetensors", "weight": 0.5, "sha256": "00"}]
    source = with_recipe(make(tmp_path / "x.png"), {"adapters": adapters})
    with pytest.raises(ModelNotFound, match=r"the adapter 'style.safetensors', which is not here; .* \(--adapter\)"):
        replayable(source)
    (tmp_path / "style.safetensors").touch()
    found = replayable(source)
    assert found.options["adapters"] == [{"reference": str(tmp_path / "style.safetensors"), "weight": 0.5}]
    assert again(found).differences == ("adapter style.safetensors: missing, or other content now",)
    assert replayable(source, adapters=["a/b"]).options["adapters"] == [{"reference": "a/b", "weight": 0.5}]
    for places in (["a", "b"], ["a", "b", "c"]):
        with pytest.raises(InvalidRequest, match=r"with 1 adapters \('style.safetensors'\), not [23]; give each"):
            replayable(source, adapters=places)
    with pytest.raises(InvalidRequest, match=r"with 0 adapters \(none\), not 1"):
        replayable(make(tmp_path / "y.png"), adapters=["a"])


def test_components_of_the_recipe(tmp_path: Path) -> None:
    net = {"reference": "org/net#controlnet", "revision": "abc123", "files": {"a": "00"}}
    then = {"vae": {"reference": "./vae", "revision": None, "files": {"v": "11"}}, "controlnet": net, "checker": None}
    source = with_recipe(make(tmp_path / "x.png"), {"components": {**then, "odd": 5}})
    with pytest.raises(ModelNotFound, match=r"the vae './vae', which is not here; .* \(--component vae=PATH\)"):
        replayable(source)
    named = replayable(source, components={"vae": "my/vae"}).loading["components"]
    assert named == {"vae": "my/vae", "controlnet": "org/net@abc123#controlnet", "checker": None}
    (tmp_path / "vae").mkdir()
    found = replayable(source)
    assert found.loading["components"] == {**named, "vae": str(tmp_path / "vae")}
    now = {**then, "vae": {**then["vae"], "files": {"v": "22"}}, "checker": net, "new": net}
    assert set(again(found, FakePictureModel(changes={"components": now})).differences) == {
        "component vae file v: other content now",
        "component checker: another one now",
        "component odd: another one now",
        "component new: another one now",
    }


def test_several_controlnets_take_the_place_of_several(tmp_path: Path) -> None:
    then = {name: {"reference": "org/net", "files": {}} for name in ("controlnet", "controlnet_2", "text_encoder_2")}
    source = with_recipe(make(tmp_path / "x.png"), {"components": then})
    given = {"controlnet": ["a/b", "c/d"], "text_encoder": "e/f"}
    wanted = {"text_encoder_2": "org/net", **given}
    assert replayable(source, components=given).loading["components"] == wanted


def test_local_files_are_looked_for_here_and_beside_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, current = tmp_path / "pictures", tmp_path / "current"
    folder.mkdir()
    current.mkdir()
    monkeypatch.chdir(current)
    source = with_recipe(make(folder / "x.png"), {"model": {"reference": "./mine"}, "base": {"reference": "./base"}})
    for what, option in (("the base", "--base"), ("the model", "--model")):
        words = f"with {what} './{'base' if 'base' in what else 'mine'}', which is not here; .* \\({option}\\), or go"
        with pytest.raises(ModelNotFound, match=words):
            replayable(source)
        (folder / "base").mkdir(exist_ok=True)
    assert replayable(source, model="org/name").reference == "org/name"
    assert replayable(source, model="org/name", base="org/base").loading["base"] == "org/base"
    (folder / "mine").mkdir()
    beside = replayable(source)
    assert (beside.reference, beside.loading["base"]) == (str(folder / "mine"), str(folder / "base"))
    (current / "mine").mkdir()
    assert replayable(source).reference == "./mine"
    monkeypatch.chdir(folder)
    assert replayable("x.png").reference == "./mine"


@pytest.mark.parametrize("reference", ["./pipe#vae", "./pipe", "pipe.safetensors"])
def test_parts_of_local_files_are_found(tmp_path: Path, reference: str) -> None:
    source = with_recipe(make(tmp_path / "x.png"), {"components": {"vae": {"reference": reference}}})
    name = reference.removeprefix("./")
    (tmp_path / name.partition("#")[0]).mkdir()
    assert replayable(source).loading["components"] == {"vae": str(tmp_path / name)}


def test_the_kind_of_model_is_checked(tmp_path: Path) -> None:
    found = replayable(make(tmp_path / "x.png"))
    found.check_makes(("image",))
    with pytest.raises(InvalidRequest, match="is a picture, and fake makes text"):
        found.check_makes(("text",))


def test_where_it_can_be_written(tmp_path: Path) -> None:
    source = make(tmp_path / "x.png")
    (tmp_path / "link.png").symlink_to(source)
    for out, words in (
        (source, "is the file that the new picture is compared with"),
        (tmp_path / "link.png", "is the file that"),
        (tmp_path / "x.txt", "use .png"),
        (tmp_path / "no" / "x.png", "does not exist"),
        (tmp_path, "use .png"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            replayable(source, out)


def test_files_that_have_no_recipe(tmp_path: Path) -> None:
    draw(1).save(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text(json.dumps({"model": {}}))
    for name, words in (
        ("plain.png", "carries no recipe"),
        ("text.png", "carries no recipe"),
        ("absent.png", "not exist"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            replayable(tmp_path / name)


@given(ODD_RECIPES)
def test_any_recipe_is_a_request_or_a_typed_error(recipe: dict[str, Any]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "x.png")
        try:
            save_picture(draw(1), source, recipe)
        except InvalidRequest:
            return
        try:
            found = replayable(source, inputs={"image": draw(1)} if "inputs" in recipe else None)
        except (InvalidRequest, ModelNotFound):
            return
    assert isinstance(found.reference, str) and found.options["n"] == 1
    assert all(name.isidentifier() for name in found.options)


def test_comparing(tmp_path: Path) -> None:
    assert compare_pictures(draw(1), draw(1)) == Comparison(equal=True)
    assert compare_pictures(draw(1), draw(1).convert("RGBA")).equal
    grey = draw(1).convert("L")
    assert compare_pictures(grey, grey.convert("RGB")).equal
    clear = draw(1).convert("RGBA")
    clear.putalpha(254)
    assert compare_pictures(draw(1), clear) == Comparison(equal=False, different=64, largest=1)
    for name, options, exact in (
        ("a.png", {}, True),
        ("a.jpg", {}, False),
        ("a.gif", {}, False),
        ("a.webp", {"lossless": True, "exif": b"Exif\0\0odd"}, True),
        ("b.webp", {"lossless": False, "xmp": b"<x/>"}, False),
        ("c.webp", {"lossless": True, "save_all": True, "append_images": [draw(2)]}, False),
    ):
        draw(1).save(tmp_path / name, **options)
        assert keeps_pixels(tmp_path / name) is exact, name


@given(st.binary(max_size=60))
def test_any_bytes_keep_pixels_or_not(data: bytes) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        file.write(b"RIFF\0\0\0\0WEBP" + data)
        file.flush()
        assert keeps_pixels(Path(file.name)) in (True, False)


def test_sizes_of_the_target_do_not_matter(tmp_path: Path) -> None:
    """The picture is compared, not the file that it is written to."""
    done = again(replayable(make(tmp_path / "x.png"), tmp_path / "y.jpg"))
    assert done.equal is True and Image.open(done.path).format == "JPEG"
