"""Pictures come in from anywhere but a network, upright, in three modes, or they are refused."""

from __future__ import annotations

import base64
import io
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from kamado.errors import InvalidRequest
from kamado.media import pictures
from kamado.media.pictures import READ_FORMATS, flattened, open_picture, picture_digest, pictures_from_float

PIXELS = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
PICTURE = Image.fromarray(PIXELS)


def stored(image: Image.Image = PICTURE, file_format: str = "PNG", **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **how)
    return file.getvalue()


def same(found: Image.Image, expected: np.ndarray) -> bool:
    return np.array_equal(np.asarray(found), expected)


@pytest.mark.parametrize("kind", ["image", "path", "text", "bytes", "bytearray", "memoryview", "data", "DATA", "array"])
def test_every_source_gives_the_same_picture(kind: str, tmp_path: Path) -> None:
    data, path = stored(), tmp_path / "x.dat"
    path.write_bytes(data)
    encoded = base64.b64encode(data).decode()
    source = {
        "image": PICTURE,
        "path": path,
        "text": str(path),
        "bytes": data,
        "bytearray": bytearray(data),
        "memoryview": memoryview(data),
        "data": f"data:image/png;base64,{encoded}",
        "DATA": f"Data:;BASE64,{encoded[:40]}\n {encoded[40:]}",
        "array": PIXELS,
    }[kind]
    found = open_picture(source)
    assert found.mode == "RGB"
    assert same(found, PIXELS)
    found.putpixel((0, 0), (255, 255, 255))
    assert same(PICTURE, np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)), "it is a copy"


@pytest.mark.parametrize("file_format", READ_FORMATS)
def test_every_format(file_format: str) -> None:
    how = {"lossless": True} if file_format == "WEBP" else {}
    found = np.asarray(open_picture(stored(file_format=file_format, **how))).astype(int)
    assert np.abs(found - PIXELS).max() <= (24 if file_format == "JPEG" else 0)


@pytest.mark.parametrize("file_format", ["PPM", "ICO", "TGA", "PCX", "SGI", "PDF", "EPS"])
def test_other_formats_are_not_even_tried(file_format: str, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(stored(file_format=file_format))
    with pytest.raises(InvalidRequest, match=r"x\.png is no picture of a kind that is read: PNG, JPEG"):
        open_picture(path)


def test_modes() -> None:
    palette = PICTURE.quantize(16)
    clear = palette.copy()
    clear.info["transparency"] = 0
    for image, mode in (
        (PICTURE.convert("1"), "L"),
        (PICTURE.convert("L"), "L"),
        (PICTURE.convert("LA"), "RGBA"),
        (palette, "RGB"),
        (clear, "RGBA"),
        (PICTURE.convert("CMYK"), "RGB"),
        (PICTURE.convert("YCbCr"), "RGB"),
        (PICTURE.convert("RGBA"), "RGBA"),
    ):
        assert open_picture(image).mode == mode
    for mode in ("I", "F"):
        with pytest.raises(InvalidRequest, match="32-bit"):
            open_picture(PICTURE.convert("L").convert(mode))


def test_sixteen_bits_become_eight() -> None:
    values = np.array([[0, 128, 129, 257, 40_000, 65_535]], np.uint16)
    found = open_picture(stored(Image.fromarray(values)))
    assert found.mode == "L"
    assert same(found, np.array([[0, 0, 1, 1, 156, 255]]))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright_once(orientation: int) -> None:
    # Where the upright picture's left upper corner lies, and where its right upper one, by the EXIF standard.
    top = {1: "tl tr", 2: "tr tl", 3: "br bl", 4: "bl br", 5: "tl bl", 6: "bl tl", 7: "br tr", 8: "tr br"}[orientation]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = stored(exif=exif)
    found = open_picture(data)
    corners = {"tl": PIXELS[0, 0], "tr": PIXELS[0, -1], "bl": PIXELS[-1, 0], "br": PIXELS[-1, -1]}
    left, right = top.split()
    assert np.array_equal(np.asarray(found)[0, 0], corners[left])
    assert np.array_equal(np.asarray(found)[0, -1], corners[right])
    assert same(open_picture(found), np.asarray(found)), "not turned a second time"
    with Image.open(io.BytesIO(data)) as image:
        assert same(open_picture(image), np.asarray(found)), "a picture that is open already"


def test_nothing_else_of_the_file_is_carried_on() -> None:
    found = open_picture(stored(file_format="JPEG", exif=Image.Exif(), comment=b"secret", dpi=(3, 3)))
    assert found.info == {}
    assert dict(found.getexif()) == {}


def test_the_first_of_several_frames() -> None:
    first, other = (Image.new("RGB", PICTURE.size, colour) for colour in ("blue", "red"))
    for file_format, how in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})):
        data = stored(first, file_format, save_all=True, append_images=[other], **how)
        assert open_picture(data).convert("RGB").getpixel((3, 3)) == (0, 0, 255)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (PIXELS[..., 0], PIXELS[..., 0]),
        (PIXELS[..., :1], PIXELS[..., 0]),
        (PIXELS[:, ::-1], PIXELS[:, ::-1]),
        (PIXELS > 50, (PIXELS > 50) * 255),
        (PIXELS[..., 0] > 50, (PIXELS[..., 0] > 50) * 255),
        (PIXELS / 255, PIXELS),
        ((PIXELS / 255).astype(np.float16), PIXELS),
        (np.array([[0.0, 1.0], [1.0004, -0.0004]]), np.array([[0, 255], [255, 0]])),
    ],
)
def test_arrays(array: np.ndarray, expected: np.ndarray) -> None:
    assert same(open_picture(array), expected)


@pytest.mark.parametrize(
    ("source", "match"),
    [
        (np.zeros((2, 2, 2), np.uint8), "array must be"),
        (np.zeros((1, 2, 2, 3), np.uint8), "array must be"),
        (np.zeros(3, np.uint8), "array must be"),
        (np.zeros((0, 2, 3), np.uint8), "no pixels"),
        (np.zeros((2, 2, 3), np.int64), "int64"),
        (np.zeros((2, 2, 3), np.complex64), "complex64"),
        (np.full((2, 2, 3), 200.0), r"in \[0, 1\]; this one has 200 to 200"),
        (np.full((2, 2, 3), np.nan), r"in \[0, 1\]"),
        (np.broadcast_to(np.uint8(0), (9000, 9000)), "9000 x 9000"),
        (Image.new("1", (9000, 9000)), "9000 x 9000"),
        (Image.new("RGB", (0, 5)), "no pixels"),
        (None, "NoneType"),
        (7, "int"),
        ("https://example.org/x.png", "no picture is ever fetched"),
        ("file:///x.png", "no picture is ever fetched"),
        ("data:image/png,xyz", "no data URL of a picture"),
        ("data:image/png;base64,###", "no valid base64"),
        ("data:image/png;base64,AAAA", "in the data URL is no picture"),
        ("data:image/png;base64", "no data URL of a picture"),
        (b"", "of 0 B is no picture"),
        ("", "does not exist"),
        ("no/such\x1b.png", r"'no/such\\x1b.png' does not exist"),
        ("a\0b", "null"),
    ],
)
def test_what_is_no_picture(source: Any, match: str) -> None:
    with pytest.raises(InvalidRequest, match=match):
        open_picture(source)


def test_files_that_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    os.mkfifo(path)
    with pytest.raises(InvalidRequest, match=r"x\.png is no file"):
        open_picture(path)
    with pytest.raises(InvalidRequest, match="is no file"):
        open_picture(tmp_path)
    big = tmp_path / "big.png"
    with big.open("wb") as file:
        file.truncate(pictures.MAX_FILE_BYTES + 1)
    with pytest.raises(InvalidRequest, match=r"big\.png has 512\.0 MiB"):
        open_picture(big)


def test_truncated_and_closed() -> None:
    with pytest.raises(InvalidRequest, match="damaged"):
        open_picture(stored()[:-30])
    image = Image.open(io.BytesIO(stored()))
    image.close()
    with pytest.raises(InvalidRequest, match="damaged"):
        open_picture(image)


def headers_of_a_giant() -> dict[str, bytes]:
    size = 100_000
    bmp = b"BM" + struct.pack("<IHHI", 0, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, size, size, 1, 24, *[0] * 6)
    entries = [(256, size), (257, size), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, size), (279, 1)]
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
    tiff += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries) + bytes(4)
    gif = b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + bytes(60)
    side = struct.pack("<I", size - 1)[:3]
    webp = b"RIFF" + struct.pack("<I", 40) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + side + side + bytes(20)
    return {"BMP": bmp, "TIFF": tiff, "GIF": gif, "WEBP": webp}


@pytest.mark.parametrize("file_format", ["BMP", "TIFF", "GIF", "WEBP"])
def test_giants_are_refused_by_their_header(file_format: str) -> None:
    with pytest.raises(InvalidRequest):
        open_picture(headers_of_a_giant()[file_format])


def test_nine_thousand_pixels_square_is_too_much() -> None:
    with pytest.raises(InvalidRequest, match="9000 x 9000"):
        open_picture(stored(Image.new("1", (9000, 9000))))


STORED = {name: stored(file_format=name) for name in READ_FORMATS}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("file_format", READ_FORMATS)
@settings(max_examples=150)
@given(data=st.data())
def test_damaged_files_raise_nothing_else(file_format: str, data: st.DataObject) -> None:
    whole = STORED[file_format]
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)), label="length")])
    for at in data.draw(st.lists(st.integers(0, max(len(damaged) - 1, 0)), max_size=8), label="places"):
        damaged[at : at + 1] = data.draw(st.binary(min_size=1, max_size=3), label="bytes")
    try:
        found = open_picture(bytes(damaged))
    except InvalidRequest:
        return
    assert found.mode in ("L", "RGB", "RGBA")


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_floats_are_rounded_as_diffusers_does(channels: int) -> None:
    from diffusers.image_processor import VaeImageProcessor

    edges = np.arange(511, dtype=np.float32) / 510  # every value, and every border between two
    array = np.resize(np.concatenate([edges, np.nextafter(edges, np.float32(0.5))]), (2, 17, 11, channels))
    array = array.astype(np.float32)
    found = pictures_from_float(array)
    assert [picture.mode for picture in found] == [{1: "L", 3: "RGB", 4: "RGBA"}[channels]] * 2
    for ours, theirs in zip(found, VaeImageProcessor.numpy_to_pil(array), strict=True):
        assert same(ours, np.asarray(theirs))


def test_floats_a_little_outside() -> None:
    (picture,) = pictures_from_float(np.array([[[[-0.5], [1.5], [1.0]]]], np.float16))
    assert same(picture, np.array([[0, 255, 255]]))
    assert pictures_from_float(np.zeros((0, 4, 4, 3))) == []


@pytest.mark.parametrize("array", [np.zeros((2, 2, 3)), np.zeros((1, 2, 2, 2)), np.full((1, 2, 2, 3), np.nan)])
def test_floats_that_are_no_pictures(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="pictures"):
        pictures_from_float(array)


def test_digest_is_that_of_the_pixels() -> None:
    digest = picture_digest(PICTURE)
    assert digest == picture_digest(open_picture(stored(file_format="BMP")))
    assert len(digest) == 64
    others = [PICTURE.rotate(180), PICTURE.convert("RGBA"), PICTURE.resize((5, 7))]
    assert len({digest, *map(picture_digest, others)}) == 4


def test_flattened() -> None:
    half = Image.new("RGBA", (2, 2), (255, 0, 0, 128))
    assert flattened(half, "RGBA") is half
    assert flattened(half, "RGB").getpixel((0, 0)) == (255, 127, 127)
    assert flattened(half, "RGB", "black").getpixel((0, 0)) == (128, 0, 0)
    assert flattened(Image.new("RGBA", (2, 2)), "L").getpixel((0, 0)) == 255
    assert flattened(Image.new("L", (2, 2), 9), "RGB").getpixel((0, 0)) == (9, 9, 9)
    assert flattened(Image.new("L", (2, 2), 9), "RGBA").getpixel((0, 0)) == (9, 9, 9, 255)
