"""Pulling from the hub: which files, and bringing them here so that a broken pull goes on where it stopped.

huggingface_hub knows the hub's addresses, tokens, proxies and metadata. The transfer is Kamado's own: that library
starts a file anew after a kill.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import HubUnreachable, KamadoError, ModelNotFound, UnsafeCheckpoint, UnsupportedCheckpoint
from ..files import flush
from .folder import ADAPTER_NAMES, PICKLE_SUFFIXES, READABLE_SUFFIXES
from .paths import below, check_name
from .reference import HubReference
from .store import DEFAULT_BRANCH, Entry, Store, StoredFile, faults_at_a_glance, make_entry, require_space
from .types import Detail, Progress

LOOK_UP_TIMEOUT_S = 3.0
"""After this the hub counts as unreachable, and the next source is tried."""
READ_TIMEOUT_S = 30.0
MAX_ATTEMPTS = 4
"""In a row without a new byte."""
MAX_REMOTE_FILES = 20_000
MAX_SIDE_FILE_BYTES = 256 << 20
MAX_CODE_FILE_BYTES = 8 << 20
_CHUNK_BYTES = 1 << 20
_HIDDEN = re.compile(r"(?:^|/)\.[^./]")
_STEP = re.compile(r"\d+_\w+/model\.safetensors")
_PAUSE_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One file of a repository."""

    name: str
    size: int
    sha256: str | None
    """Of large files."""
    git_sha1: str | None
    """Of small files: git's hash of the blob."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteModel:
    """What the hub says of one revision of a repository."""

    repository: str
    revision: str
    """The commit."""
    files: tuple[RemoteFile, ...]


def look_up(reference: HubReference) -> RemoteModel:
    """Ask the hub, within 3 seconds. Raises HubUnreachable, ModelNotFound, UnsupportedCheckpoint."""
    answers: list[RemoteModel | Exception] = []

    def ask() -> None:
        try:
            answers.append(_ask(reference))
        except (KamadoError, RuntimeError, ValueError, TypeError, AttributeError, OSError) as error:
            answers.append(error)

    # In a thread of its own because resolving a name has no timeout: without a network it can take 20 seconds.
    thread = threading.Thread(target=ask, name="kamado-hub", daemon=True)
    thread.start()
    thread.join(LOOK_UP_TIMEOUT_S + 0.5)
    if not answers:
        raise _unreachable(reference, "no answer")
    if isinstance(answers[0], Exception):
        raise answers[0]
    return answers[0]


def choose_files(model: RemoteModel) -> tuple[RemoteFile, ...]:
    """The files of `model` that Kamado can use: weights once, as safetensors or GGUF, and the data files beside them;
    beside safetensors and a `config.json` also Python files, which are data until somebody allows to run them.

    Raises UnsafeCheckpoint for pickles only or hostile names, UnsupportedCheckpoint if there is nothing to run.
    """
    files = {file.name: file for file in model.files if not _HIDDEN.search(file.name)}
    side = {
        name
        for name, file in files.items()
        if name.count("/") <= 2 and _suffix(name) in READABLE_SUFFIXES and file.size <= MAX_SIDE_FILE_BYTES
    }
    weights = {name for name in files if _suffix(name) == ".safetensors"}
    chosen: set[str] = set()
    if "model_index.json" in files:
        for folder in {name.rpartition("/")[0] for name in weights if name.count("/") == 1}:
            chosen |= _choose_weights(weights | side, f"{folder}/")
    else:
        chosen = _choose_weights(weights | side, "")
        if "modules.json" in files:  # sentence-transformers: steps with weights have folders of their own
            chosen |= {name for name in weights if _STEP.fullmatch(name)}
    ggufs = sorted(name for name in files if _suffix(name) == ".gguf")
    if not chosen and len(ggufs) == 1:
        chosen = set(ggufs)
    if not chosen:
        _refuse(model, ggufs, [name for name in files if _suffix(name) in PICKLE_SUFFIXES])
    side |= _code_files(files) if not chosen.intersection(ggufs) else set()
    wanted = sorted(chosen | {name for name in side if not name.endswith(".md")})
    for name in wanted:
        check_name(name, where=f"the repository {model.repository}")
    return tuple(files[name] for name in wanted)


def _code_files(files: Mapping[str, RemoteFile]) -> set[str]:
    """Python files that a `config.json` may name. Whether it does is not known before it is here; they are small."""
    if "config.json" not in files or "model_index.json" in files:
        return set()
    return {
        name
        for name, file in files.items()
        if "/" not in name and _suffix(name) == ".py" and file.size <= MAX_CODE_FILE_BYTES
    }


def pull_from_hub(
    store: Store,
    reference: HubReference,
    *,
    progress: Progress | None,
    detail: Detail,
    choose: Callable[[RemoteModel], tuple[RemoteFile, ...]] = choose_files,
    source: str = "hub",
) -> Entry:
    """Bring `reference` into the store, or find it there. Raises KamadoError (OSError for the disk).

    `choose` says which files, and `source` what an entry with these is called."""
    model = look_up(reference)
    wanted = choose(model)
    entry = make_entry(
        store, source, reference.repository, requested=(reference.revision or DEFAULT_BRANCH,), revision=model.revision,
        target=_target(wanted), files={},
    )  # fmt: skip
    with store.locked(entry.id, waiting=lambda: detail(f"another process is pulling {reference}; waiting for it")):
        finished = next((known for known in store.entries() if known.id == entry.id), None)
        if finished is not None and not faults_at_a_glance(finished):
            return store.adopt(finished, reference.revision or DEFAULT_BRANCH)
        detail(f"pulling {reference} at commit {model.revision[:12]}: {len(wanted)} files")
        files = _fetch_all(store.partial(entry.id), model, wanted, progress)
        stage = store.partial(entry.id) / "stage"
        return store.finish(stage, make_entry(
            store, source, reference.repository, requested=entry.requested, revision=model.revision,
            target=entry.target, files=files,
        ))  # fmt: skip


def _http_error() -> type[Exception]:
    """What huggingface_hub's HTTP client raises: httpx2 from 2.0 on, httpx before, which transformers 5.17 asks for."""
    try:
        client = import_module("httpx2")
    except ImportError:
        client = import_module("httpx")
    error: type[Exception] = client.HTTPError
    return error


def _ask(reference: HubReference) -> RemoteModel:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        info = HfApi().model_info(
            reference.repository, revision=reference.revision, files_metadata=True, timeout=LOOK_UP_TIMEOUT_S
        )
    except GatedRepoError as error:
        raise _gated(reference) from error
    except RevisionNotFoundError as error:
        raise ModelNotFound(f"{reference.repository} has no revision {reference.revision!r} on the hub") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelNotFound(
            f"{reference.repository} is not on the hub, or is private: check the name, or log in with `hf auth login`"
        ) from error
    except HfHubHTTPError as error:
        raise _unreachable(reference, f"status {error.response.status_code}") from error
    except (_http_error(), OfflineModeIsEnabled, OSError) as error:
        raise _unreachable(reference, type(error).__name__) from error
    return _remote_model(reference, info)


def _remote_model(reference: HubReference, info: Any) -> RemoteModel:
    siblings = info.siblings or []
    if not isinstance(info.sha, str) or len(siblings) > MAX_REMOTE_FILES:
        raise UnsupportedCheckpoint(f"the hub's answer for {reference} has no commit or too many files")
    files = [
        RemoteFile(
            name=file.rfilename,
            size=file.size,
            sha256=file.lfs.sha256 if file.lfs is not None else None,
            git_sha1=file.blob_id if file.lfs is None else None,
        )
        for file in siblings
        if isinstance(file.rfilename, str) and isinstance(file.size, int) and file.size >= 0
    ]
    return RemoteModel(repository=reference.repository, revision=info.sha, files=tuple(files))


def _unreachable(reference: HubReference, why: str) -> HubUnreachable:
    return HubUnreachable(
        f"{reference} is not on this machine, and the hub cannot be reached ({why}); "
        "check the network, or give a folder or file that is here"
    )


def _gated(reference: HubReference) -> ModelNotFound:
    return ModelNotFound(f"{reference.repository} is gated: accept its terms on the hub, then `hf auth login`")


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _target(wanted: tuple[RemoteFile, ...]) -> str:
    ggufs = [file.name for file in wanted if _suffix(file.name) == ".gguf"]
    return ggufs[0] if ggufs else "."


def _choose_weights(names: set[str], folder: str) -> set[str]:
    """The safetensors files of one folder, once: the plain ones before variants (`fp16`), else a lone file."""
    here = {name[len(folder) :] for name in names if name.startswith(folder) and "/" not in name[len(folder) :]}
    weights = {name for name in here if _suffix(name) == ".safetensors"}
    for stem in ("model", "diffusion_pytorch_model", "model.fp16", "diffusion_pytorch_model.fp16"):
        if f"{stem}.safetensors" in weights:
            return {f"{folder}{stem}.safetensors"}
        first, _, variant = stem.partition(".")
        index = f"{first}.safetensors.index.{variant}.json" if variant else f"{first}.safetensors.index.json"
        if index in here:
            shards = {name for name in weights if name.startswith(f"{stem}-")}
            return {folder + name for name in shards} | {folder + index}
    adapters = [name for name in ADAPTER_NAMES if name in weights]
    return {folder + name for name in adapters[:1] or weights} if adapters or len(weights) == 1 else set()


def _refuse(model: RemoteModel, ggufs: list[str], pickles: list[str]) -> None:
    if ggufs:
        raise UnsupportedCheckpoint(
            f"{model.repository} holds several GGUF files ({', '.join(ggufs[:4])}{', ...' if len(ggufs) > 4 else ''}); "
            "download one and name the file"
        )
    if pickles:
        raise UnsafeCheckpoint(
            f"{model.repository} has its weights only as pickles ({', '.join(pickles[:3])}), and loading a pickle can "
            "run code; nothing was pulled. If you trust it, download it and use kamado convert-pickle"
        )
    raise UnsupportedCheckpoint(f"{model.repository} holds no safetensors or GGUF weights that it is clear to take")


def _fetch_all(
    folder: Path, model: RemoteModel, wanted: tuple[RemoteFile, ...], progress: Progress | None
) -> dict[str, StoredFile]:
    total = sum(file.size for file in wanted)
    stage = folder / "stage" / "files"
    parts = folder / "parts"
    stage.mkdir(parents=True, exist_ok=True)
    parts.mkdir(exist_ok=True)
    here = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    require_space(folder, max(0, total - here))
    stored: dict[str, StoredFile] = {}
    done = 0
    for file in wanted:
        base = done

        def report(part: int, base: int = base) -> None:
            if progress is not None:
                progress(base + part, total)

        stored[file.name] = _fetch(model, file, below(stage, file.name), parts, report)
        done += file.size
    shutil.rmtree(parts, ignore_errors=True)
    return stored


def _fetch(
    model: RemoteModel, file: RemoteFile, target: Path, parts: Path, report: Callable[[int], None]
) -> StoredFile:
    """One file, verified before it gets its name. What arrived before a kill is kept and continued."""
    identity = f"{model.revision}/{file.name}/{file.sha256 or file.git_sha1}"
    part = parts / f"{hashlib.sha256(identity.encode()).hexdigest()}.partial"
    if target.exists():  # from a pull that was stopped later on
        part.unlink(missing_ok=True)
        target.replace(part)
    sha256 = None
    for _ in range(2):
        _transfer(model, file, part, report)
        sha256 = _sound_hash(part, file)
        if sha256 is not None:
            break
        part.unlink()
    if sha256 is None:
        raise UnsupportedCheckpoint(
            f"{file.name} of {model.repository} arrived twice with the wrong hash; nothing was kept, try later"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    flush(part)
    part.replace(target)
    report(file.size)
    return StoredFile(sha256=sha256, size=file.size)


def _sound_hash(part: Path, file: RemoteFile) -> str | None:
    """SHA-256 of what arrived, or None if it is not what the hub announced."""
    sha256, git_sha1 = _hashes(part)
    return sha256 if file.sha256 in (None, sha256) and file.git_sha1 in (None, git_sha1) else None


def _hashes(path: Path) -> tuple[str, str]:
    """SHA-256, and git's hash of the same bytes as a blob."""
    sha256 = hashlib.sha256()
    git = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            sha256.update(chunk)
            git.update(chunk)
    return sha256.hexdigest(), git.hexdigest()


def _transfer(model: RemoteModel, file: RemoteFile, part: Path, report: Callable[[int], None]) -> None:
    """Bring `part` to the file's size, from where it is."""
    attempts = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        if before > file.size:
            part.unlink()
            before = 0
        if before == file.size and part.exists():
            return
        why = "it ended early"
        try:
            _request(model, file, part, before, report)
        except _Busy as error:
            why = str(error)
        except _http_error() as error:
            why = type(error).__name__
        grew = part.exists() and part.stat().st_size > before
        attempts = 0 if grew else attempts + 1
        if attempts >= MAX_ATTEMPTS:
            raise HubUnreachable(
                f"the transfer of {file.name} of {model.repository} broke off ({why}); pull again to go on"
            )
        time.sleep(_PAUSE_S * 2**attempts if attempts else 0)


class _Busy(Exception):
    """The hub asks to come back later."""


def _request(model: RemoteModel, file: RemoteFile, part: Path, start: int, report: Callable[[int], None]) -> None:
    from huggingface_hub import constants, get_session, get_token, hf_hub_url

    headers = {"Accept-Encoding": "identity"}
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    if token:  # the client drops it where a redirect leads to another host
        headers["Authorization"] = f"Bearer {token}"
    if start:
        headers["Range"] = f"bytes={start}-"
    url = hf_hub_url(model.repository, file.name, revision=model.revision)
    with get_session().stream("GET", url, headers=headers, timeout=READ_TIMEOUT_S) as answer:
        status = answer.status_code
        if status in (408, 416, 429) or status >= 500:
            if status == 416:
                part.unlink(missing_ok=True)
            raise _Busy(f"status {status}")
        if status not in (200, 206):
            raise ModelNotFound(
                f"{file.name} of {model.repository} cannot be had (status {status}); is the model gated?"
            )
        continues = status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        if start and status == 206 and not continues:
            raise KamadoError(f"the hub answered for other bytes of {file.name} than those asked for; try again later")
        with part.open("ab" if continues else "wb") as out:
            have = start if continues else 0
            for chunk in answer.iter_bytes(_CHUNK_BYTES):
                have += len(chunk)
                if have > file.size:
                    raise UnsupportedCheckpoint(f"{file.name} of {model.repository} is longer than the hub said")
                out.write(chunk)
                report(have)
