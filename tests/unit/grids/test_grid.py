"""`kamado.grid` over a fake model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import kamado
from fake_model import FakeModel
from fake_pictures import FakePictureModel, draw
from kamado.errors import GenerationFailed, InvalidRequest
from kamado.media.recipes import read_recipe

AXES: dict[str, Any] = {"prompt": ["a cat", "a boom", "a dog"], "seed": [1, 2], "steps": [2, 3]}


def test_results_are_in_order(tmp_path: Path) -> None:
    model: Any = FakePictureModel()
    grid = kamado.grid(model, AXES, width=16, height=16)
    assert (grid.shape, len(grid.cells)) == ((3, 2, 2), 12)
    assert [cell.result is None for cell in grid.cells] == [False] * 4 + [True] * 4 + [False] * 4
    assert isinstance(grid.cells[4].error, GenerationFailed)
    assert grid.results[11] is not None and grid.results[11].images[0].tobytes() == draw(2, 16, 16).tobytes()
    assert grid.at(prompt="a dog", seed=2, steps=3).number == 11
    with pytest.raises(InvalidRequest, match="no cell has"):
        grid.at(prompt="a dog")
    assert model.requests[0] == {"width": 16, "height": 16, "prompt": "a cat", "seed": 1, "steps": 2}


def test_it_saves_files_sheets_and_an_index(tmp_path: Path) -> None:
    model: Any = FakePictureModel()
    grid = kamado.grid(model, AXES, width=16, height=16)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sheet-009.png").write_bytes(b"of an earlier grid")
    folder = grid.save(tmp_path / "out", cell=64)
    index = json.loads((folder / "index.json").read_text())
    assert sorted(path.name for path in folder.iterdir()) == ["index.json", "media", "sheet-001.png"]
    assert len(list((folder / "media").iterdir())) == 8
    assert index["sheets"] == ["sheet-001.png"] and index["axes"][1] == {"name": "seed", "values": [1, 2]}
    assert index["cells"][0]["files"] == ["media/0001.png"] and "boom" in index["cells"][4]["error"]
    assert read_recipe(folder / "media" / "0012.png")["options"]["prompt"] == "a dog"
    with Image.open(folder / "sheet-001.png") as sheet:
        assert sheet.tobytes() == grid.contact_sheet(cell=64).tobytes()


def test_texts_make_a_grid_too(tmp_path: Path) -> None:
    model: Any = FakeModel()
    grid = kamado.grid(model, {"prompt": ["one two", "three"], "seed": [1, 2]}, max_tokens=5)
    assert grid.contact_sheet().width > 256
    index = json.loads((grid.save(tmp_path) / "index.json").read_text())
    assert index["cells"][0]["text"] and not list((tmp_path / "media").iterdir())


def test_a_grid_of_failures_is_an_error() -> None:
    model: Any = FakePictureModel()
    with pytest.raises(GenerationFailed, match="boom"):
        kamado.grid(model, {"seed": [1, 2]}, prompt="boom")


def test_cells_are_judged_before_the_first_is_made() -> None:
    model: Any = FakePictureModel()
    with pytest.raises(InvalidRequest, match=r"^the cell with seed 1, unknown 3: FakePipeline takes no unknown"):
        kamado.grid(model, {"seed": [1, 2], "unknown": [None, 3]}, prompt="a")
    assert model.requests == []


@pytest.mark.parametrize("page", [0, 2])
def test_pages_that_are_not_there(page: int) -> None:
    model: Any = FakePictureModel()
    with pytest.raises(InvalidRequest, match=f"there is no {page}"):
        kamado.grid(model, {"seed": [1, 2]}, prompt="a").contact_sheet(page)
