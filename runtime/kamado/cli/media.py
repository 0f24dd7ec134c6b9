"""`kamado run` with a model that makes sounds, videos, vectors and whatever else is neither plain text nor a picture of
a diffusion model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import check_place, write_new
from ..options import Options
from ..outputs import KINDS, Output, Picture, Transcript
from ..results import Result, numbered_paths
from ..units import format_seconds
from .common import LoadOptions
from .common import Output as Channels
from .kinds import as_typed
from .loading import loaded_model
from .partly import check_whole
from .pictures import check_default, check_path, make, slug
from .prompt import check_once, read_picture_prompt

if TYPE_CHECKING:
    from collections.abc import Sequence

TEXTS = ("transcript", "embedding", "scores")
"""What comes out as text unless a file is asked for."""


def run_media(
    model: str,
    prompt: str | None,
    *,
    path: Path | None,
    kinds: Sequence[str],
    takes: Options,
    options: Mapping[str, Any],
    load: LoadOptions,
    out: Channels,
) -> None:
    """Make what the model makes, write it, say where; `kinds`: what that is. `path` None: named files in the current
    folder, and texts to stdout. Raises InvalidRequest before anything is loaded where a file cannot be read or written,
    what loading and generating raise, and what `check_whole` raises."""
    from ..media.inputs import opened_media

    check_once(prompt, options)
    asked = prompt
    if "prompt" in takes.names and "prompt" not in options:
        asked = read_picture_prompt(prompt, out)
    request = dict(options) if asked is None else {"prompt": asked, **options}
    checked = takes.checked(request)
    kinds = takes.kinds_of(checked, kinds)
    if path is None:
        check_default(kinds)
        if kinds[0] not in TEXTS:
            check_place(Path("x"))
    else:
        check_path(path, kinds)
        check_place(path)
    opened = opened_media(checked, takes.inputs)  # what cannot be opened is found out before loading
    with loaded_model(model, load, out, opened) as (_, loaded):
        others = {name: value for name, value in opened.items() if name != "prompt"}
        result = make(loaded, opened.get("prompt"), others, out, what="output")
    files = _write(result, path, slug(asked or "") or slug(Path(model).name) or "output", out)
    for note in result.notes:
        if note not in result.failure_notes:
            out.note(note)
    for file in files:
        out.text(f"{file}\n")
    out.json(_document(model, request, result, files))
    out.detail(f"made in {format_seconds(result.timings.total_s)}, seed {', '.join(map(str, result.seeds))}")
    check_whole(result.failure_notes, out)


def told(output: Output) -> Any:
    """What a document says of an output that is no file: JSON."""
    from ..media.saving import document_of

    return document_of(output)


def _write(result: Result, path: Path | None, name: str, out: Channels) -> list[Path]:
    """Files of what was made, with the recipe inside."""
    from ..media.saving import default_suffix, save_output, text_of

    made: list[Output] = [Picture(image=image) for image in result.images] or list(result.outputs)
    if path is not None:
        targets = [numbered_paths(path, result.num_asked)[index] for index in result.indices]
        for index, (output, target) in enumerate(zip(made, targets, strict=True)):
            save_output(output, target, result.recipe_of(index))
        return targets
    files: list[Path] = []
    for index, output in enumerate(made):
        if KINDS[type(output)] in TEXTS:
            out.text(text_of(output))
            continue
        recipe = result.recipe_of(index)

        def save(file: Path, output: Output = output, recipe: Mapping[str, Any] = recipe) -> None:
            save_output(output, file, recipe)

        files.append(write_new(Path(f"{name}-{result.seeds[index]}{default_suffix(output)}"), save))
    return files


def _document(model: str, request: Mapping[str, Any], result: Result, files: list[Path]) -> dict[str, Any]:
    """What --json prints."""
    said = [told(output) for output in result.outputs if KINDS[type(output)] in TEXTS]
    first = next((output for output in result.outputs if isinstance(output, Transcript)), None)
    return {
        "model": model,
        "request": as_typed(request),
        "files": [str(file) for file in files],
        **({"text": result.text} if first is not None or result.text else {}),
        **({"outputs": said} if said else {}),
        "seeds": list(result.seeds),
        "failures": [failure.as_dict() for failure in result.failures],
        "finish_reason": result.finish_reason,
        "notes": list(result.notes),
        "timings": {"queued_s": result.timings.queued_s, "total_s": result.timings.total_s},
        "recipe": dict(result.recipe),
    }
