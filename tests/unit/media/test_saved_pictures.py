"""A saved picture carries its recipe, for Kamado and for other programs; a damaged file raises nothing unexpected."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from kamado.errors import InvalidRequest
from kamado.media.embed import MAX_JPEG_XMP_BYTES, XMP_NAMESPACE
from kamado.media.parameters import parameters_text
from kamado.media.pictures import check_picture_path, open_picture, read_recipe, save_picture
from media_recipes import ODD_RECIPES, RECIPE, RECIPES, VALUES

SUFFIXES = (".png", ".webp", ".jpg")
ONE_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)


def noise(mode: str = "RGB", size: tuple[int, int] = (31, 17)) -> Image.Image:
    bands = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(3).integers(0, 256, (size[1], size[0], bands), dtype=np.uint8)
    return Image.fromarray(values[..., 0] if bands == 1 else values)


def gradient() -> Image.Image:
    return Image.linear_gradient("L").resize((64, 48)).convert("RGB")


def user_comment(path: Path) -> str:
    """As programs read it: eight bytes name the code, then big-endian UTF-16."""
    with Image.open(path) as image:
        data = image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    assert data[:8] == b"UNICODE\0"
    return bytes(data[8:]).decode("utf-16-be")


@pytest.mark.parametrize("suffix", SUFFIXES)
@ONE_FOLDER
@given(recipe=RECIPES | st.text(max_size=200).map(lambda text: {"options": {"prompt": text, "negative": text}}))
def test_any_recipe_comes_back(suffix: str, recipe: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    save_picture(gradient(), path, recipe)
    assert read_recipe(path) == recipe
    if suffix == ".png":
        with Image.open(path) as image:
            assert image.info["parameters"] == parameters_text(recipe)
    else:
        assert user_comment(path) == parameters_text(recipe)


@pytest.mark.parametrize("prompt", ["plain, latin", "日本語: 🏮", "a\nNegative prompt: b\nSteps: 3", "\ud800\0"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_unusual_prompts_come_back(prompt: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    recipe = {**RECIPE, "options": {**RECIPE["options"], "prompt": prompt}}
    save_picture(gradient(), path, recipe)
    assert read_recipe(path) == recipe


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_huge_prompts_come_back(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    recipe = {"options": {"prompt": "wörd, " * 100_000}}
    save_picture(gradient(), path, recipe)
    assert read_recipe(path) == recipe


def test_jpeg_holds_what_it_holds_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    for length in range(MAX_JPEG_XMP_BYTES - 600, MAX_JPEG_XMP_BYTES + 1, 100):
        recipe = {"note": "x" * length}
        try:
            save_picture(gradient(), path, recipe)
        except InvalidRequest as error:
            assert "save it as PNG" in str(error)
            assert length > MAX_JPEG_XMP_BYTES - 600
            break
        assert read_recipe(path) == recipe
    else:
        pytest.fail("a recipe without an end fits into a JPEG file")
    with pytest.raises(InvalidRequest, match="a JPEG file holds at most"):
        save_picture(gradient(), path, {"options": {"prompt": "x" * 33_000}})


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_pixels_are_exact(mode: str, suffix: str, tmp_path: Path) -> None:
    path, image = tmp_path / f"x{suffix}", noise(mode)
    save_picture(image, path, RECIPE)
    found = open_picture(path)
    assert np.array_equal(np.asarray(found), np.asarray(image.convert(found.mode)))


def test_lossy_files_are_near_and_small(tmp_path: Path) -> None:
    image = gradient()
    save_picture(image, tmp_path / "x.jpg", None)
    save_picture(image, tmp_path / "x.webp", None, lossless=False, quality=90)
    for name in ("x.jpg", "x.webp"):
        found = np.asarray(open_picture(tmp_path / name)).astype(int)
        assert np.abs(found - np.asarray(image)).max() < 10
    sizes = []
    for quality in (95, 10):
        save_picture(noise(), tmp_path / "x.jpg", None, quality=quality)
        sizes.append((tmp_path / "x.jpg").stat().st_size)
    assert sizes[1] < sizes[0] / 2


def test_jpeg_and_transparency(tmp_path: Path) -> None:
    path, image = tmp_path / "x.jpg", noise("RGBA")
    with pytest.raises(InvalidRequest, match="transparency"):
        save_picture(image, path, None)
    assert not path.exists()
    image.putalpha(255)
    save_picture(image, path, RECIPE)
    assert read_recipe(path) == RECIPE


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_without_a_recipe_there_is_none(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    save_picture(gradient(), path, None)
    with pytest.raises(InvalidRequest, match=r"x\.\w+ carries no recipe"):
        read_recipe(path)


def test_files_are_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.PNG"
    save_picture(gradient(), path, {"old": 1})
    with pytest.raises(InvalidRequest):
        save_picture(gradient(), path, {"bad": object()})
    with pytest.raises(InvalidRequest, match="32769 x 1"):
        save_picture(Image.new("RGB", (32769, 1)), tmp_path / "x.webp", None)
    assert read_recipe(path) == {"old": 1}
    save_picture(gradient(), path, {"new": 1})
    assert read_recipe(path) == {"new": 1}
    assert os.listdir(tmp_path) == ["x.PNG"]


@pytest.mark.parametrize(
    "name", ["x", "x.gif", "x.png.tmp", "missing/x.png", "folder.png", "file.txt/x.png", "a\0.png"]
)
def test_paths_that_cannot_be_written(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file.txt").touch()
    with pytest.raises(InvalidRequest):
        save_picture(gradient(), tmp_path / name, RECIPE)
    assert sorted(os.listdir(tmp_path)) == ["file.txt", "folder.png"]
    if "\0" not in name:
        with pytest.raises(InvalidRequest):
            check_picture_path(tmp_path / name)


def test_deep_pixels_are_not_cut_off_in_silence(tmp_path: Path) -> None:
    deep = Image.fromarray(np.full((4, 4), 40_000, np.uint16))
    for name in ("x.jpg", "x.webp"):
        with pytest.raises(InvalidRequest, match="more"):
            save_picture(deep, tmp_path / name, None)
    save_picture(deep, tmp_path / "x.png", None)
    with pytest.raises(InvalidRequest, match="quality"):
        save_picture(deep, tmp_path / "x.png", None, quality=0)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks: bytes, width: int = 1, height: int = 1) -> bytes:
    """A grey PNG file with more chunks before its pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(b"\0\0"))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + png_chunk(b"IEND", b"")


def itxt(text: bytes, *, packed: bool = False) -> bytes:
    return png_chunk(b"iTXt", b"kamado\0" + bytes([packed, 0]) + b"\0\0" + (zlib.compress(text) if packed else text))


HOSTILE = {
    "text": (b"hello", "no picture"),
    "empty": (b"", "no picture"),
    "bomb in iTXt": (png(itxt(b'{"a":"' + b"x" * (64 << 20) + b'"}', packed=True)), "large"),
    "bomb in zTXt": (png(png_chunk(b"zTXt", b"kamado\0\0" + zlib.compress(bytes(64 << 20)))), "large"),
    "many texts": (png(*[itxt(b"x" * (1 << 20), packed=True)] * 70), "memory"),
    "long recipe": (png(itxt(b'{"a":"' + b"x" * (2 << 20) + b'"}')), "larger than"),
    "no JSON": (png(itxt(b"{")), "not valid JSON"),
    "a list": (png(itxt(b"[]")), "not an object"),
    "the same key": (png(itxt(b'{"a":1,"a":2}')), "twice"),
    "deep": (png(itxt(b'{"a":' * 5000 + b"1" + b"}" * 5000)), "deep"),
    "huge number": (png(itxt(b'{"a":' + b"9" * 5000 + b"}")), "not valid JSON"),
    "100000 x 100000": (png(itxt(b"{}"), width=100_000, height=100_000), "too many pixels"),
    "9000 x 9000": (png(itxt(b"{}"), width=9000, height=9000), "9000 x 9000"),
    "no recipe": (png(), "carries no recipe"),
    "no recipe, no pixels": (png(width=9), "damaged"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(name: str, tmp_path: Path) -> None:
    data, match = HOSTILE[name]
    path = tmp_path / "x.png"
    path.write_bytes(data)
    with pytest.raises(InvalidRequest, match=match) as caught:
        read_recipe(path)
    assert "x.png" in str(caught.value)


def test_limits_of_the_library_are_left_alone() -> None:
    from PIL import ImageFile, PngImagePlugin

    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) == (1024**3 // 12, False)
    assert PngImagePlugin.MAX_TEXT_CHUNK == 1 << 20


@pytest.mark.parametrize("what", ["missing", "folder", "pipe", "name"])
def test_what_is_no_file(what: str, tmp_path: Path) -> None:
    path = tmp_path / ("n" * 300 if what == "name" else what)
    if what == "folder":
        path.mkdir()
    if what == "pipe":
        os.mkfifo(path)
    with pytest.raises(InvalidRequest):
        read_recipe(path)


def test_recipes_behind_the_pixels_are_found(tmp_path: Path) -> None:
    data = png()
    path = tmp_path / "x.png"
    path.write_bytes(data[:-12] + itxt(b'{"a":1}') + data[-12:])
    assert read_recipe(path) == {"a": 1}


def xmp_file(path: Path, packet: str) -> None:
    gradient().save(path, "WEBP", xmp=packet)


@pytest.mark.parametrize(
    ("packet", "found"),
    [
        ('<r xmlns:k="NAMESPACE" k:recipe="{&quot;a&quot;:&quot;&lt;&quot;}"/>', {"a": "<"}),
        ('<r xmlns="NAMESPACE"><recipe>{"a":1}</recipe></r>\n  \0', {"a": 1}),
        ('<?xml version="1.0" encoding="latin-1"?><k:recipe xmlns:k="NAMESPACE">{"ä":1}</k:recipe>', {"ä": 1}),
        ('<!DOCTYPE r [<!ENTITY e "{}">]><recipe xmlns="NAMESPACE">&e;</recipe>', None),
        ('<recipe xmlns="urn:other">{"a":1}</recipe>', None),
        ('<recipe xmlns="NAMESPACE">{"a":1}', None),
        ("<a>" * 300_000 + "</a>" * 300_000, None),
        ("", None),
    ],
)
def test_xmp_as_others_write_it(packet: str, found: dict[str, Any] | None, tmp_path: Path) -> None:
    path = tmp_path / "x.webp"
    xmp_file(path, packet.replace("NAMESPACE", XMP_NAMESPACE))
    if found is None:
        with pytest.raises(InvalidRequest, match="no recipe"):
            read_recipe(path)
    else:
        assert read_recipe(path) == found


def test_a_picture_of_another_program_has_no_recipe(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("parameters", parameters_text(RECIPE))
    gradient().save(tmp_path / "x.png", pnginfo=info)
    with pytest.raises(InvalidRequest, match="no recipe"):
        read_recipe(tmp_path / "x.png")


def saved(suffix: str) -> bytes:
    file = io.BytesIO()
    from kamado.media.embed import metadata

    file_format = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG"}[suffix]
    noise(size=(9, 7)).save(file, file_format, **metadata(RECIPE, file_format))
    return file.getvalue()


SAVED = {suffix: saved(suffix) for suffix in SUFFIXES}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(data=st.data())
def test_damaged_files_raise_nothing_else(suffix: str, data: st.DataObject, tmp_path: Path) -> None:
    whole = SAVED[suffix]
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)), label="length")])
    for at in data.draw(st.lists(st.integers(0, max(len(damaged) - 1, 0)), max_size=8), label="places"):
        damaged[at : at + 1] = data.draw(st.binary(min_size=1, max_size=3), label="bytes")
    path = tmp_path / "x"
    path.write_bytes(damaged)
    for use in (read_recipe, open_picture):
        try:
            use(path)
        except InvalidRequest as error:
            assert str(path) in str(error)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(
    kind=st.sampled_from([b"iTXt", b"zTXt", b"tEXt", b"eXIf", b"iCCP", b"tRNS", b"acTL"]),
    head=st.sampled_from([b"", b"kamado\0", b"kamado\0\0\0\0\0", b"XML:com.adobe.xmp\0\0\0\0\0", b"II*\0\x08\0\0\0"]),
    body=st.binary(max_size=60) | VALUES.map(lambda value: json.dumps(value).encode()),
)
def test_sound_files_with_odd_chunks_raise_nothing_else(kind: bytes, head: bytes, body: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png(png_chunk(kind, head + body)))
    for use in (read_recipe, open_picture):
        try:
            use(path)
        except InvalidRequest as error:
            assert str(path) in str(error)


@pytest.mark.parametrize("suffix", SUFFIXES)
@ONE_FOLDER
@given(recipe=ODD_RECIPES)
def test_odd_recipes_are_written_or_refused(suffix: str, recipe: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    try:
        save_picture(gradient(), path, recipe)
    except InvalidRequest:
        return
    assert read_recipe(path) == recipe
