"""A batch: an input file, a folder, and the way from one to the other that survives being killed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..errors import Cancelled, DeadlineExceeded, GenerationFailed, InvalidRequest, KamadoError
from ..files import make_folder, remove_leftovers, replacing
from ..quant import recorded
from ..results import Result
from .journal import Journal, journal_lines
from .lines import InputFile, InputLine, LineError, parse_line
from .pictures import files_of
from .texts import TextAnswers

JOURNAL_NAME = "journal.jsonl"
RESULTS_NAME = "results.jsonl"
LOCK_NAME = ".lock"
_MAX_MISSING = 3
"""So many answers that one line lacks are named in its error."""


class BatchModel(Protocol):
    """What a batch needs of a model."""

    def map(
        self, requests: Iterable[Mapping[str, Any]], concurrency: int | None = None
    ) -> Iterator[tuple[int, Result | KamadoError]]:
        """See `kamado.api.Model.map`."""


class Answers(Protocol):
    """How answers of one kind (texts, pictures) are asked for and kept."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What of it changes the answers, for the journal."""

    def options(self, document: Mapping[str, Any]) -> Mapping[str, Any]:
        """The options in the document of a line. Raises InvalidRequest."""

    def seed(self, number: int) -> int:
        """A seed that such a model takes, out of one in [0, 2**63)."""

    def prepare(self, is_new: bool) -> None:
        """The batch's folder is locked; `is_new`: no batch was there. Raises InvalidRequest if it holds what answers
        would replace."""

    def keep(self, line_id: str | int, result: Result) -> Mapping[str, Any]:
        """Write the files of an answer, if it has any: of what was made, where not all was. Returns its line of
        results.jsonl. Raises InvalidRequest, and the line has failed, or OSError, which ends the batch."""

    def failed(self, line_id: str | int, message: str) -> Mapping[str, Any]:
        """The line of results.jsonl for a line that could not be answered."""


@dataclass(slots=True)
class Progress:
    """How far a batch has come."""

    total: int
    """Input lines that are not blank."""
    answered: int
    """Of those, lines with an answer, this run's and earlier ones'."""
    completion_tokens: int = 0
    """Made in this run."""
    pictures: int = 0
    """Made in this run."""
    outputs: int = 0
    """Videos, sounds and others, made in this run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What lies in the folder when a batch is done."""

    results: Path
    total: int
    ok: int
    failed: int


@contextmanager
def open_batch(
    input_path: Path,
    folder: Path,
    *,
    identity: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
    seed: int = 0,
    restart: bool = False,
    retry_failed: bool = False,
    answers: Answers | None = None,
) -> Iterator[Batch]:
    """The batch that `folder` holds, or a new one. The folder is locked while the body runs.

    `identity`: whatever else changes the answers (model, precision, ...), compared with that of the earlier run.
    `defaults`: generation options of lines that do not give them. `seed`: lines without one get a seed made of this
    and their line number. `restart` throws earlier answers away, with their files, `retry_failed` only the failed ones.
    `answers`: the kind of answers; texts by default.
    Raises InvalidRequest if the input cannot be read, if the folder holds another batch, or is in use.
    """
    source = InputFile(input_path)
    answers = answers or TextAnswers()
    make_folder(folder)
    with _locked(folder):
        total = sum(1 for _ in source.lines())
        journal_path, results_path = folder / JOURNAL_NAME, folder / RESULTS_NAME
        remove_leftovers(journal_path)
        remove_leftovers(results_path)
        if restart:
            _throw_away(folder)
        elif results_path.exists() and not journal_path.exists():
            raise InvalidRequest(
                f"{results_path} is there, but no journal; give another folder, or --restart to replace it"
            )
        header = {"input_sha256": source.sha256, **identity, **answers.identity}
        header |= {"options": dict(defaults or {}), "seed": seed}
        answers.prepare(is_new=not restart and not journal_path.exists())
        with Journal(journal_path, header) as journal:
            if retry_failed:
                _forget_failed(folder, journal)
            yield Batch(
                input_path,
                sha256=source.sha256,
                total=total,
                journal=journal,
                results_path=results_path,
                defaults=dict(defaults or {}),
                seed=seed,
                answers=answers,
            )


def kind_of_batch(folder: Path) -> str | None:
    """What the batch in the folder makes ("text", "image"), if every line of it has been answered; else None."""
    if not (folder / RESULTS_NAME).exists():
        return None
    header = next(journal_lines(folder / JOURNAL_NAME), {})
    kind = header.get("makes")
    return kind if isinstance(kind, str) else None


def _forget_failed(folder: Path, journal: Journal) -> None:
    """The failed lines are to be run again: what was made of them goes, files too."""
    files = [name for result in journal.results() if result.get("status") != "ok" for name in files_of(result)]
    journal.forget_failed()
    for name in files:
        (folder / name).unlink(missing_ok=True)


def _throw_away(folder: Path) -> None:
    """Remove journal, results, and the files that the journal says belong to them."""
    for record in journal_lines(folder / JOURNAL_NAME):
        result = record.get("result")
        for name in files_of(result) if isinstance(result, dict) else ():
            (folder / name).unlink(missing_ok=True)
    (folder / JOURNAL_NAME).unlink(missing_ok=True)
    (folder / RESULTS_NAME).unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK_NAME)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InvalidRequest(f"another batch is running in {folder}; wait for it or give another folder") from None
    try:
        yield
    finally:
        lock.release()


class Batch:
    """One batch, with its folder locked and its journal open."""

    def __init__(
        self,
        input_path: Path,
        *,
        sha256: str,
        total: int,
        journal: Journal,
        results_path: Path,
        defaults: Mapping[str, Any],
        seed: int,
        answers: Answers,
    ) -> None:
        """See `open_batch`. `sha256` and `total` are those of the input file."""
        self._input_path = input_path
        self._sha256 = sha256
        self._journal = journal
        self._results_path = results_path
        self._defaults = defaults
        self._seed = seed
        self._answers = answers
        self.progress = Progress(total, len(journal))
        self._flying: dict[int, tuple[InputLine, str | int]] = {}

    @property
    def is_answered(self) -> bool:
        """Whether no model is needed any more."""
        return self.progress.answered == self.progress.total

    def run(
        self,
        model: BatchModel,
        *,
        concurrency: int | None = None,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        """Answer the lines that have no answer yet. `on_progress` is called after each.

        Raises Cancelled if the model is closed meanwhile, and InvalidRequest if the input file changes or the model is
        not the one that gave the earlier answers; answers that were there by then stay.
        """
        source = InputFile(self._input_path)
        earlier = next((result for result in self._journal.results() if result["status"] == "ok"), None)
        self._flying.clear()
        answers = model.map(self._requests(source, on_progress), concurrency)
        with closing(answers):  # type: ignore[type-var]  # map returns a generator; closing it cancels what runs
            for position, answer in answers:
                line, line_id = self._flying.pop(position)
                if isinstance(answer, Cancelled) and not isinstance(answer, DeadlineExceeded):
                    raise answer
                if isinstance(answer, Result):
                    _check_made_alike(earlier, answer)
                    self.progress.completion_tokens += answer.usage.completion_tokens
                    self.progress.pictures += len(answer.images)
                    self.progress.outputs += len(answer.outputs)
                self._answer(line, self._kept(line_id, line.number, answer), on_progress)
        if source.sha256 != self._sha256:
            raise InvalidRequest(f"{self._input_path} was changed while it was being read; start again with --restart")

    def _kept(self, line_id: str | int, number: int, answer: Result | KamadoError) -> Mapping[str, Any]:
        if isinstance(answer, Result):
            try:
                kept = self._answers.keep(line_id, answer)
            except InvalidRequest as error:
                answer = error
            else:
                missing = answer.failure_notes
                return {**kept, "status": "failed", "error": f"line {number}: {_told(missing)}"} if missing else kept
        return self._answers.failed(line_id, f"line {number}: {answer}")

    def finish(self) -> Summary:
        """Write the results in input order. Raises GenerationFailed if lines have no answer yet."""
        if not self.is_answered:
            missing = self.progress.total - self.progress.answered
            raise GenerationFailed(f"{missing} of {self.progress.total} lines have no answer yet; run the batch again")
        ok = failed = 0
        with replacing(self._results_path) as file:
            for result in self._journal.results():
                ok += result["status"] == "ok"
                failed += result["status"] != "ok"
                file.write(json.dumps(result, ensure_ascii=False).encode("utf-8", errors="backslashreplace") + b"\n")
        return Summary(results=self._results_path, total=self.progress.total, ok=ok, failed=failed)

    def _requests(self, source: InputFile, on_progress: Callable[[Progress], None]) -> Iterator[Mapping[str, Any]]:
        """Options of the lines that a model must answer, in order. Bad lines are answered on the way."""
        seen: dict[str, int] = {}
        position = 0
        for line in source.lines():
            is_answered = self._journal.has(line.number, line.digest)
            try:
                request = parse_line(line, self._answers.options)
                _claim(seen, request.id, line.number)
            except InvalidRequest as error:
                line_id = error.line_id if isinstance(error, LineError) else None
                if line_id is not None:
                    seen.setdefault(str(line_id), line.number)
                if not is_answered:
                    named = line_id if line_id is not None else f"line-{line.number}"
                    self._answer(line, self._answers.failed(named, f"line {line.number}: {error}"), on_progress)
                continue
            if is_answered:
                continue
            self._flying[position] = (line, request.id)
            position += 1
            given = {name: value for name, value in request.options.items() if value is not None}
            seed = self._answers.seed(line_seed(self._seed, line.number))
            yield {"seed": seed, **self._defaults, **given}

    def _answer(self, line: InputLine, result: Mapping[str, Any], on_progress: Callable[[Progress], None]) -> None:
        self._journal.add(line.number, line.digest, result)
        self.progress.answered += 1
        on_progress(self.progress)


def _check_made_alike(earlier: Mapping[str, Any] | None, result: Result) -> None:
    """A model may have been updated under its name since the batch was begun, and `auto` may mean something else."""
    if earlier is None:
        return
    then, now = earlier["recipe"] or {}, dict(result.recipe)
    if then.get("model") != now.get("model"):
        raise InvalidRequest("the model's files are not those that gave the earlier answers; start anew with --restart")
    for name in ("device", "dtype", "quant", "kv_dtype"):
        was = recorded(then.get(name)) if name == "quant" else then.get(name)
        if was != now.get(name):
            raise InvalidRequest(
                f"the earlier answers were made with another {name} ({was!r}, now {now.get(name)!r}); "
                "give another folder, or --restart to throw them away"
            )


def _told(missing: Sequence[str]) -> str:
    """What was not made, in a message that does not grow with the request."""
    more = len(missing) - _MAX_MISSING
    return "; ".join([*missing[:_MAX_MISSING], *([f"{more} more were not made"] if more > 0 else [])])


def _claim(seen: dict[str, int], line_id: str | int, number: int) -> None:
    """Note that the line has the id. Raises LineError if an earlier one has it."""
    first = seen.setdefault(str(line_id), number)
    if first != number:
        raise LineError(f"the id {line_id!r:.80} is that of line {first} already", line_id)


def line_seed(seed: int, number: int) -> int:
    """Seed of a line that gives none: the same however often the batch was interrupted. [0, 2**63)"""
    digest = hashlib.sha256(f"kamado batch {seed} line {number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
