"""`kamado run` with a pipeline that makes pictures, videos or sounds."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidRequest
from ..events import Event, Preview, Progress
from ..files import check_place, make_folder, write_new
from ..outputs import KINDS, Audio, Picture, Video
from ..outputs import Output as Made
from ..results import Result, numbered_paths
from ..units import format_seconds
from .common import LoadOptions, Output
from .kinds import as_typed, opened
from .loading import loaded_model
from .partly import check_whole
from .prompt import read_picture_prompt

if TYPE_CHECKING:
    from ..api import Model

_MAX_SLUG_BYTES = 60
_WORDS = {"image": "picture", "audio": "sound"}
"""What else kinds are called."""


def run_pictures(
    model: str,
    prompt: str | None,
    *,
    path: Path | None,
    previews: Path | None,
    kinds: Sequence[str],
    options: Mapping[str, Any],
    load: LoadOptions,
    out: Output,
) -> None:
    """Make what the model makes (`kinds`), write it, say where. `path` None: named files in the current folder. Raises
    InvalidRequest before anything is loaded where a file cannot be read or written, what loading and generating raise,
    and what `check_whole` raises."""
    asked = read_picture_prompt(prompt, out)
    check_target(path, kinds, options.get("n", 1))
    if previews is None and "preview_every" in options:
        raise InvalidRequest("preview_every says how often previews are written; --preview DIR says where")
    given = opened(options)
    if previews is not None:
        given.setdefault("preview_every", 1)
        make_folder(previews)
    request = given if asked is None else {"prompt": asked, **given}
    with loaded_model(model, load, out, request) as (_, loaded):
        result = make(loaded, asked, given, out, previews=previews, what=_WORDS.get(kinds[0], kinds[0]))
    files = _save(result, path, slug(asked or "") or slug(Path(model).name) or "picture")
    for note in result.notes:
        if note not in result.failure_notes:
            out.note(note)
    for file in files:
        out.text(f"{file}\n")
    out.json(_document(model, asked, options, result, files))
    out.detail(
        f"{len(files)} x {_size(_made(result)[0])} in {format_seconds(result.timings.total_s)}, "
        f"seed {', '.join(map(str, result.seeds))}"
    )
    check_whole(result.failure_notes, out)


def make(
    loaded: Model,
    prompt: str | Sequence[str] | None,
    options: Mapping[str, Any],
    out: Output,
    *,
    previews: Path | None = None,
    what: str = "picture",
) -> Result:
    """Run one request under a bar of its steps. Leaving it cancels it. `what`: the word for one of its answers. Raises
    what the request failed of."""
    count = options.get("n", 1)
    job = loaded.submit(prompt, **options)
    try:
        with out.progress(None, f"1 {what}" if count == 1 else f"{count} {what}s", unit="steps") as update:
            show = Steps(count, update)
            for event in job.events():
                show.put(event)
                if previews is not None and isinstance(event, Preview):
                    _save_preview(event, previews, count)
        return job.result()
    except BaseException:
        job.cancel()
        raise


class Steps:
    """Adds up the steps of the pictures of one request."""

    def __init__(self, count: int, update: Callable[[int, int], None]) -> None:
        self._count = count
        self._update = update
        self._seen: dict[int, tuple[int, int]] = {}

    def put(self, event: Event) -> None:
        """One more event."""
        if isinstance(event, Progress):
            self._seen[event.index] = event.step, event.total
            done, totals = map(sum, zip(*self._seen.values(), strict=True))
            # Pictures that have not begun will take as many as the others.
            self._update(done, totals + (self._count - len(self._seen)) * event.total)


def check_target(path: Path | None, kinds: Sequence[str] = ("image",), count: int = 1) -> None:
    """Raise InvalidRequest unless `count` outputs of one of `kinds` can be written to `path`; None: to files in the
    current folder."""
    from ..media.pictures import check_picture_path

    if path is None:
        check_place(Path("x"))
        return
    if "image" not in kinds:
        check_path(path, kinds)
    else:
        for each in numbered_paths(path, count):
            check_picture_path(each)
    check_place(path)


def check_path(path: Path, kinds: Sequence[str], option: str = "-o") -> None:
    """Raise InvalidRequest unless one of `kinds` can be written to a file of that name, which `option` gave."""
    from ..media.saving import check_libraries, suffixes_of_kind

    suffix = path.suffix.lower()
    known = list(dict.fromkeys(each for kind in kinds for each in suffixes_of_kind(kind)))
    if suffix not in known:
        what = " or ".join(kinds)
        raise InvalidRequest(f"{option} {path}: this makes {what} files, which end in {', '.join(known)}")
    check_libraries(next(kind for kind in kinds if suffix in suffixes_of_kind(kind)), suffix)


def check_default(kinds: Sequence[str]) -> None:
    """Raise InvalidRequest where files of the usual suffix of the first of `kinds` need a library that is missing."""
    from ..media.saving import check_libraries, suffixes_of_kind

    check_libraries(kinds[0], next(iter(suffixes_of_kind(kinds[0])), ""))


def slug(text: str) -> str:
    """A short piece of a file's name out of any text: lower-case letters and digits of any script, and dashes."""
    folded = unicodedata.normalize("NFKC", text[: 4 * _MAX_SLUG_BYTES]).lower()
    plain = re.sub(r"[\W_]+", "-", folded).strip("-")
    if len(plain.encode("utf-8", "ignore")) <= _MAX_SLUG_BYTES:
        return plain
    cut = plain.encode("utf-8", "ignore")[:_MAX_SLUG_BYTES].decode("utf-8", "ignore")
    return (cut.rpartition("-")[0] or cut).strip("-")


def _save(result: Result, path: Path | None, name: str) -> list[Path]:
    if path is not None:
        return result.save(path)
    from ..media.saving import default_suffix, save_output

    def write(index: int, output: Made) -> Path:
        recipe = result.recipe_of(index)
        target = Path(f"{name}-{result.seeds[index]}{default_suffix(output)}")
        return write_new(target, lambda file: save_output(output, file, recipe))

    return [write(index, output) for index, output in enumerate(_made(result))]


def _made(result: Result) -> list[Made]:
    return [*(Picture(image=image) for image in result.images)] or list(result.outputs)


def _size(made: Made) -> str:
    """For people."""
    if isinstance(made, Picture):
        return f"{made.image.width} x {made.image.height} pixels"
    if isinstance(made, Video):
        frames, height, width = made.frames.shape[:3]
        return f"{width} x {height} pixels x {frames} frames at {made.fps:g} a second"
    return f"{made.duration_s:.2f} s" if isinstance(made, Audio) else KINDS[type(made)]


def _save_preview(event: Preview, folder: Path, count: int) -> None:
    """As `preview-0007.png`, or, of the second of several pictures, `preview-2-0007.png`."""
    from ..media.pictures import open_picture, save_picture

    which = f"{event.index + 1}-" if count > 1 else ""
    save_picture(open_picture(event.image), folder / f"preview-{which}{event.step:04}.png", None)


def _document(
    model: str, prompt: str | None, options: Mapping[str, Any], result: Result, files: list[Path]
) -> dict[str, Any]:
    """What --json prints."""
    return {
        "model": model,
        "request": ({} if prompt is None else {"prompt": prompt}) | as_typed(options),
        "files": [str(file) for file in files],
        "seeds": list(result.seeds),
        "failures": [failure.as_dict() for failure in result.failures],
        "finish_reason": result.finish_reason,
        "notes": list(result.notes),
        "timings": {"queued_s": result.timings.queued_s, "total_s": result.timings.total_s},
        "recipe": dict(result.recipe),
    }
