"""`kamado batch`."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ..batch.pictures import FORMATS, PictureAnswers
from ..batch.runner import Answers, Batch, Progress, Summary, kind_of_batch, open_batch
from ..batch.texts import TextAnswers
from ..errors import InvalidRequest
from ..memory.devices import resolve_device
from ..units import format_seconds
from .common import LoadOptions, Output, SectionedCommand, common_options, model_options, text_options
from .kinds import as_typed, check_values, opened, options_for
from .loading import loaded_model, what_it_makes
from .picture_options import picture_options

FAILED = 1


@click.command(cls=SectionedCommand)
@click.argument("model")
@click.argument("input_path", metavar="INPUT.jsonl", type=click.Path(path_type=Path))
@click.option("-o", "folder", metavar="DIR", required=True, type=click.Path(path_type=Path), help="Where results go.")
@click.option("--format", "file_format", type=click.Choice(FORMATS), help="Of picture files.  [png]")
@click.option("--concurrency", type=click.IntRange(1, 10_000), metavar="N", help="Requests in flight at once.")
@click.option("--restart", is_flag=True, help="Throw the answers of an earlier run in DIR away.")
@click.option("--retry-failed", is_flag=True, help="Run the lines that failed once more.")
@text_options
@picture_options
@model_options
@common_options
@click.pass_context
def batch(
    ctx: click.Context,
    model: str,
    input_path: Path,
    folder: Path,
    *,
    file_format: str | None,
    concurrency: int | None,
    restart: bool,
    retry_failed: bool,
    text: dict[str, Any],
    picture: dict[str, Any],
    load: LoadOptions,
    out: Output,
) -> None:
    """Answer every line of INPUT.jsonl into DIR/results.jsonl, in input order; pictures into DIR/media.

    A line is {"id": "a1", "prompt": "..."} or {"id": "a1", "messages": [...]} with any generation option, or an OpenAI
    batch line. Options given here hold for lines that do not give them. Killed or interrupted, the same command goes on
    where it was: each line is answered once. A bad line fails alone. Which lines run together changes rounding errors;
    --deterministic rules that out.

    Exit status: 0 if every line has an answer, 1 if some failed.
    """
    check_values(text, picture)
    _check_paths(input_path, folder)
    finished = None if restart or retry_failed else kind_of_batch(folder)
    kind, options = options_for([finished] if finished else what_it_makes(model, load, out), model, text, picture)
    answers = _answers(kind, model, folder, input_path, file_format)
    seed = options.pop("seed", 0)
    with open_batch(
        input_path,
        folder,
        identity=_identity(model, load),
        defaults=_located(options),
        seed=seed,
        restart=restart,
        retry_failed=retry_failed,
        answers=answers,
    ) as work:
        earlier, seconds = work.progress.answered, 0.0
        if earlier and not work.is_answered:
            out.note(f"going on after {earlier} of {work.progress.total} lines")
        if not work.is_answered:
            seconds = _run(work, model, load, concurrency, out)
        summary = work.finish()
    _report(summary, work.progress, earlier, seconds, out, kind)
    if summary.failed:
        ctx.exit(FAILED)


def _check_paths(input_path: Path, folder: Path) -> None:
    if not input_path.is_file():
        raise InvalidRequest(f"cannot read {input_path}: {'it is a folder' if input_path.is_dir() else 'no such file'}")
    if folder.exists() and not folder.is_dir():
        raise InvalidRequest(f"{folder} is a file; -o names the folder for the results")


def _answers(kind: str, model: str, folder: Path, input_path: Path, file_format: str | None) -> Answers:
    if kind == "image":
        return PictureAnswers(folder, input_path.parent, file_format or FORMATS[0])
    if file_format is not None:
        raise InvalidRequest(f"--format is for picture models, and {model} makes text")
    return TextAnswers()


def _located(options: dict[str, Any]) -> dict[str, Any]:
    """Options for the journal: input pictures, which can be opened, by paths that hold from any folder."""
    opened(options)
    return as_typed(options, lambda path: str(Path(path).absolute()))


def _identity(model: str, load: LoadOptions) -> dict[str, Any]:
    """What changes the answers."""
    return {
        "model": model,
        "device": _device_identity(load.device),
        "dtype": load.dtype,
        "quant": load.quant,
        "kv_dtype": load.kv_dtype,
        "deterministic": load.deterministic,
        "components": load.components,
        "base": load.base,
    }


def _device_identity(name: str) -> str:
    """The device that the name means here and now; of GPUs the product too, because each kind rounds otherwise."""
    facts = resolve_device(name)
    return facts.name if facts.kind == "cpu" else f"{facts.name} ({facts.model})"


def _run(work: Batch, model: str, load: LoadOptions, concurrency: int | None, out: Output) -> float:
    """Load the model and answer what is left, under a bar. Returns the seconds that answering took."""
    try:
        with loaded_model(model, load, out) as (_, loaded):
            started = time.monotonic()
            with out.progress(work.progress.total, "batch", unit="lines") as update:

                def show(progress: Progress) -> None:
                    update(progress.answered, detail=_speed(progress, time.monotonic() - started))

                update(work.progress.answered)
                work.run(loaded, concurrency=concurrency, on_progress=show)
            return time.monotonic() - started
    except KeyboardInterrupt:
        progress = replace(work.progress)
        out.note(f"stopped after {progress.answered} of {progress.total} lines; the same command goes on from there")
        raise


def _speed(progress: Progress, seconds: float) -> str:
    made, unit = (progress.pictures, "pictures") if progress.pictures else (progress.completion_tokens, "tokens")
    return f"{made / seconds if seconds > 0 else 0.0:.1f} {unit}/s"


def _report(summary: Summary, progress: Progress, earlier: int, seconds: float, out: Output, kind: str) -> None:
    made, unit = (progress.pictures, "pictures") if kind == "image" else (progress.completion_tokens, "tokens")
    out.json(
        {
            "results": str(summary.results),
            "lines": summary.total,
            "ok": summary.ok,
            "failed": summary.failed,
            "answered_earlier": earlier,
            "pictures" if kind == "image" else "completion_tokens": made,
            "seconds": round(seconds, 3),
        }
    )
    if summary.total == 0:
        out.note("the input has no lines, so there are no results")
    done_now = summary.total - earlier
    if done_now:
        out.note(f"{done_now} lines in {format_seconds(seconds)}, {made} {unit}, {_speed(progress, seconds)}")
    if summary.failed:
        out.note(f"{summary.failed} of {summary.total} lines failed; their errors are in the results")
    out.line(str(summary.results))
