"""`kamado batch`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from ..batch.media import MediaAnswers
from ..batch.pictures import FORMATS, PictureAnswers
from ..batch.runner import Answers, Batch, Progress, Summary, kind_of_batch, open_batch
from ..batch.texts import TextAnswers
from ..errors import InvalidRequest
from ..files import check_writable
from ..memory.devices import resolve_device
from ..units import format_seconds
from .common import LoadOptions, Output, SectionedCommand, common_options, model_options, text_options
from .kinds import as_typed, check_values, opened, options_for
from .loading import Abilities, abilities, loaded_model
from .media_options import Given, media_options
from .picture_options import picture_options
from .pictures import check_default, check_path

FAILED = 1


@click.command(cls=SectionedCommand)
@click.argument("model")
@click.argument("input_path", metavar="INPUT.jsonl", type=click.Path(path_type=Path))
@click.option("-o", "folder", metavar="DIR", required=True, type=click.Path(path_type=Path), help="Where results go.")
@click.option(
    "--format", "file_format", metavar="NAME", help="Of files: png, webp, jpg; wav, flac; ...  [png, wav, ...]"
)
@click.option("--concurrency", type=click.IntRange(1, 10_000), metavar="N", help="Requests in flight at once.")
@click.option("--restart", is_flag=True, help="Throw the answers of an earlier run in DIR away.")
@click.option("--retry-failed", is_flag=True, help="Run the lines that failed once more.")
@text_options
@picture_options
@media_options
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
    given: Given,
    load: LoadOptions,
    out: Output,
) -> None:
    """Answer every line of INPUT.jsonl into DIR/results.jsonl, in input order; pictures, sounds and
    other files into DIR/media.

    A line is {"id": "a1", "prompt": "..."} or {"id": "a1", "messages": [...]} with any generation option, or an OpenAI
    batch line. Options given here hold for lines that do not give them. Killed or interrupted, the same command goes on
    where it was: each line is answered once. A bad line fails alone. Which lines run together changes rounding errors;
    --deterministic rules that out.

    Exit status: 0 if every line has an answer, 1 if some failed.
    """
    check_values(given)
    _check_paths(input_path, folder)
    finished = None if restart or retry_failed else kind_of_batch(folder)
    known = finished in ("text", "image") and not given.media  # then the model need not be here any more
    found = Abilities(makes=[str(finished)]) if known else abilities(model, load, out)
    kind, options = options_for(found, model, given)
    done = answer_all(
        model,
        input_path,
        folder,
        answers=answers_of(kind, found, model, folder, input_path, file_format),
        defaults=located(options),
        concurrency=concurrency,
        restart=restart,
        retry_failed=retry_failed,
        load=load,
        out=out,
    )
    _report(done, out, () if kind == "text" else found.makes)
    if done.summary.failed:
        ctx.exit(FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A batch that has every answer."""

    summary: Summary
    progress: Progress
    earlier: int
    """Lines that had their answer before."""
    seconds: float
    """Of answering the others."""


def answer_all(
    model: str,
    input_path: Path,
    folder: Path,
    *,
    answers: Answers,
    defaults: dict[str, Any],
    concurrency: int | None,
    restart: bool,
    retry_failed: bool,
    load: LoadOptions,
    out: Output,
) -> Done:
    """Answer every line that has no answer yet; `defaults`: options of lines that do not give them. See `open_batch`
    and `Batch.run` for what is raised."""
    seed = defaults.pop("seed", 0)
    with open_batch(
        input_path,
        folder,
        identity=_identity(model, load),
        defaults=defaults,
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
        return Done(summary=work.finish(), progress=work.progress, earlier=earlier, seconds=seconds)


def _check_paths(input_path: Path, folder: Path) -> None:
    if not input_path.is_file():
        raise InvalidRequest(f"cannot read {input_path}: {'it is a folder' if input_path.is_dir() else 'no such file'}")
    if folder.exists() and not folder.is_dir():
        raise InvalidRequest(f"{folder} is a file; -o names the folder for the results")
    check_writable(folder)


def answers_of(
    kind: str, found: Abilities, model: str, folder: Path, input_path: Path, file_format: str | None
) -> Answers:
    """How such a model's answers are kept. Raises InvalidRequest for a format that they have not."""
    if found.takes is not None:
        if file_format is None:
            check_default(found.makes)
        else:
            check_path(Path(f"x.{file_format}"), found.makes, option="--format")
        return MediaAnswers(folder, input_path.parent, found.makes[0], found.takes, file_format)
    if kind == "image":
        if "image" not in found.makes and file_format is not None:
            check_path(Path(f"x.{file_format}"), found.makes, option="--format")
        elif file_format not in (None, *FORMATS):
            raise InvalidRequest(f"--format {file_format}: pictures are {', '.join(FORMATS)}")
        if file_format is None:
            check_default(found.makes)
        if "image" in found.makes:
            file_format = file_format or FORMATS[0]
        return PictureAnswers(folder, input_path.parent, file_format, kind=found.makes[0])
    if file_format is not None:
        raise InvalidRequest(f"--format is for models that make files, and {model} makes text")
    return TextAnswers(input_path.parent)


def located(options: dict[str, Any]) -> dict[str, Any]:
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
    made, unit = (progress.completion_tokens, "tokens")
    if progress.pictures or progress.outputs:
        made, unit = (progress.pictures, "pictures") if progress.pictures else (progress.outputs, "outputs")
    return f"{made / seconds if seconds > 0 else 0.0:.1f} {unit}/s"


def _report(done: Done, out: Output, kinds: Sequence[str]) -> None:
    """`kinds`: what was made, if not texts."""
    summary, progress, earlier, seconds = done.summary, done.progress, done.earlier, done.seconds
    made, unit = progress.completion_tokens, "tokens"
    if kinds:
        all_pictures = "image" in kinds and not progress.outputs
        made, unit = progress.pictures + progress.outputs, "pictures" if all_pictures else "outputs"
    out.json(
        {
            "results": str(summary.results),
            "lines": summary.total,
            "ok": summary.ok,
            "failed": summary.failed,
            "answered_earlier": earlier,
            "completion_tokens" if unit == "tokens" else unit: made,
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
