"""Edges, colours of maps, opacity."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from kamado.errors import InvalidRequest
from kamado.media.edges import canny
from kamado.media.maps import coloured, deep_picture, label_colors, stretched, with_opacity
from kamado.media.poses import draw_poses


def _edges(image: Image.Image, **options: float) -> np.ndarray:
    return np.asarray(canny(image, **options))[..., 0] > 0


def test_a_step_has_one_line_of_one_pixel() -> None:
    image = Image.new("L", (40, 30), 0)
    image.paste(255, (20, 0, 40, 30))
    edges = _edges(image)
    assert edges.sum(axis=1).tolist() == [1] * 30
    assert set(np.nonzero(edges)[1]) <= {19, 20}


def test_a_square_has_its_outline_and_a_circle_one_around() -> None:
    image = Image.new("L", (60, 60), 30)
    ImageDraw.Draw(image).rectangle((15, 15, 44, 44), fill=220)
    edges = _edges(image)
    assert 100 <= edges.sum() <= 125  # 4 sides of 30
    assert not edges[20:40, 20:40].any() and not edges[:12].any()
    image = Image.new("L", (100, 100), 0)
    ImageDraw.Draw(image).ellipse((20, 20, 80, 80), fill=255)
    y, x = np.nonzero(_edges(image))
    distance = np.hypot(y - 50, x - 50)
    assert np.abs(distance - 30).max() < 2
    angles = np.sort(np.arctan2(y - 50, x - 50))
    assert np.diff(angles).max() < 0.1  # all around


def test_weak_edges_count_beside_strong_ones() -> None:
    image = Image.new("L", (60, 40), 100)
    pixels = np.asarray(image).copy()
    pixels[:, 30:] += np.linspace(8, 120, 40).astype(np.uint8)[:, None]  # a step that gets steeper
    steep = Image.fromarray(pixels)
    assert _edges(steep, low=10, high=200)[:, 25:35].sum() > _edges(steep, low=200, high=200)[:, 25:35].sum() > 5
    assert not _edges(steep, low=1000, high=1000).any()
    alone = Image.fromarray(np.clip(pixels, 0, 110))
    assert not _edges(alone, low=10, high=200).any()  # weak all along


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (1, 5)])
def test_the_smallest_pictures(size: tuple[int, int]) -> None:
    found = canny(Image.new("RGB", size, (9, 9, 9)))
    assert found.size == size and found.mode == "RGB" and not np.asarray(found).any()


@pytest.mark.parametrize("options", [{"low": -1}, {"low": 3, "high": 2}, {"sigma": -1}, {"sigma": float("nan")}])
def test_bad_thresholds_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InvalidRequest, match="canny"):
        canny(Image.new("L", (9, 9)), **options)


def test_maps_as_pictures() -> None:
    values = np.linspace(0, 1, 12).reshape(3, 4)
    assert np.array_equal(np.asarray(deep_picture(values)), (values * 65535).round())
    colors = np.asarray(coloured(np.array([[0.0, 0.5, 1.0]])))
    assert colors.tolist() == [[[158, 1, 66], [255, 255, 191], [94, 79, 162]]]
    assert np.allclose(stretched(np.array([2.0, 4.0, 3.0])), [0, 1, 0.5])
    assert not stretched(np.full((2, 2), 7.0)).any()
    picture = with_opacity(Image.new("RGB", (2, 1), (1, 2, 3)), np.array([[0.0, 1.0]]))
    assert list(picture.getdata()) == [(1, 2, 3, 0), (1, 2, 3, 255)]


def test_labels_have_colours_of_their_own() -> None:
    colors = label_colors(256)
    assert colors[:4] == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)] and len(set(colors)) == 256


def test_skeletons_have_the_colours_of_openpose() -> None:
    person = {0: (50.0, 10.0), 5: (70.0, 30.0), 6: (30.0, 30.0), 8: (20.0, 60.0)}
    found = draw_poses(Image.new("RGB", (100, 100)), [person, {}])
    assert found.getpixel((50, 10)) == (255, 0, 0)  # nose
    assert found.getpixel((50, 30)) == (255, 85, 0)  # neck, between the shoulders
    assert found.getpixel((30, 30)) == (255, 170, 0) and found.getpixel((70, 30)) == (85, 255, 0)
    assert found.getpixel((40, 30)) == (153, 0, 0)  # from the neck to the right shoulder
    assert found.getpixel((25, 45)) == (153, 102, 0)  # the right upper arm
    assert found.getpixel((80, 80)) == (0, 0, 0)
