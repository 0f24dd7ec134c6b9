"""Input pictures of every mode and size give the picture that diffusers makes of the same one in RGB."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

import kamado
import tiny_pipelines as tiny
from kamado.errors import InvalidRequest

REQUEST: Mapping[str, Any] = {"prompt": "a", "steps": 2, "strength": 1.0, "seed": 1}


def _pixels(model: kamado.Model, image: Any, **more: Any) -> Any:
    return model.generate(**{**REQUEST, "image": image, **more}).pixels[0]


def _over_white(clear: Image.Image) -> Image.Image:
    white = Image.new("RGB", clear.size, "white")
    white.paste(clear, mask=clear.getchannel("A"))
    return white


@pytest.fixture
def clear() -> Image.Image:
    image: Image.Image = tiny.picture(1).convert("RGBA")
    image.putalpha(tiny.picture(2).convert("L").point(lambda value: 255 * (value > 100)))
    return image


def test_four_channels_are_a_picture_over_white(
    folders: dict[str, Path], runtime: kamado.Runtime, clear: Image.Image, tmp_path: Path
) -> None:
    clear.save(tmp_path / "clear.png")
    model = runtime.load(folders["sd15"])
    wanted = _pixels(model, _over_white(clear))
    for source in (clear, numpy.asarray(clear), tmp_path / "clear.png", [clear]):
        assert numpy.array_equal(_pixels(model, source), wanted)
    masked = {"mask": tiny.mask()}
    assert numpy.array_equal(_pixels(model, clear, **masked), _pixels(model, _over_white(clear), **masked))


def test_grey_pictures(folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    model = runtime.load(folders["sd15"])
    grey = tiny.picture(1).convert("L")
    wanted = _pixels(model, grey.convert("RGB"))
    deep = Image.fromarray(numpy.asarray(grey).astype(numpy.uint16) * 257)
    assert deep.mode == "I;16"
    for source in (grey, grey.convert("LA"), grey.convert("P"), deep, numpy.asarray(grey)[..., None]):
        assert numpy.array_equal(_pixels(model, source), wanted)
    two = grey.convert("1")
    assert numpy.array_equal(_pixels(model, two), _pixels(model, two.convert("RGB")))


def test_control_pictures(folders: dict[str, Path], runtime: kamado.Runtime, clear: Image.Image) -> None:
    model = runtime.load(folders["sd15"], components={"controlnet": [folders["controlnet-sd15"]]})
    request: dict[str, Any] = {"prompt": "a", "steps": 2, "seed": 1}
    for source, plain in ((clear, _over_white(clear)), (clear.convert("L"), clear.convert("L").convert("RGB"))):
        found, wanted = (model.generate(**request, control=each).pixels[0] for each in (source, plain))
        assert numpy.array_equal(found, wanted)


def test_sizes_are_told(folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    model = runtime.load(folders["sd15"])
    odd = tiny.picture(1, (70, 45))
    result = model.generate(**REQUEST, image=odd)
    width, height = result.images[0].size
    assert (width, height) != (70, 45)
    assert [note for note in result.notes if f"the picture is {width} x {height}" in note and "70 x 45" in note]
    result = model.generate(**REQUEST, image=odd, width=64, height=40)
    assert result.images[0].size == (64, 40)
    assert list(result.notes) == ["the input picture was resized from 70 x 45 to 64 x 40"]
    even = odd.resize((64, 40), Image.Resampling.LANCZOS)
    assert numpy.array_equal(result.pixels[0], _pixels(model, even))
    assert model.generate(**REQUEST, image=even).notes == ()
    again = model.generate(**result.recipe["options"], image=odd)
    assert numpy.array_equal(again.pixels[0], result.pixels[0])


@pytest.mark.parametrize(
    ("option", "words"),
    [({"clip_skip": 9}, r"\(clip_skip\)"), ({"timesteps": [1, "x"]}, r"\(timesteps\)"), ({"eta": "x"}, "eta must be")],
    ids=["clip_skip", "timesteps", "eta"],
)
def test_options_that_the_library_cannot_use(
    option: dict[str, Any], words: str, folders: dict[str, Path], runtime: kamado.Runtime
) -> None:
    model = runtime.load(folders["sd15"])
    with pytest.raises(InvalidRequest, match=words) as raised:
        model.generate(prompt="a", steps=2, seed=1, **option)
    assert "<class" not in str(raised.value)


def test_a_negative_prompt_that_is_not_read(folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    request: dict[str, Any] = {"prompt": "a", "negative": "b", "steps": 1, "seed": 1}
    sd, flux = runtime.load(folders["sd15"]), runtime.load(folders["flux"])
    told = [
        any("negative was not used" in note for note in model.generate(**request, **more).notes)
        for model, more in ((sd, {}), (sd, {"guidance": 1.0}), (flux, {}), (flux, {"true_cfg_scale": 2.0}))
    ]
    assert told == [False, True, True, False]


def test_replayed_with_the_file_that_was_given(
    folders: dict[str, Path], runtime: kamado.Runtime, clear: Image.Image, tmp_path: Path
) -> None:
    source = tmp_path / "clear.png"
    clear.save(source)
    model = runtime.load(folders["sd15"])
    model.generate(**REQUEST, image=source, width=48, height=56).save(tmp_path / "made.png")
    done = kamado.replay(tmp_path / "made.png", image=source, model=folders["sd15"], runtime=runtime)
    assert done.equal is True
    with pytest.raises(InvalidRequest):
        kamado.replay(tmp_path / "made.png", image=_over_white(clear), model=folders["sd15"], runtime=runtime)
