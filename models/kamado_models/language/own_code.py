"""Classes of a checkpoint's own code: imported, which runs it, after a person allowed that by the checkpoint's name.

The import is transformers' own. It copies the files that are needed to its cache of modules (`HF_MODULES_CACHE`, by
default `~/.cache/huggingface/modules`), into a folder named by their hash, imports them from there under
`transformers_modules`, and adds that cache to `sys.path`. It takes nothing from a network for a folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from kamado.checkpoint.own_code import OwnClass, own_class
from kamado.checkpoint.types import Checkpoint
from kamado.errors import KamadoError, UnsupportedCheckpoint
from kamado.memory.shortage import is_shortage

from .config import OWN_CLASSES
from .materialize import library_call


def own_classes(checkpoint: Checkpoint) -> dict[str, Any]:
    """The classes that `auto_map` names, by their name there (`AutoConfig`, ...). Runs the checkpoint's code.

    Raises UnsafeCheckpoint for code of another repository, UnsupportedCheckpoint where the code is missing or broken,
    or needs packages that are not installed."""
    named = {kind: own_class(checkpoint, kind) for kind in OWN_CLASSES}  # all of them, before any of them runs
    return {kind: _imported(checkpoint, own, kind) for kind, own in named.items() if own is not None}


def _imported(checkpoint: Checkpoint, own: OwnClass, kind: str) -> Any:
    base = PreTrainedConfig if kind == "AutoConfig" else PreTrainedModel
    with failures_explained(checkpoint, f"importing {own.file} failed"), library_call():
        made: Any = get_class_from_dynamic_module(str(own), str(checkpoint.root), local_files_only=True)
    if not (isinstance(made, type) and issubclass(made, base)):
        raise UnsupportedCheckpoint(f"{checkpoint.reference}: {own} in its code is no {base.__name__}")
    return made


@contextmanager
def failures_explained(checkpoint: Checkpoint, what: str) -> Iterator[None]:
    """Whatever a checkpoint's own code raises inside becomes UnsupportedCheckpoint that says `what` failed."""
    try:
        yield
    except KamadoError:
        raise
    except Exception as error:
        if is_shortage(error):
            raise
        text = " ".join(str(error).split())[:300] or "no message"
        raise UnsupportedCheckpoint(
            f"{checkpoint.reference}: {what} ({type(error).__name__}: {text}); "
            "its code may want another version of transformers, or packages that are not installed"
        ) from error
