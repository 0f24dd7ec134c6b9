"""Batches of pipelines, which make pictures, videos or sounds: what a line asks for, the files of its answer, and the
line of results.jsonl.

A file is on the disk, whole, before the journal knows of it. Killed in between, the line is answered again, into the
same file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..checkpoint.reference import must_be_path
from ..errors import InvalidRequest
from ..outputs import Output, Picture
from ..picture_requests import ALIASES, PICTURE_OPTION_NAMES
from ..requests import TEXT_OPTION_NAMES
from ..results import Result
from ..turns import relative_to
from .openai_lines import is_openai_line

MEDIA_NAME = "media"
FORMATS = ("png", "webp", "jpg")
_PLAIN = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9_])?", re.ASCII)
_SLUG_CHARACTERS = 40


class PictureAnswers:
    """See kamado.batch.runner.Answers."""

    def __init__(
        self, folder: Path, inputs: Path, file_format: str | None = FORMATS[0], *, kind: str = "image"
    ) -> None:
        """`folder` is the batch's; relative paths of input files and of adapters start from `inputs`; `kind`: what the
        model makes; `file_format`: the suffix of files without the dot, None: the usual one. Of pictures: see
        FORMATS."""
        self._folder = folder
        self._inputs = inputs
        self._format = file_format
        self._kind = kind
        self.identity: Mapping[str, Any] = {"makes": kind, "format": file_format}

    def options(self, document: Mapping[str, Any]) -> Mapping[str, Any]:
        """See Answers. Names that are nobody's go to the model's pipeline, which judges them."""
        if is_openai_line(document):
            raise InvalidRequest(
                f'OpenAI lines ask for text, and this model makes {self._made()}; write {{"id", "prompt", ...}}'
            )
        options = {key: value for key, value in document.items() if key != "id"}
        for name in options:
            if name in TEXT_OPTION_NAMES - PICTURE_OPTION_NAMES:
                raise InvalidRequest(f"{name} is for text models, and this model makes {self._made()}")
            if not name.isidentifier() or name in ("self", "preview_every"):
                raise InvalidRequest(f"unknown option: {name[:200]}")
        if "adapters" in options:
            options["adapters"] = self._placed(options["adapters"])
        return {name: self._opened(ALIASES.get(name, name), value) for name, value in options.items()}

    def seed(self, number: int) -> int:
        """See Answers. 32 bits are enough, and fit into the programs that people use."""
        return number >> 31

    def prepare(self, is_new: bool) -> None:
        """See Answers."""
        clean_media(self._folder / MEDIA_NAME, is_new)

    def keep(self, line_id: str | int, result: Result) -> dict[str, Any]:
        """See Answers. Writes the files."""
        from ..media.saving import default_suffix, save_output

        (self._folder / MEDIA_NAME).mkdir(exist_ok=True)
        files = []
        made: list[Output] = [*(Picture(image=image) for image in result.images)] or list(result.outputs)
        for position, (index, output) in enumerate(zip(result.indices, made, strict=True)):
            number = f".{index + 1}" if result.num_asked > 1 else ""
            suffix = default_suffix(output) if self._format is None else f".{self._format}"
            name = f"{MEDIA_NAME}/{safe_name(line_id)}{number}{suffix}"
            save_output(output, self._folder / name, result.recipe_of(position))
            files.append(name)
        document = {
            "id": line_id,
            "status": "ok",
            "files": files,
            "seeds": list(result.seeds),
            "error": None,
            "recipe": dict(result.recipe),
        }
        notes = [note for note in result.notes if note not in result.failure_notes]  # those stand in the error
        return document | ({"notes": notes} if notes else {})

    def failed(self, line_id: str | int, message: str) -> dict[str, Any]:
        """See Answers."""
        return {"id": line_id, "status": "failed", "files": [], "seeds": [], "error": message, "recipe": None}

    def _made(self) -> str:
        return "pictures" if self._kind == "image" else self._kind

    def _opened(self, name: str, value: Any) -> Any:
        """Input files; relative paths start where the input file lies. Raises InvalidRequest."""
        from ..media.inputs import MEDIA_INPUTS, opened_media

        if name not in MEDIA_INPUTS or value is None:
            return value
        if isinstance(value, list):
            return [self._opened(name, item) for item in value]
        return opened_media({name: relative_to(self._inputs, value)}, MEDIA_INPUTS)[name]

    def _placed(self, value: Any) -> Any:
        """Adapters as requests have them (see `parse_adapter`), with paths that hold from any folder."""
        if isinstance(value, list):
            return [self._placed(item) for item in value]
        if isinstance(value, Mapping):
            reference = value.get("reference")
            return {**value, "reference": self._path(reference) or reference} if isinstance(reference, str) else value
        if not isinstance(value, str):
            return value
        reference, separator, weight = value.rpartition(":")
        with_weight = separator and not _is_here(self._inputs / value)
        if with_weight and (path := self._path(reference)) is not None:
            return f"{path}:{weight}"
        return self._path(value) or value

    def _path(self, reference: str) -> str | None:
        """Of an adapter that is a file or a folder; None for one from elsewhere, and for a path from home."""
        if reference.startswith("~"):
            return None
        path = self._inputs / reference
        return str(path.absolute()) if reference and (must_be_path(reference) or _is_here(path)) else None


def clean_media(media: Path, is_new: bool) -> None:
    """Make a batch's folder of files ready. `is_new`: no batch was there. Raises InvalidRequest if it holds what
    answers would replace."""
    if not media.is_dir():
        return
    if is_new and any(not path.name.startswith(".") for path in media.iterdir()):
        raise InvalidRequest(f"{media} has files of no batch; give another folder, or --restart to write there")
    for path in media.glob(".*.part"):  # what a kill left half written
        path.unlink()


def _is_here(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def safe_name(line_id: str | int) -> str:
    """A file's name for an id from a stranger: the id itself if it is short and plain, else what is plain of it, a dot,
    and 12 digits of its hash. Different ids have different names, also where upper and lower case are the same."""
    text = str(line_id)
    if _PLAIN.fullmatch(text):
        return text
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower(), flags=re.ASCII).strip("-")[:_SLUG_CHARACTERS].strip("-")
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{plain or 'line'}.{digest}"


def files_of(result: Mapping[str, Any]) -> Iterator[str]:
    """The files, relative to the batch's folder, that an answer says it has; nothing outside of its media folder."""
    files = result.get("files")
    for name in files if isinstance(files, list) else ():
        if isinstance(name, str) and re.fullmatch(rf"{MEDIA_NAME}/[a-z0-9][a-z0-9_.-]*", name, re.ASCII):
            yield name
