"""`kamado replay`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InvalidRequest
from ..files import check_place
from ..units import format_seconds
from .common import LoadOptions, Output, SectionedCommand, common_options, model_options
from .loading import abilities, loaded_model
from .pictures import make

if TYPE_CHECKING:
    from ..media.compare import Comparison
    from ..replaying import Replay, Replayable

NOT_AS_EXPECTED = 1
_PLURALS = {"vertex": "vertices"}
_FILE = click.Path(path_type=Path)


@click.command(cls=SectionedCommand)
@click.argument("file", type=_FILE)
@click.option("-o", "out_path", metavar="OUT", type=_FILE, help="Where to write it.  [FILE-replay]")
@click.option("--model", metavar="MODEL", help="The model, if it is not where the recipe says.")
@click.option(
    "--adapter", "adapters", multiple=True, metavar="PATH", help="An adapter that lies elsewhere; all, in their order."
)
@click.option("--image", type=_FILE, multiple=True, metavar="FILE", help="The input picture, if there was one.")
@click.option("--mask", type=_FILE, metavar="FILE", help="The mask, if there was one.")
@click.option("--control", type=_FILE, multiple=True, metavar="FILE", help="What a ControlNet saw, if there was one.")
@click.option("--audio", type=_FILE, multiple=True, metavar="FILE", help="The input sound, if there was one.")
@click.option("--video", type=_FILE, multiple=True, metavar="FILE", help="The input video, if there was one.")
@click.option("--input", "named", multiple=True, metavar="NAME=FILE", help="An input of another name.")
@click.option(
    "--adapter-image", type=_FILE, multiple=True, metavar="FILE", help="What an IP-Adapter saw, if there was one."
)
@model_options
@common_options
@click.pass_context
def replay(
    ctx: click.Context,
    /,
    file: Path,
    *,
    out_path: Path | None,
    model: str | None,
    adapters: tuple[str, ...],
    named: tuple[str, ...],
    load: LoadOptions,
    out: Output,
    **given: Any,
) -> None:
    """Make FILE (a picture, a sound, a video, ...) again from the recipe in it, and say whether they are the same.

    The model is loaded in the precision that it had; --dtype asks for another. A recipe knows input files by their
    hashes, so they must be given.

    Exit status: 0 if it was made, 1 if it differs from FILE although nothing that the recipe knows of is different. One
    that was made in a batch with others may differ by rounding.
    """
    from ..replaying import replayable

    given["ip_adapter_image"] = given.pop("adapter_image")
    given = {**{name: files for name, files in given.items() if files}, **_inputs(named)}
    found = replayable(
        file, out_path, model=model, components=load.components, base=load.base, adapters=adapters, inputs=given
    )
    check_place(out_path or file)
    load = replace(
        load,
        dtype=load.dtype if load.dtype != "auto" else found.loading.get("dtype", "auto"),
        quant=load.quant if load.quant != "none" else found.loading.get("quant", "none"),
        components=found.loading.get("components"),
        base=found.loading.get("base"),
    )
    out.note(f"the recipe in {file} asks {found.reference} for it, with seed {found.options.get('seed', 'unknown')}")
    with found.explained():
        able = abilities(found.reference, load, out)
    found.check_makes(able.makes, able.takes)
    request = found.request(able.takes)
    with loaded_model(found.reference, load, out, request) as (_, loaded):
        options = dict(request)
        again = found.finish(make(loaded, options.pop("prompt", None), options, out, what=_word(found)))
    out.text(f"{again.path}\n")
    for line in (*again.result.notes, *_verdict(file, again)):
        out.note(line)
    out.detail(f"made in {format_seconds(again.result.timings.total_s)}")
    out.json(_document(file, found.reference, again))
    if not again.as_expected:
        ctx.exit(NOT_AS_EXPECTED)


def _verdict(file: Path, again: Replay) -> list[str]:
    lines = [f"different now: {difference}" for difference in again.differences]
    what = again.comparison.what
    if again.equal:
        return [*lines, f"equal: every {what} is that of {file}"]
    if again.equal is None:
        told = f"; {_apart(again.comparison)}" if again.comparison.different else ""
        return [*lines, f"{file} is in a format that loses detail, so whether it is equal cannot be told{told}"]
    lines.append(f"not equal: {_apart(again.comparison)}")
    if again.rounding and again.comparison.within(again.rounding):
        lines.append("that is rounding: it was made in a batch with others, which moves values a little")
    elif not again.differences:
        most = f"a batch moves no value by more than {again.rounding}, and " if again.rounding else ""
        lines.append(f"{most}nothing that the recipe knows of is different: {file} was changed after it was made")
    return lines


def _apart(comparison: Comparison) -> str:
    if not comparison.same_size:
        return "the size is another one" if comparison.full else "it says something else"
    count, what = comparison.different, comparison.what
    differ = f"1 {what} differs" if count == 1 else f"{count} {_PLURALS.get(what, f'{what}s')} differ"
    return f"{differ}, by up to {comparison.largest:g} of {comparison.full:g}"


def _word(found: Replayable) -> str:
    return "picture" if found.kind == "image" else "output"


def _inputs(named: tuple[str, ...]) -> dict[str, Any]:
    """`NAME=FILE` of inputs without a flag; of one name, a list."""
    found: dict[str, Any] = {}
    for item in named:
        name, separator, path = item.partition("=")
        if not separator or not name.isidentifier() or not path:
            raise InvalidRequest(f"--input {item!r:.80}: write it as NAME=FILE")
        found.setdefault(name, []).append(Path(path))
    return found


def _document(file: Path, reference: str, again: Replay) -> dict[str, Any]:
    """What --json prints."""
    what = again.comparison.what
    return {
        "file": str(file),
        "model": reference,
        "files": [str(again.path)],
        "equal": again.equal,
        "same_size": again.comparison.same_size,
        f"different_{_PLURALS.get(what, f'{what}s')}": again.comparison.different,
        "largest_difference": again.comparison.largest,
        "full_scale": again.comparison.full,
        "rounding": again.rounding,
        "as_expected": again.as_expected,
        "differences": list(again.differences),
        "seeds": list(again.result.seeds),
        "timings": {"queued_s": again.result.timings.queued_s, "total_s": again.result.timings.total_s},
        "recipe": dict(again.result.recipe),
    }
