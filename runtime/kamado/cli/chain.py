"""`kamado chain`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from ..batch.journal import Journal
from ..batch.lines import InputFile, parse_line
from ..batch.media import IN_LINE
from ..batch.pictures import safe_name
from ..chains.chain import CONCURRENCY, Chain, ChainResult
from ..chains.files import read_chain
from ..errors import InvalidRequest
from ..files import check_writable, make_folder, replacing
from ..outputs import KINDS, Output, Picture
from ..results import Result
from .common import Output as Channels
from .common import SectionedCommand, common_options
from .loading import pull_bar, quiet_libraries

FAILED = 1
JOURNAL, RESULTS, MEDIA = "journal.jsonl", "results.jsonl", "media"


@click.command(cls=SectionedCommand)
@click.argument("file", metavar="CHAIN.toml", type=click.Path(path_type=Path))
@click.option("-o", "folder", metavar="DIR", required=True, type=click.Path(path_type=Path), help="Where results go.")
@click.option("--input", "given", multiple=True, metavar="NAME=TEXT", help="An input of the chain. Repeatable.")
@click.option(
    "--inputs", "lines", type=click.Path(path_type=Path), metavar="FILE.jsonl", help="Many sets of inputs, one a line."
)
@click.option("--concurrency", type=click.IntRange(1, 1024), default=CONCURRENCY, metavar="N", help="Sets at once.")
@click.option("--device", metavar="NAME", default="auto", help="auto, cpu, cuda, cuda:1, ...  [auto]")
@click.option("--memory", metavar="SIZE", help="The most memory to use, like 8GiB.  [most of what is free]")
@click.option("--offline", is_flag=True, help="Never use the network.")
@common_options
@click.pass_context
def chain(
    ctx: click.Context,
    file: Path,
    folder: Path,
    *,
    given: tuple[str, ...],
    lines: Path | None,
    concurrency: int,
    device: str,
    memory: str | None,
    offline: bool,
    out: Channels,
) -> None:
    """Run the models in CHAIN.toml, what one makes going into the next, into DIR.

    DIR/results.jsonl gets a line for each set of inputs, with what each step made; pictures, sounds and videos lie in
    DIR/media. Steps that do not wait for each other run at once, and so do several sets of inputs. Stopped, the same
    command goes on where it was. docs/chains.md has the file's form.

    Exit status: 0 if every step of every set was made, 1 if some failed.
    """
    from ..api import Runtime

    found = read_chain(file)
    sets = dict(_sets(found, given, lines))
    check_writable(folder)
    if not (folder / JOURNAL).exists():
        _check_models(found, offline, out)
    make_folder(folder)
    header = {"chain": file.read_text(encoding="utf-8"), "inputs": list(sets.values())}
    with _journal(folder, header) as journal:
        left = {number: inputs for number, inputs in sets.items() if not journal.has(number, str(number))}
        if len(left) < len(sets) and left:
            out.note(f"going on after {len(sets) - len(left)} of {len(sets)} sets of inputs")
        if left:
            with (
                Runtime(device=device, memory=memory) as runtime,
                out.progress(len(sets), file.stem, unit="sets") as update,
                quiet_libraries(out),
            ):
                numbers = list(left)
                plain = [{name: value for name, value in left[number].items() if name != "id"} for number in numbers]
                settings = {"offline": True} if offline else {}
                for result in found.with_settings(settings).map(runtime, plain, concurrency=concurrency):
                    number = numbers[result.index]
                    journal.add(number, str(number), _kept(found, left[number]["id"], result, folder))
                    update(len(journal))
        documents = list(journal.results())
    with replacing(folder / RESULTS) as results:
        for document in documents:
            results.write(json.dumps(document, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
    failed = sum(document["status"] != "ok" for document in documents)
    out.json({"results": str(folder / RESULTS), "sets": len(documents), "failed": failed})
    _show(documents, folder, out)
    if failed:
        out.note(f"{failed} of {len(documents)} sets of inputs failed; their errors are in the results")
        ctx.exit(FAILED)


def _check_models(found: Chain, offline: bool, out: Channels) -> None:
    """Have every model here, before anything is written. Raises ModelNotFound, UnsupportedCheckpoint,
    UnsafeCheckpoint."""
    from ..checkpoint.inspect import inspect
    from ..families import find

    for model in dict.fromkeys(str(step.model) for step in found.steps):
        with pull_bar(out, f"pull {model}") as progress:
            find(inspect(model, offline=offline, progress=progress, detail=out.detail))


def _journal(folder: Path, header: Mapping[str, Any]) -> Journal:
    try:
        return Journal(folder / JOURNAL, header)
    except InvalidRequest as error:
        raise InvalidRequest(
            f"{folder} holds results of another chain, or of other inputs; give another folder"
        ) from error


def _sets(found: Chain, given: tuple[str, ...], lines: Path | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, inputs with an id) of what was typed and of each line. Raises InvalidRequest."""
    shared: dict[str, Any] = {}
    for item in given:
        name, separator, value = item.partition("=")
        if not separator or name in shared:
            raise InvalidRequest(f"--input {item!r:.80}: write it as NAME=TEXT, each name once")
        shared[name] = value
    if lines is None:
        found.check_inputs(shared)
        yield 1, {"id": "1", **shared}
        return
    seen: set[str] = set()
    for line in InputFile(lines).lines():
        try:
            request = parse_line(line, lambda document: {key: item for key, item in document.items() if key != "id"})
            checked = found.check_inputs({**shared, **request.options})
        except InvalidRequest as error:
            raise InvalidRequest(f"{lines}, line {line.number}: {error}") from None
        if str(request.id) in seen:
            raise InvalidRequest(f"{lines}, line {line.number}: the id {request.id!r:.80} was there before")
        seen.add(str(request.id))
        yield line.number, {"id": request.id, **checked}


def _kept(found: Chain, line_id: str | int, result: ChainResult, folder: Path) -> dict[str, Any]:
    """Write the files of one set of inputs; its line of the results."""
    steps: dict[str, Any] = {}
    for step in found.steps:
        if step.name in result.results:
            steps[step.name] = {
                "status": "ok",
                **_made(result.results[step.name], f"{safe_name(line_id)}.{step.name}", folder),
            }
        elif step.name in result.errors:
            steps[step.name] = {"status": "failed", "error": str(result.errors[step.name])}
        else:
            steps[step.name] = {"status": "skipped"}
    return {
        "id": line_id,
        "status": "ok" if result.is_whole else "failed",
        "inputs": dict(result.inputs),
        "steps": steps,
    }


def _made(result: Result, name: str, folder: Path) -> dict[str, Any]:
    from ..media.saving import default_suffix, document_of, save_output

    outputs: list[Output] = [*(Picture(image=image) for image in result.images)] or list(result.outputs)
    files: list[str] = []
    said: list[Mapping[str, Any]] = []
    for position, output in enumerate(outputs):
        if KINDS[type(output)] in IN_LINE:
            said.append(document_of(output))
            continue
        (folder / MEDIA).mkdir(exist_ok=True)
        number = f".{position + 1}" if len(outputs) > 1 else ""
        files.append(f"{MEDIA}/{name}{number}{default_suffix(output)}")
        save_output(output, folder / files[-1], result.recipe_of(position))
    return {
        **({"text": result.text} if result.text else {}),
        **({"files": files} if files else {}),
        **({"outputs": said} if said else {}),
        "recipe": dict(result.recipe),
    }


def _show(documents: list[Any], folder: Path, out: Channels) -> None:
    """For one set of inputs what each step made, for several where to look."""
    if len(documents) != 1:
        out.line(str(folder / RESULTS))
        return
    for name, step in documents[0]["steps"].items():
        files = [str(folder / file) for file in step.get("files", ())]
        told = [step["error"]] if "error" in step else files or [step.get("text", step["status"])]
        out.line(f"{name}: {', '.join(str(each).strip() for each in told)}")
