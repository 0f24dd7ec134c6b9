"""A grid in a folder: the batch that makes it, then its sheets and its index, drawn from the files.

`grid.jsonl` has a line for each cell, and is answered like any batch, so that a grid which was killed goes on where it
was and each cell is made exactly once.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..batch.runner import JOURNAL_NAME, RESULTS_NAME
from ..errors import InvalidRequest
from ..files import make_folder, replacing
from ..media.reading import kind_of_file, open_output
from .axes import Axis, cells_of, request_of
from .grid import as_json, save_sheet, sheet_name, write_index

if TYPE_CHECKING:
    from PIL import Image

INPUT_NAME = "grid.jsonl"


def write_input(
    folder: Path, axes: Sequence[Axis], fixed: Mapping[str, Any], *, restart: bool, located: Callable[[Any], Any]
) -> Path:
    """Write the batch's input into `folder`, which is made. `located`: all options of a cell as JSON has them. Raises
    InvalidRequest if another grid was begun there, unless `restart`."""
    path = folder / INPUT_NAME
    lines = [
        json.dumps({"id": f"{number:04d}", **located(request_of(cell, fixed))}, ensure_ascii=False).encode() + b"\n"
        for number, cell in enumerate(cells_of(axes), start=1)
    ]
    if (folder / JOURNAL_NAME).exists() and not restart and not _holds(path, lines):
        raise InvalidRequest(
            f"{folder} holds another grid, or a batch; give another folder, or --restart to throw it away"
        )
    if not _holds(path, lines):
        make_folder(folder)
        with replacing(path) as file:
            file.writelines(lines)
    return path


def finish(
    folder: Path,
    axes: Sequence[Axis],
    fixed: Mapping[str, Any],
    *,
    title: str,
    cell: int,
    on_sheet: Callable[[int, int], None] = lambda done, total: None,
) -> list[Path]:
    """Draw the sheets of a grid whose batch is done, and write index.json. `cell`: pixels of a cell's longer side.
    `on_sheet(done, total)` is called after each sheet. Returns the sheets' paths."""
    from .sheets import draw_sheet, lay_out

    with (folder / RESULTS_NAME).open(encoding="utf-8") as file:
        results = [_kept(json.loads(line)) for line in file]
    made = next((result for result in results if result["status"] == "ok"), results[0])
    small = _thumb(folder, made, cell)
    layout = lay_out(axes, small.width, small.height)
    paths: list[Path] = []
    for number in range(len(layout.pages)):
        sheet = draw_sheet(layout, number, lambda index: _thumb(folder, results[index], cell), title)
        paths.append(folder / sheet_name(number + 1))
        save_sheet(sheet, paths[-1])
        on_sheet(number + 1, len(layout.pages))
    cells = [_document(number, values, results[number]) for number, values in enumerate(cells_of(axes))]
    write_index(folder, title=title, axes=axes, fixed=fixed, cells=cells, sheets=[path.name for path in paths])
    return paths


def _holds(path: Path, lines: Sequence[bytes]) -> bool:
    """Whether the file has these lines, and no others."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return all(one == other for one, other in itertools.zip_longest(file, lines))


def _thumb(folder: Path, result: Mapping[str, Any], cell: int) -> Image.Image:
    from .thumbs import ALARM, text_card, thumbnail

    if result["status"] != "ok":
        return text_card(f"failed: {result.get('error')}", cell, ink=ALARM)
    files = result.get("files") or ()
    if not files:
        return thumbnail(_text(result), cell)
    try:
        path = folder / files[0]
        return thumbnail(open_output(path, kind_of_file(path), only_begin=True), cell)
    except InvalidRequest as error:  # somebody removed it, or wrote over it
        return text_card(str(error), cell, ink=ALARM)


def _text(result: Mapping[str, Any]) -> str:
    if result.get("text") is not None:
        return str(result["text"])
    return json.dumps(result.get("outputs"), ensure_ascii=False)


def _kept(result: Mapping[str, Any]) -> dict[str, Any]:
    """What the index says of a result: not the recipe, which is in the file."""
    return {name: result[name] for name in ("id", "status", "files", "text", "outputs", "error") if result.get(name)}


def _document(number: int, values: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    return {"number": number + 1, "values": as_json(values), **result}
