"""`kamado.grid`: one model, every combination of some values of its options."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..batch.media import IN_LINE
from ..errors import InvalidRequest, KamadoError
from ..files import make_folder, write_json
from ..outputs import KINDS, Output, Picture
from ..results import Result
from .axes import Axis, cells_of, checked_axes, judge, label, request_of

if TYPE_CHECKING:
    from PIL import Image

    from ..model import Model
    from .sheets import Layout

CELL = 256
"""Pixels of a cell's longer side, unless told otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One combination, and what came of it."""

    number: int
    """From 0, the last axis changing fastest."""
    values: Mapping[str, Any]
    """By the names of the axes."""
    result: Result | None = None
    error: KamadoError | None = None
    """Why there is no result."""

    @property
    def output(self) -> Output | str | None:
        """What was made; None if nothing was."""
        if self.result is None:
            return None
        if self.result.images:
            return Picture(image=self.result.images[0])
        return self.result.outputs[0] if self.result.outputs else self.result.text


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The cells of a grid, in order, with what was made."""

    axes: tuple[Axis, ...]
    cells: tuple[Cell, ...] = field(repr=False)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""

    @property
    def results(self) -> tuple[Result | None, ...]:
        """Of each cell; None: it failed."""
        return tuple(cell.result for cell in self.cells)

    @property
    def shape(self) -> tuple[int, ...]:
        """How many values each axis has."""
        return tuple(len(axis.values) for axis in self.axes)

    def at(self, **values: Any) -> Cell:
        """The cell with these values, one for each axis. Raises InvalidRequest."""
        for cell in self.cells:
            if dict(cell.values) == values:
                return cell
        raise InvalidRequest(f"no cell has {label(values)}; axes are {', '.join(axis.name for axis in self.axes)}")

    def num_sheets(self, cell: int = CELL) -> int:
        """How many pages `contact_sheet` has, with cells of so many pixels."""
        return len(self._layout(cell).pages)

    def contact_sheet(self, page: int = 1, *, cell: int = CELL) -> Image.Image:
        """A picture of all cells with the values of their axes beside them; page 1 to `num_sheets()`. `cell`: pixels of
        a cell's longer side, 32 to 1024. Raises InvalidRequest."""
        from .sheets import draw_sheet
        from .thumbs import ALARM, text_card, thumbnail

        layout = self._layout(cell)
        if not 1 <= page <= len(layout.pages):
            raise InvalidRequest(f"the grid has {len(layout.pages)} sheets of contact; there is no {page}")

        def thumb(number: int) -> Image.Image:
            found = self.cells[number]
            if found.result is None:
                return text_card(f"failed: {found.error}", cell, ink=ALARM)
            return thumbnail(found.output, cell)

        return draw_sheet(layout, page - 1, thumb, self.title)

    def save(self, folder: str | Path, *, cell: int = CELL) -> Path:
        """Write each output to `folder`/media/0001.png, ... with its recipe inside, the sheets to sheet-001.png, ...,
        and index.json, which says what is what. Files of those names are replaced. Returns the folder. Raises
        InvalidRequest and OSError."""
        folder = Path(folder)
        make_folder(folder / "media")
        documents = [self._written(cell_, folder) for cell_ in self.cells]
        names = [sheet_name(number) for number in range(1, self.num_sheets(cell) + 1)]
        for number, name in enumerate(names, start=1):
            save_sheet(self.contact_sheet(number, cell=cell), folder / name)
        write_index(folder, title=self.title, axes=self.axes, fixed=self.fixed, cells=documents, sheets=names)
        return folder

    def _written(self, cell: Cell, folder: Path) -> dict[str, Any]:
        from ..media.saving import default_suffix, document_of, save_output

        output = cell.output
        document: dict[str, Any] = {"number": cell.number + 1, "values": as_json(cell.values)}
        if cell.result is None:
            return {**document, "status": "failed", "error": str(cell.error)}
        if output is None or isinstance(output, str):
            return {**document, "status": "ok", "text": output or ""}
        if KINDS[type(output)] in IN_LINE:
            return {**document, "status": "ok", **document_of(output)}
        name = f"media/{cell.number + 1:04d}{default_suffix(output)}"
        save_output(output, folder / name, cell.result.recipe_of(0))
        return {**document, "status": "ok", "files": [name], "seed": cell.result.seeds[0]}

    def _layout(self, cell: int) -> Layout:
        from .sheets import check_cell, lay_out
        from .thumbs import thumbnail

        check_cell(cell)
        made = next((found.output for found in self.cells if found.result is not None), None)
        small = thumbnail(made, cell)
        return lay_out(self.axes, small.width, small.height)


def grid(model: Model, axes: Mapping[str, Sequence[Any]], *, concurrency: int | None = None, **fixed: Any) -> Grid:
    """Run `model` with every combination of the values in `axes`, like `{"prompt": ["a cat", "a dog"], "seed": [1, 2],
    "guidance": [3, 7]}`; `fixed` are options that all share. None as a value leaves the option out.

    Without seeds every cell has seed 0, so that what differs is due to the axes. Requests share forwards where they
    can. A cell that fails does so alone: see `Cell.error`. All results stay in memory; `kamado grid` writes as it goes.
    Raises InvalidRequest for axes that make no grid (see `checked_axes`), what `Model.check` raises of any cell, before
    the first one is made, and the first cell's error if all failed.
    """
    found = checked_axes(axes, fixed)
    judge(found, fixed, model.check)
    cells = list(cells_of(found))
    answers: dict[int, Result | KamadoError] = {}
    running = model.map((request_of(cell, fixed) for cell in cells), concurrency)
    with closing(running):  # type: ignore[type-var]  # map returns a generator; closing it cancels what runs
        answers.update(running)
    made = tuple(_cell(number, values, answers[number]) for number, values in enumerate(cells))
    if made[0].error is not None and all(cell.result is None for cell in made):
        raise made[0].error
    title = title_of(model.reference, fixed)
    return Grid(axes=found, cells=made, fixed=fixed, title=title)


def _cell(number: int, values: Mapping[str, Any], answer: Result | KamadoError) -> Cell:
    if isinstance(answer, Result):
        return Cell(number=number, values=values, result=answer)
    return Cell(number=number, values=values, error=answer)


def title_of(reference: str, fixed: Mapping[str, Any]) -> str:
    """What stands above every sheet."""
    return "   ".join([Path(reference).name, *(f"{name} {label(value)}" for name, value in fixed.items())])


def sheet_name(number: int) -> str:
    """From 1."""
    return f"sheet-{number:03d}.png"


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """As PNG, whole or not at all."""
    from ..media.pictures import save_picture

    save_picture(sheet, path, None)


def write_index(
    folder: Path,
    *,
    title: str,
    axes: Sequence[Axis],
    fixed: Mapping[str, Any],
    cells: Sequence[Mapping[str, Any]],
    sheets: Sequence[str],
) -> None:
    """Write `folder`/index.json, and remove sheets of an earlier grid that had more of them."""
    write_json(
        folder / "index.json",
        {
            "title": title,
            "axes": [{"name": axis.name, "values": as_json(axis.values)} for axis in axes],
            "fixed": as_json(fixed),
            "cells": list(cells),
            "sheets": list(sheets),
        },
    )
    for path in folder.glob("sheet-*.png"):
        if path.name not in sheets:
            path.unlink()


def as_json(value: Any) -> Any:
    """A value, or what stands for it, for JSON: paths and pictures by what `label` calls them."""
    if isinstance(value, Mapping):
        return {str(name): as_json(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(each) for each in value]
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return label(value)
    return value
