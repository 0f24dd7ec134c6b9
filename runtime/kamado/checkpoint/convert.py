"""Pickled weights to safetensors, on explicit demand only, in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import InvalidRequest, KamadoError, ModelNotFound, UnsafeCheckpoint, UnsupportedCheckpoint
from ..files import flush, make_folder, write_json
from .folder import MAX_INDEX_BYTES, PICKLE_SUFFIXES, list_folder
from .paths import below
from .safetensors_header import looks_like_pickle, read_safetensors_header
from .strict_json import read_json_object

CHILD = Path(__file__).with_name("convert_child.py")
TIMEOUT_S = 3600.0
MAX_ANSWER_BYTES = 1 << 20
_STEMS = {"pytorch_model": "model"}
_INDEX_SUFFIX = ".index.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """What one conversion wrote."""

    source: Path
    target: Path
    num_tensors: int
    dropped: tuple[str, ...]
    """Names of the first 20 things in it that are no tensors."""


def convert_pickles(source: Path, folder: Path, *, timeout_s: float = TIMEOUT_S) -> list[Converted]:
    """Write the pickled weights of `source`, a file or a checkpoint's folder, as safetensors to the new `folder`, with
    the data files beside them. `folder` appears when all is done, or not at all.

    Each pickle is read by torch's restricted unpickler in a process of its own: isolated, without environment, limited
    in memory, time and file size, and without network, programs and other files to write. That process being broken
    out of is unlikely, not impossible.

    Raises ModelNotFound, InvalidRequest, UnsafeCheckpoint (a pickle that wants more than tensors),
    UnsupportedCheckpoint and KamadoError.
    """
    if not source.exists():
        raise ModelNotFound(f"{source} does not exist")
    if folder.exists():
        raise InvalidRequest(f"{folder} is there already; name a new folder")
    make_folder(folder.parent)
    with _told(source, folder):
        stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            done = _convert_folder(source, stage, timeout_s) if source.is_dir() else [
                _convert_file(source, stage / _new_name(source.name), timeout_s)
            ]  # fmt: skip
            stage.chmod(0o755)
            stage.rename(folder)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    return [replace(item, target=folder / item.target.relative_to(stage)) for item in done]


def _convert_folder(source: Path, stage: Path, timeout_s: float) -> list[Converted]:
    listing = list_folder(source)
    if not listing.pickles:
        raise UnsupportedCheckpoint(f"{source} holds no pickles to convert")
    done: list[Converted] = []
    for name in listing.pickles:
        path = below(source, name)
        if not _is_pickle(path):
            continue
        target = stage / os.path.dirname(name) / _new_name(os.path.basename(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        done.append(_convert_file(path, target, timeout_s))
    if not done:
        raise UnsupportedCheckpoint(
            f"{source} holds no pickles to convert: {listing.pickles[0]} is none by its content"
        )
    for name in listing.readable:
        path = below(source, name)
        target = stage / os.path.dirname(name) / _new_name(os.path.basename(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(tuple(f"{suffix}{_INDEX_SUFFIX}" for suffix in PICKLE_SUFFIXES)):
            _convert_index(path, target)
        else:
            shutil.copyfile(path, target)
    return done


def _new_name(name: str) -> str:
    """`pytorch_model-00001-of-00002.bin` -> `model-00001-of-00002.safetensors`; other kinds of files stay."""
    index = name.endswith(_INDEX_SUFFIX)
    stem, suffix = os.path.splitext(name.removesuffix(_INDEX_SUFFIX))
    if suffix.lower() not in PICKLE_SUFFIXES:
        return name
    for old, new in _STEMS.items():
        if stem == old or stem.startswith(f"{old}-"):
            stem = new + stem[len(old) :]
    return f"{stem}.safetensors{_INDEX_SUFFIX if index else ''}"


def _convert_index(path: Path, target: Path) -> None:
    index = read_json_object(path, max_bytes=MAX_INDEX_BYTES)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict):
        raise UnsupportedCheckpoint(f"{path} has no weight_map")
    write_json(target, {**index, "weight_map": {key: _new_name(str(value)) for key, value in weight_map.items()}})


@contextmanager
def _told(source: Path, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        path = Path(error.filename or folder)
        is_source = path == source or source in path.parents
        told = f"{path} cannot be read" if is_source else f"{folder} cannot be written"
        raise KamadoError(f"{told}: {error.strerror or error}") from error


def _is_pickle(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return looks_like_pickle(file.read(4))
    except OSError as error:
        raise UnsupportedCheckpoint(f"{path} cannot be read: {error.strerror or error}") from error


def _convert_file(source: Path, target: Path, timeout_s: float) -> Converted:
    if not _is_pickle(source):
        raise UnsupportedCheckpoint(
            f"{source} is no pickle of weights, by its content; give a file that torch.save wrote"
        )
    size = source.stat().st_size
    with tempfile.TemporaryDirectory(prefix="kamado-convert-") as scratch:
        answer = _run_child(source.absolute(), target.absolute(), 2 * size + (64 << 20), Path(scratch), timeout_s)
    if "error" in answer:
        kind = UnsafeCheckpoint if answer.get("unsafe") else UnsupportedCheckpoint
        raise kind(f"{source} cannot be converted: {answer['error']}")
    header = read_safetensors_header(target)
    flush(target)
    return Converted(
        source=source,
        target=target,
        num_tensors=len(header.tensors),
        dropped=tuple(map(str, answer.get("dropped", ()))),
    )


def _run_child(source: Path, target: Path, max_bytes: int, scratch: Path, timeout_s: float) -> Mapping[str, Any]:
    command = [sys.executable, "-I", "-X", "utf8", str(CHILD), str(source), str(target), str(max_bytes)]
    kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH") if name in os.environ}
    environment = {**kept, "HOME": str(scratch), "TMPDIR": str(scratch), "OMP_NUM_THREADS": "1"}
    try:
        run = subprocess.run(
            command, cwd=scratch, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise UnsupportedCheckpoint(f"{source} was not converted after {timeout_s:.0f} s; it was given up") from error
    lines = run.stdout[-MAX_ANSWER_BYTES:].decode("utf-8", "replace").splitlines()
    if run.returncode != 0 or not lines:
        last = " ".join(run.stderr.decode("utf-8", "replace").strip().splitlines()[-1:])[:200]
        raise KamadoError(f"{source} was not converted: its process ended with status {run.returncode} {last}".rstrip())
    try:
        answer = json.loads(lines[-1])
    except ValueError as error:
        raise KamadoError(f"{source} was not converted: its process answered nonsense") from error
    assert isinstance(answer, dict)
    return answer
