"""Batches of models that declare their options: sounds, videos, vectors, transcripts, pictures of other kinds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InvalidRequest
from ..options import Options
from ..outputs import KINDS, Output, Picture, Transcript
from ..results import Result
from ..turns import relative_to
from .openai_lines import is_openai_line
from .pictures import MEDIA_NAME, clean_media, safe_name

IN_LINE = ("transcript", "embedding", "scores")
"""What stands in the results themselves, not in files."""


class MediaAnswers:
    """See kamado.batch.runner.Answers."""

    def __init__(self, folder: Path, inputs: Path, kind: str, takes: Options, file_format: str | None = None) -> None:
        """`folder` is the batch's; relative paths of input files start from `inputs`; `kind`: what the model makes
        first; `takes`: its options; `file_format`: the suffix of files, without the dot."""
        self._folder = folder
        self._inputs = inputs
        self._takes = takes
        self._format = file_format
        self.identity: Mapping[str, Any] = {"makes": kind, "format": file_format}

    def options(self, document: Mapping[str, Any]) -> Mapping[str, Any]:
        """See Answers."""
        if is_openai_line(document):
            raise InvalidRequest('OpenAI lines ask for text, which this model does not make; write {"id", ...}')
        takes = self._takes
        placed = {
            name: relative_to(self._inputs, value) if takes.names_file(name, value) else value
            for name, value in document.items()
            if name != "id"
        }
        asked = takes.checked(placed)
        self._check_format(asked)
        return asked

    def _check_format(self, asked: Mapping[str, Any]) -> None:
        """Raise InvalidRequest where what comes out is no file of the format."""
        from ..media.saving import suffixes_of_kind

        kinds = self._takes.kinds_of(asked, ())
        if self._format is None or not kinds or any(kind in IN_LINE for kind in kinds):
            return
        known = list(dict.fromkeys(suffix for kind in kinds for suffix in suffixes_of_kind(kind)))
        if f".{self._format}" not in known:
            raise InvalidRequest(
                f"this makes {' or '.join(kinds)} files, which end in {', '.join(known)}, not .{self._format}"
            )

    def seed(self, number: int) -> int:
        """See Answers."""
        return number >> 31

    def prepare(self, is_new: bool) -> None:
        """See Answers."""
        clean_media(self._folder / MEDIA_NAME, is_new)

    def keep(self, line_id: str | int, result: Result) -> dict[str, Any]:
        """See Answers. Writes the files."""
        from ..media.saving import default_suffix, document_of, save_output

        made: list[Output] = [Picture(image=image) for image in result.images] or list(result.outputs)
        files: list[str] = []
        said: list[dict[str, Any]] = []
        for position, (index, output) in enumerate(zip(result.indices, made, strict=True)):
            if KINDS[type(output)] in IN_LINE:
                said.append(document_of(output))
                continue
            (self._folder / MEDIA_NAME).mkdir(exist_ok=True)
            number = f".{index + 1}" if result.num_asked > 1 else ""
            suffix = f".{self._format}" if self._format else default_suffix(output)
            name = f"{MEDIA_NAME}/{safe_name(line_id)}{number}{suffix}"
            save_output(output, self._folder / name, result.recipe_of(position))
            files.append(name)
        has_text = result.text or any(isinstance(output, Transcript) for output in made)
        text = {"text": result.text} if has_text else {}
        notes = [note for note in result.notes if note not in result.failure_notes]
        return {
            "id": line_id,
            "status": "ok",
            **text,
            "files": files,
            **({"outputs": said} if said else {}),
            "seeds": list(result.seeds),
            "error": None,
            "recipe": dict(result.recipe),
            **({"notes": notes} if notes else {}),
        }

    def failed(self, line_id: str | int, message: str) -> dict[str, Any]:
        """See Answers."""
        return {"id": line_id, "status": "failed", "files": [], "seeds": [], "error": message, "recipe": None}
