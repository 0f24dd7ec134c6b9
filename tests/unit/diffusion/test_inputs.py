"""Input pictures: what pipelines are given of them, and what is refused."""

from __future__ import annotations

import inspect
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kamado.errors import InvalidRequest
from kamado.picture_requests import PictureOptions
from kamado_models.diffusion.inputs import check_inputs, check_strength, fitted, plain_inputs, single_input, size_note

CLEAR = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
HALF = Image.new("RGBA", (8, 8), (255, 0, 0, 128))


def _call(self: Any, image: Any = None, strength: float = 0.8, num_inference_steps: int = 50) -> None: ...


CALL = inspect.signature(_call).parameters


def test_clear_pictures_lie_over_white_and_clear_masks_keep() -> None:
    options = PictureOptions(
        image=[CLEAR, HALF],
        mask=CLEAR,
        control=Image.new("L", (8, 8), 7),
        extra={"ip_adapter_image": [CLEAR], "clip_skip": 1},
    )
    plain = plain_inputs(options, {})
    assert [picture.mode for picture in plain.image] == ["RGB", "RGB"]
    assert [picture.getpixel((0, 0)) for picture in plain.image] == [(255, 255, 255), (255, 127, 127)]
    assert (plain.mask.mode, plain.mask.getpixel((0, 0))) == ("L", 0)
    assert (plain.control.mode, plain.control.getpixel((0, 0))) == ("RGB", (7, 7, 7))
    assert plain.extra["ip_adapter_image"][0].getpixel((0, 0)) == (255, 255, 255)
    assert plain.extra["clip_skip"] == 1
    assert options.image == [CLEAR, HALF], "what was given stays: recipes have its hash"


@pytest.mark.parametrize(("config", "mode"), [
    ({"in_channels": 4}, "RGBA"),
    ({"input_channels": 4}, "RGBA"),
    ({"in_channels": 1}, "L"),
    ({"in_channels": 3}, "RGB"),
    ({}, "RGB"),
])  # fmt: skip
def test_the_autoencoder_says_how_many_channels_it_reads(config: dict[str, int], mode: str) -> None:
    vae = SimpleNamespace(config=SimpleNamespace(**config))
    assert plain_inputs(PictureOptions(image=HALF), {"vae": vae}).image.mode == mode
    assert plain_inputs(PictureOptions(), {"vae": vae}).image is None


@pytest.mark.parametrize(("extra", "steps", "strength", "words"), [
    ({}, 25, 0.02, r"25 x 0\.02 is less than one; ask for a strength of at least 0\.04; or .*steps=50"),
    ({}, 1, None, r"1 x 0\.8 is less than one; ask for a strength of at least 1; or .*steps=2"),
    ({}, None, 0.01, r"50 x 0\.01 .*at least 0\.02; or .*steps=100"),
    ({}, 4, 1e-9, r"at least 0\.25$"),
])  # fmt: skip
def test_less_than_one_step(extra: dict[str, Any], steps: int | None, strength: float | None, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        check_strength(PictureOptions(image=CLEAR, steps=steps, strength=strength, extra=extra), CALL)


def test_other_strengths() -> None:
    check_strength(PictureOptions(image=CLEAR, steps=25, strength=0.04), CALL)
    check_strength(PictureOptions(image=CLEAR, steps=25, strength=0.02, extra={"timesteps": [1]}), CALL)
    check_strength(PictureOptions(steps=1), CALL)
    check_strength(PictureOptions(image=CLEAR, steps=1, strength=0.1), {})
    with pytest.raises(InvalidRequest, match="needs a picture"):
        check_strength(PictureOptions(strength=0.5), {})


@given(steps=st.integers(1, 10_000), strength=st.floats(1e-4, 1.0))
def test_what_the_error_asks_for_is_enough(steps: int, strength: float) -> None:
    try:
        check_strength(PictureOptions(image=CLEAR, steps=steps, strength=strength), CALL)
    except InvalidRequest as error:
        words = str(error)
        least = float(words.split("at least ")[1].split(";")[0])
        check_strength(PictureOptions(image=CLEAR, steps=steps, strength=least), CALL)
        if "steps=" in words:
            more = int(words.rpartition("steps=")[2].rstrip(")"))
            check_strength(PictureOptions(image=CLEAR, steps=more, strength=strength), CALL)
    else:
        assert int(steps * strength) >= 1


@pytest.mark.parametrize("name", ["image", "control"])
@pytest.mark.parametrize("size", [(1, 1), (7, 64), (64, 7)])
def test_too_small(name: str, size: tuple[int, int]) -> None:
    picture = Image.new("RGB", size)
    given: Any
    for given in (picture, [Image.new("RGB", (8, 8)), picture]):
        with pytest.raises(InvalidRequest, match=rf"{name} is {size[0]} x {size[1]} pixels.* at least 8 x 8"):
            check_inputs(replace(PictureOptions(), **{name: given}), 8)
    given = Image.new("RGB", (8, 8))
    check_inputs(replace(PictureOptions(), **{name: given}), 8)


@pytest.mark.parametrize(("name", "takes"), [
    ("StableDiffusionImg2ImgPipeline", 1),
    ("StableDiffusionInpaintPipeline", 1),
    ("StableDiffusionInstructPix2PixPipeline", 1),
    ("FluxImg2ImgPipeline", 1),
    ("FluxKontextPipeline", 2),
    ("Flux2Pipeline", 2),
    ("Flux2KleinPipeline", 2),
    ("QwenImageEditPlusPipeline", 2),
    ("StableDiffusionAdapterPipeline", 2),
])  # fmt: skip
def test_how_many(name: str, takes: int) -> None:
    import diffusers

    kind = getattr(diffusers, name)
    parameters = inspect.signature(kind.__call__).parameters
    if takes > 1:
        options = PictureOptions(image=[CLEAR, HALF])
        assert single_input(options, kind, parameters) is options
        return
    with pytest.raises(InvalidRequest, match=f"image: {name} takes 1 picture, not 2"):
        single_input(PictureOptions(image=[CLEAR, HALF]), kind, parameters)
    assert single_input(PictureOptions(image=[CLEAR], mask=[HALF]), kind, parameters) == PictureOptions(
        image=CLEAR, mask=HALF
    )


def test_a_size_beside_a_picture_resizes_it() -> None:
    asked = PictureOptions(image=CLEAR, mask=Image.new("L", (8, 8), 255), width=16, height=24)
    found, note = fitted(asked)
    assert found.image.size == found.mask.size == (16, 24)
    assert (found.width, found.height) == (None, None)
    assert note == "the input picture was resized from 8 x 8 to 16 x 24"
    same, note = fitted(PictureOptions(image=CLEAR, width=8, height=8))
    assert same == PictureOptions(image=CLEAR)
    assert note is None
    for nothing in (PictureOptions(image=CLEAR), PictureOptions(width=8, height=8)):
        assert fitted(nothing) == (nothing, None)


def test_a_size_that_nobody_asked_for_is_told() -> None:
    odd = Image.new("RGB", (100, 70))
    assert "is 100 x 68: the input picture's 100 x 70" in (size_note(PictureOptions(image=odd), (100, 68), CALL) or "")
    assert size_note(PictureOptions(image=odd), (100, 70), CALL) is None
    assert size_note(PictureOptions(image=odd, width=100, height=68), (100, 68), CALL) is None
    assert size_note(PictureOptions(image=odd, hires=2.0), (200, 136), CALL) is None
    assert size_note(PictureOptions(image=odd), (400, 280), {}) is None, "upscalers"
    assert size_note(PictureOptions(control=odd), (96, 64), {}) is not None
    assert size_note(PictureOptions(prompt="x"), (64, 64), CALL) is None
