"""Files of meshes, opened again by trimesh."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from hypothesis import given
from hypothesis import strategies as st

from kamado.errors import GenerationFailed, InvalidRequest
from kamado.media.meshes import WRITE_FORMATS, open_mesh, save_mesh
from kamado.media.recipes import read_recipe
from kamado.outputs import Mesh
from media_outputs import tetrahedron
from media_recipes import RECIPE, RECIPES


@pytest.mark.parametrize("suffix", WRITE_FORMATS)
@pytest.mark.parametrize("colors", [True, False])
def test_another_program_reads_the_same_mesh(tmp_path: Path, suffix: str, colors: bool) -> None:
    mesh, path = tetrahedron(colors), tmp_path / f"x{suffix}"
    save_mesh(mesh, path, RECIPE)
    loaded: Any = trimesh.load_mesh(path, process=False)
    assert loaded.is_watertight
    assert loaded.volume == pytest.approx(1.1234567 / 6)
    assert np.allclose(loaded.vertices, mesh.vertices, atol=1e-7)
    assert (loaded.visual.kind == "vertex") is colors
    if colors:
        assert np.asarray(loaded.visual.vertex_colors)[:, :3].tolist() == mesh.colors[:, :3].tolist()
    again = open_mesh(path)
    assert again.faces.tolist() == mesh.faces.tolist()
    assert again.vertices.dtype == np.float32 and np.array_equal(again.vertices, mesh.vertices)
    assert (again.colors is None) is not colors
    assert read_recipe(path) == RECIPE


@pytest.mark.parametrize("suffix", WRITE_FORMATS)
def test_the_same_mesh_makes_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    for number in range(2):
        save_mesh(tetrahedron(), tmp_path / f"{number}{suffix}", RECIPE)
    assert (tmp_path / f"0{suffix}").read_bytes() == (tmp_path / f"1{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", WRITE_FORMATS)
def test_vertices_that_no_face_uses_stay(tmp_path: Path, suffix: str) -> None:
    mesh = tetrahedron()
    save_mesh(Mesh(vertices=mesh.vertices, faces=mesh.faces[:1], colors=mesh.colors), tmp_path / f"x{suffix}", None)
    assert len(open_mesh(tmp_path / f"x{suffix}").vertices) == 4


@pytest.mark.parametrize("suffix", WRITE_FORMATS)
def test_a_long_recipe(tmp_path: Path, suffix: str) -> None:
    recipe = {"options": {"prompt": "\u00e4\u65e5\U0001d11e  \nend_header " * 30_000}}
    save_mesh(tetrahedron(), tmp_path / f"x{suffix}", recipe)
    assert read_recipe(tmp_path / f"x{suffix}") == recipe
    assert len(open_mesh(tmp_path / f"x{suffix}").faces) == 4
    if suffix != ".glb":
        head = (tmp_path / f"x{suffix}").read_bytes()[:100_000].split(b"\n")[2:-1]
        assert max(map(len, head)) < 255


@given(recipe=RECIPES)
def test_any_recipe_survives(tmp_path_factory: pytest.TempPathFactory, recipe: dict[str, Any]) -> None:
    for suffix in WRITE_FORMATS:
        path = tmp_path_factory.getbasetemp() / f"recipe{suffix}"
        save_mesh(tetrahedron(), path, recipe)
        assert read_recipe(path) == recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vertices": np.zeros((0, 3), np.float32)}, "no vertices"),
        ({"faces": np.zeros((0, 3), np.int64)}, "no faces"),
        ({"vertices": np.full((4, 3), np.nan, np.float32)}, "NaN"),
        ({"faces": np.array([[0, 1, 4]])}, "beyond the 4"),
        ({"faces": np.array([[0, 1, -1]])}, "beyond the 4"),
        ({"colors": np.zeros((3, 4), np.uint8)}, r"colours are \[3, 4\]"),
    ],
)
@pytest.mark.parametrize("suffix", WRITE_FORMATS)
def test_broken_meshes_fail_and_leave_nothing(tmp_path: Path, suffix: str, change: Any, message: str) -> None:
    mesh = tetrahedron()
    parts = {"vertices": mesh.vertices, "faces": mesh.faces, "colors": mesh.colors} | change
    with pytest.raises(GenerationFailed, match=message):
        save_mesh(Mesh(**parts), tmp_path / f"x{suffix}", None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"Hello, this is text.\n", "is no mesh of a kind that is read"),
        (b"", "is no mesh"),
        (b"glTF" + b"\0" * 40, "is damaged, or no mesh"),
        (b"ply\nformat ascii 1.0\nend_header\n", "is damaged|has no vertices"),
        (b"v 0 0 0\nf 1 2 3\n", "damaged"),
        ("https://example.org/x.glb", "no mesh is ever fetched"),
        (None, "not NoneType"),
    ],
)
def test_what_is_no_mesh(source: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as error:
        open_mesh(source)
    assert "\n" not in str(error.value)


@given(cut=st.integers(0, 900), flip=st.integers(0, 2000), suffix=st.sampled_from(WRITE_FORMATS))
def test_cut_and_changed_files(tmp_path_factory: pytest.TempPathFactory, cut: int, flip: int, suffix: str) -> None:
    path = tmp_path_factory.getbasetemp() / f"whole{suffix}"
    if not path.exists():
        save_mesh(tetrahedron(), path, RECIPE)
    data = bytearray(path.read_bytes())
    data[flip % len(data)] ^= 0x55
    path.with_name(f"changed{suffix}").write_bytes(data[: len(data) - cut])
    for use in (open_mesh, read_recipe):
        try:
            use(path.with_name(f"changed{suffix}"))
        except InvalidRequest as error:
            assert "\n" not in str(error)
