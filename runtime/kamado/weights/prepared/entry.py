"""The prepared weights of one load: found, or kept for the next one."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...checkpoint.digest import file_digests, known_digests
from ...checkpoint.types import Checkpoint
from ...checkpoint.unchanged import marks
from ...kernels.native import FORMS, native
from ...quant import Quant
from .file import Contents, Layout, Unusable
from .forms import NotKept
from .keeping import Keeping, Pending
from .modules import Described

FORMAT = 1
"""Of the files, and of what is prepared. It grows with every change of what a form means."""
LEAST_BYTES = 16 << 20
"""Smaller checkpoints are read as quickly."""
_LIBRARIES = ("kamado", "torch", "transformers", "diffusers")
_OWN_CODE = Path(__file__).parents[2]

_log = logging.getLogger(__name__)


class Entry:
    """What one model, or one component of a pipeline, becomes with certain settings."""

    def __init__(
        self,
        keeping: Keeping,
        checkpoint: Checkpoint,
        *,
        files: Sequence[Path],
        what: str,
        config: Mapping[str, Any],
        quant: Quant | None,
        dtype: str,
        device: str,
    ) -> None:
        """`files` are those of the weights, `what` and `config` say what they become. Make it before they are read."""
        self._folder, self._keeping = keeping.folder, keeping
        self._reference = checkpoint.reference
        self._files = sorted(set(files))
        self._marks = marks(checkpoint)
        self._checkpoint = checkpoint
        self._settings = {
            "format": FORMAT,
            "what": what,
            "config": hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest(),
            "quant": None if quant is None else quant.as_json(),
            "dtype": dtype,
            "device": device.partition(":")[0],
            "kernels": FORMS if device == "cpu" and native() is not None else None,
            "versions": _versions(),
            "code": code_mark(_OWN_CODE / "weights", _OWN_CODE / "kernels"),
        }

    def find(self) -> Contents | None:
        """What an earlier load has left, compared with its check sums; None where there is nothing. What is of no use
        is deleted."""
        digests = known_digests(self._files)
        if digests is None:
            return None
        key = self._key(digests)
        path = self._folder.path(key)
        try:
            found = Contents(path, key, mapped=self._settings["device"] != "cpu")
            found.verify()
        except OSError:
            return None
        except Unusable as error:
            _log.debug("prepared weights are made anew: %s", error)
            self._folder.remove(path)
            return None
        self._folder.note_use(path)
        return found

    def refuse(self, file: Contents) -> None:
        """Delete what `find` gave: it does not fit."""
        self._folder.remove(file.path)

    def keep(self, modules: Mapping[str, nn.Module]) -> Kept | None:
        """Note what the modules hold, to be written later; None where it cannot be. The memory of what they hold stays
        taken until then: what is replaced meanwhile should be little."""
        try:
            return Kept(self, Described(modules))
        except NotKept as error:
            _log.debug("%s is not kept as it is prepared: %s", self._reference, error)
            return None

    def write(self, described: Described, facts: Mapping[str, Any]) -> Pending:
        """Have it written, when the model has answered for the first time."""
        layout = Layout(described.parts)
        told = {"tensors": described.tensors, "facts": dict(facts), "reference": self._reference}

        def write(going_on: Any) -> None:
            def check(_: int) -> None:
                if not going_on():
                    raise InterruptedError("the model is not there any more")

            found = file_digests(self._files, progress=check)
            digests = {str(path): digest for path, digest in found.items()}
            if marks(self._checkpoint) != self._marks:
                return  # what was read may be neither the one nor the other
            key = self._key(digests)
            with self._folder.writing(self._folder.path(key), layout.nbytes) as file:
                if file is not None and not layout.write(file, {"key": key, **told}, going_on):
                    raise InterruptedError("the model is not there any more")

        return self._keeping.later(write)

    def _key(self, digests: Mapping[str, str]) -> dict[str, Any]:
        return {**self._settings, "files": [digests[str(path)] for path in self._files]}


class Kept:
    """What will be written."""

    def __init__(self, entry: Entry, described: Described) -> None:
        self._entry = entry
        self._described = described
        self.nbytes = described.nbytes

    def write(self, facts: Mapping[str, Any]) -> Pending:
        """See Entry.write. `facts` (JSON): what else was found out."""
        return self._entry.write(self._described, facts)


@cache
def _versions() -> str:
    found = []
    for name in _LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return ", ".join([*found, torch.__version__])


@cache
def code_mark(*folders: Path) -> str:
    """Changes with the programs in there that prepare weights, also where their version does not."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            status = path.stat()
            digest.update(f"{path.relative_to(folder.parent)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
