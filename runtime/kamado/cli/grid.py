"""`kamado grid`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ..batch.runner import kind_of_batch
from ..errors import InvalidRequest
from ..files import check_writable
from ..grids.axes import Axis, checked_axes, judge
from ..grids.folder import INPUT_NAME, finish, write_input
from ..grids.grid import CELL, title_of
from ..requests import TEXT_OPTION_NAMES
from .axes import FILES, parse_axes
from .batch import FAILED, Done, answer_all, answers_of
from .common import LoadOptions, Output, SectionedCommand, common_options, model_options, text_options
from .kinds import as_paths, as_typed, check_values, opened, options_for
from .loading import Abilities, abilities, check_requests
from .media_options import MEDIA_FLAGS, Given, media_options
from .picture_options import PICTURE_FLAGS, picture_options
from .prompt import check_once, check_text


@click.command(cls=SectionedCommand)
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("-o", "folder", metavar="DIR", required=True, type=click.Path(path_type=Path), help="Where it all goes.")
@click.option(
    "--axis",
    "items",
    multiple=True,
    metavar="NAME=VALUES",
    help="An option and its values: seed=1..8, guidance=3,5,7, prompt=FILE_OR_TEXT. Repeatable; the last runs across.",
)
@click.option("--cell", type=click.IntRange(32, 1024), default=CELL, metavar="PIXELS", help="Of a sheet's cells.")
@click.option("--format", "file_format", metavar="NAME", help="Of files: png, webp, jpg; wav, flac; ...")
@click.option("--concurrency", type=click.IntRange(1, 10_000), metavar="N", help="Requests in flight at once.")
@click.option("--restart", "again", flag_value="all", help="Throw an earlier grid in DIR away.")
@click.option("--retry-failed", "again", flag_value="failed", help="Run the cells that failed once more.")
@text_options
@picture_options
@media_options
@model_options
@common_options
@click.pass_context
def grid(
    ctx: click.Context,
    model: str,
    prompt: str | None,
    folder: Path,
    *,
    items: tuple[str, ...],
    cell: int,
    file_format: str | None,
    concurrency: int | None,
    again: str | None,
    given: Given,
    load: LoadOptions,
    out: Output,
) -> None:
    """Run MODEL with every combination of the axes' values, into DIR.

    DIR/media gets a file for each cell, DIR/sheet-001.png, ... show them side by side with their values, and
    DIR/index.json says what is what. Without an axis of seeds, or --seed, every cell has seed 0. Killed or interrupted,
    the same command goes on where it was: each cell is made once.

    Exit status: 0 if every cell was made, 1 if some failed.
    """
    check_values(given)
    typed = {**given.text, **given.picture, **given.media} | ({} if prompt is None else {"prompt": prompt})
    axes = checked_axes(parse_axes(items), typed)
    if folder.exists() and not folder.is_dir():
        raise InvalidRequest(f"{folder} is a file; -o names the folder for the grid")
    check_writable(folder)
    finished = None if again else kind_of_batch(folder)
    known = finished in ("text", "image") and not given.media  # then the model need not be here any more
    found = Abilities(makes=[str(finished)]) if known else abilities(model, load, out)
    axes = tuple(_with_files(axis, found) for axis in axes)
    kind, fixed = _checked(found, model, given, prompt, axes)
    answers = answers_of(kind, found, model, folder, folder / INPUT_NAME, file_format)
    if finished is None:
        judge(axes, fixed, lambda requests: check_requests(model, requests, load, out))
    source = write_input(folder, axes, fixed, restart=again == "all", located=_located)
    done = answer_all(
        model,
        source,
        folder,
        answers=answers,
        defaults={},
        concurrency=concurrency,
        restart=again == "all",
        retry_failed=again == "failed",
        load=load,
        out=out,
    )
    with out.progress(None, "sheets", unit="sheets") as update:
        sheets = finish(folder, axes, fixed, title=title_of(model, fixed), cell=cell, on_sheet=update)
    _report(done, folder, sheets, out)
    if done.summary.failed:
        ctx.exit(FAILED)


def _checked(
    found: Abilities, model: str, given: Given, prompt: str | None, axes: tuple[Axis, ...]
) -> tuple[str, dict[str, Any]]:
    """(kind, the options that all cells share). Every value of every axis is judged before anything is loaded; files
    that it names are opened. Raises InvalidRequest."""
    kind, fixed = options_for(found, model, given)
    for name, value in fixed.items():
        if name in FILES:
            _open(name, value, found)
    check_once(prompt, fixed)
    if prompt is not None:
        check_text("the prompt", prompt)
        fixed = {"prompt": prompt, **fixed}
    first = {axis.name: axis.values[0] for axis in axes}
    for axis in axes:
        for value in axis.values:
            _check_value(found, model, {**first, axis.name: value}, given, axis.name)
    return kind, fixed


def _with_files(axis: Axis, found: Abilities) -> Axis:
    """An axis of files with paths as its values, each of which can be opened. Raises InvalidRequest."""
    takes = found.takes
    if axis.name not in FILES and not (takes and any(takes.names_file(axis.name, value) for value in axis.values)):
        return axis
    values = tuple(
        as_paths(value) if axis.name in FILES or (takes and takes.names_file(axis.name, value)) else value
        for value in axis.values
    )
    try:
        for value in values:
            _open(axis.name, value, found)
    except InvalidRequest as error:
        raise InvalidRequest(f"--axis {axis.name}: {error}") from error
    return Axis(name=axis.name, values=values)


def _open(name: str, value: Any, found: Abilities) -> None:
    """Raise InvalidRequest for an input file that cannot be opened."""
    from ..media.inputs import opened_media

    if found.takes is not None:
        opened_media({name: value}, found.takes.inputs)
    elif value is not None:
        opened({name: value})


def _located(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a cell for JSON, with paths that hold from any folder."""
    return as_typed(options, lambda path: str(Path(path).absolute()))


def _check_value(found: Abilities, model: str, values: Mapping[str, Any], given: Given, name: str) -> None:
    """Judge the cell with these values, of which that of `name` is the new one. Raises InvalidRequest."""
    try:
        _check_cell(found, model, values, given)
    except InvalidRequest:
        for each in dict.fromkeys([name, *values]):  # that is told of the axis which is to blame
            try:
                _check_cell(found, model, {each: values[each]}, given)
            except InvalidRequest as error:
                raise InvalidRequest(f"--axis {each}: {error}") from error
        raise


def _check_cell(found: Abilities, model: str, values: Mapping[str, Any], given: Given) -> None:
    groups: dict[str, dict[str, Any]] = {"text": {}, "picture": {}, "media": {}}
    for name, value in values.items():
        if name == "prompt":
            if not isinstance(value, str) or not value.strip():
                raise InvalidRequest(f"{value!r:.80} is no text")
            check_text("the prompt", value)
        elif value is not None:
            groups[_group(name)][name] = str(value) if isinstance(value, Path) else value
    options_for(
        found,
        model,
        Given(
            text={**given.text, **groups["text"]},
            picture={**given.picture, **groups["picture"]},
            media={**given.media, **groups["media"]},
        ),
    )


def _group(name: str) -> str:
    if name in PICTURE_FLAGS:
        return "picture"
    if name in MEDIA_FLAGS:
        return "media"
    return "text" if name in TEXT_OPTION_NAMES else "picture"


def _report(done: Done, folder: Path, sheets: list[Path], out: Output) -> None:
    summary = done.summary
    out.json(
        {
            "folder": str(folder),
            "index": str(folder / "index.json"),
            "sheets": [str(sheet) for sheet in sheets],
            "cells": summary.total,
            "ok": summary.ok,
            "failed": summary.failed,
            "made_earlier": done.earlier,
            "seconds": round(done.seconds, 3),
        }
    )
    if summary.failed:
        out.note(f"{summary.failed} of {summary.total} cells failed; their errors are in {folder / 'index.json'}")
    for sheet in sheets:
        out.line(str(sheet))
