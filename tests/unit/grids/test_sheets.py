"""Sheets and what is on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kamado.errors import InvalidRequest
from kamado.grids.axes import checked_axes
from kamado.grids.sheets import MAX_HEIGHT, MAX_WIDTH, check_cell, draw_sheet, lay_out
from kamado.grids.thumbs import GROUND, cut, fitted, font, text_card, text_width, thumbnail, wrapped
from kamado.outputs import Audio, Embedding, Mesh, Picture, Score, Scored, Scores, Transcript
from media_outputs import clip, melody, tetrahedron, tone

COLORS = [(number * 37 % 256, number * 91 % 256, 200) for number in range(1000)]


def _flat(number: int) -> Image.Image:
    return Image.new("RGB", (64, 48), COLORS[number])


def test_each_cell_is_where_its_values_say() -> None:
    axes = checked_axes({"prompt": ["a", "b"], "seed": [1, 2, 3], "guidance": [3, 7]}, {})
    layout = lay_out(axes, 64, 48)
    assert len(layout.pages) == 1
    sheet = draw_sheet(layout, 0, _flat, "title")
    pixels = np.asarray(sheet)
    places = [tuple(np.argwhere((pixels == COLORS[number]).all(axis=-1)).min(axis=0)) for number in range(12)]
    rows, columns = sorted({place[0] for place in places}), sorted({place[1] for place in places})
    assert (len(rows), len(columns)) == (3, 4)  # the two prompts side by side
    expected = [(rows[number // 2 % 3], columns[number // 6 * 2 + number % 2]) for number in range(12)]
    assert places == expected
    assert all((pixels == COLORS[number]).all(axis=-1).sum() == 64 * 48 for number in range(12))


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    width=st.sampled_from([64, 100, 256, 1024]),
    height=st.sampled_from([64, 160, 1024]),
)
def test_every_cell_is_on_one_page(sizes: list[int], width: int, height: int) -> None:
    axes = checked_axes({f"a{number}": list(range(size)) for number, size in enumerate(sizes)}, {})
    layout = lay_out(axes, width, height)
    cells = [cell for page in layout.pages for strip in page for cell in strip.cells]
    assert sorted(cells) == list(range(int(np.prod(sizes))))
    for page in layout.pages:
        assert page[-1].cells and not page[-1].is_head
        assert sum(strip.height for strip in page) <= MAX_HEIGHT or sum(bool(strip.cells) for strip in page) == 1
        if len(sizes) > 1:
            assert page[0].is_head
        if len(sizes) > 2:
            assert page[0].bands
    assert layout.right <= MAX_WIDTH


def test_a_cell_of_another_shape_stays_in_its_place() -> None:
    layout = lay_out(checked_axes({"prompt": ["a", "b"], "seed": [1, 2]}, {}), 64, 64)
    sheet = np.asarray(draw_sheet(layout, 0, lambda cell: Image.new("RGB", (200, 100) if cell else (64, 64), "red")))
    assert (sheet == (255, 0, 0)).all(axis=-1).sum() == 64 * 64 + 3 * 64 * 32


def test_many_cells_take_many_pages() -> None:
    axes = checked_axes({"prompt": [f"prompt {number}" for number in range(50)], "seed": list(range(20))}, {})
    layout = lay_out(axes, 128, 128)
    assert len(layout.pages) > 3
    for number in (0, len(layout.pages) - 1):
        sheet = draw_sheet(layout, number, lambda cell: Image.new("RGB", (128, 128)), "many " * 100)
        assert sheet.width <= MAX_WIDTH and sheet.height <= MAX_HEIGHT + 100


@pytest.mark.parametrize("pixels", [0, 31, 1025])
def test_sizes_that_no_sheet_is_made_of(pixels: int) -> None:
    with pytest.raises(InvalidRequest, match="cells of a sheet have 32 to 1024 pixels"):
        check_cell(pixels)


def test_narrow_pictures_leave_room_for_labels() -> None:
    layout = lay_out(checked_axes({"seed": [1, 2]}, {}), 3, 256)
    assert layout.width == 64
    assert draw_sheet(layout, 0, lambda cell: Image.new("RGB", (3, 256))).height > 256


SCORES = Scores(items=(Scored(value="a cat", score=0.9), Scored(value="a dog", score=0.1)))


@pytest.mark.parametrize(
    "output",
    [
        Picture(image=Image.linear_gradient("L").resize((300, 100))),
        tone(1.0, channels=2),
        clip(3),
        tetrahedron(),
        tetrahedron(colors=False),
        melody(),
        "A text. " * 99,
        Transcript(text="Hello"),
        SCORES,
        Embedding(vectors=np.ones((1, 384), np.float32)),
    ],
    ids=lambda output: type(output).__name__,
)
@pytest.mark.parametrize("size", [32, 256])
def test_everything_has_a_small_picture(output: Any, size: int) -> None:
    small = thumbnail(output, size)
    assert small.mode == "RGB" and small.width <= size and small.height <= size and max(small.size) > size // 2
    assert len(small.getcolors(1 << 20) or ()) > 1
    assert thumbnail(output, size).tobytes() == small.tobytes()


@pytest.mark.parametrize(
    "output",
    [
        None,
        "",
        Audio(samples=np.zeros((1, 3), np.float32), sample_rate=8000),
        Score(notes=()),
        Mesh(vertices=np.zeros((3, 3), np.float32), faces=np.array([[0, 1, 2]])),
    ],
)
def test_little_or_nothing_has_one_too(output: Any) -> None:
    assert thumbnail(output, 128).width == 128


def test_a_mesh_is_seen_in_its_colours() -> None:
    red = np.tile(np.array([255, 0, 0, 255], np.uint8), (4, 1))
    mesh = tetrahedron()
    small = np.asarray(thumbnail(Mesh(vertices=mesh.vertices, faces=mesh.faces, colors=red), 128)).astype(int)
    shown = (small[..., 0] > 60) & (small[..., 1] < 20)
    assert shown.mean() > 0.15


def test_a_large_mesh_is_drawn_in_part() -> None:
    rng = np.random.default_rng(0)
    faces = rng.integers(0, 1000, (100_000, 3))
    mesh = Mesh(vertices=rng.normal(size=(1000, 3)).astype(np.float32), faces=faces)
    assert thumbnail(mesh, 64).size == (64, 64)


def test_small_pictures_grow_by_whole_factors() -> None:
    assert fitted(Image.new("RGB", (60, 40)), 256).size == (240, 160)
    assert fitted(Image.new("RGB", (200, 100)), 256).size == (256, 128)
    assert fitted(Image.new("RGB", (5000, 10)), 256).size == (256, 1)


@given(text=st.text(max_size=80), width=st.integers(20, 300))
def test_texts_are_cut_to_their_place(text: str, width: int) -> None:
    face = font(14)
    line = " ".join(text.split())
    assert text_width(cut(line, width, face), face) <= width
    assert len(wrapped(text, width, face, 3)) <= 3
    assert all(text_width(each, face) <= width for each in wrapped(text, width, face, 3))


def test_a_card_says_what_failed() -> None:
    card = text_card("failed: out of memory", 200, ink="#b3372f")
    assert card.getpixel((0, 0)) == Image.new("RGB", (1, 1), GROUND).getpixel((0, 0))
    assert len(card.getcolors(1 << 20) or ()) > 10
