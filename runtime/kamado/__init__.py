"""Kamado: a self-hosted runtime for open-weight generative models.

Importing it loads no torch; names are taken from their modules when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Model as Model
    from .api import Runtime as Runtime
    from .api import generate as generate
    from .chains.chain import Chain as Chain
    from .chains.chain import ChainResult as ChainResult
    from .chains.chain import ChainStep as ChainStep
    from .chains.files import read_chain as read_chain
    from .errors import Cancelled as Cancelled
    from .errors import ContextOverflow as ContextOverflow
    from .errors import DeadlineExceeded as DeadlineExceeded
    from .errors import DoesNotFit as DoesNotFit
    from .errors import GenerationFailed as GenerationFailed
    from .errors import HubUnreachable as HubUnreachable
    from .errors import InvalidRequest as InvalidRequest
    from .errors import KamadoError as KamadoError
    from .errors import ModelNotFound as ModelNotFound
    from .errors import UnsafeCheckpoint as UnsafeCheckpoint
    from .errors import UnsupportedCheckpoint as UnsupportedCheckpoint
    from .events import Event as Event
    from .events import Finished as Finished
    from .events import Media as Media
    from .events import Preview as Preview
    from .events import Progress as Progress
    from .events import Started as Started
    from .events import Token as Token
    from .grids.grid import Grid as Grid
    from .grids.grid import grid as grid
    from .jobs import Job as Job
    from .memory.devices import devices as devices
    from .outputs import Audio as Audio
    from .outputs import Mesh as Mesh
    from .outputs import Note as Note
    from .outputs import Score as Score
    from .outputs import Transcript as Transcript
    from .outputs import Video as Video
    from .quality import Quality as Quality
    from .quant import Quant as Quant
    from .quantizing import quantize as quantize
    from .replaying import Replay as Replay
    from .replaying import replay as replay
    from .results import Failure as Failure
    from .results import Result as Result

    __version__: str

_HOMES = {
    ".api": ("Model", "Runtime", "generate"),
    ".chains.chain": ("Chain", "ChainResult", "ChainStep"),
    ".chains.files": ("read_chain",),
    ".errors": (
        "Cancelled",
        "ContextOverflow",
        "DeadlineExceeded",
        "DoesNotFit",
        "GenerationFailed",
        "HubUnreachable",
        "InvalidRequest",
        "KamadoError",
        "ModelNotFound",
        "UnsafeCheckpoint",
        "UnsupportedCheckpoint",
    ),
    ".events": ("Event", "Finished", "Media", "Preview", "Progress", "Started", "Token"),
    ".grids.grid": ("Grid", "grid"),
    ".jobs": ("Job",),
    ".memory.devices": ("devices",),
    ".outputs": ("Audio", "Mesh", "Note", "Score", "Transcript", "Video"),
    ".quality": ("Quality",),
    ".quant": ("Quant",),
    ".quantizing": ("quantize",),
    ".replaying": ("Replay", "replay"),
    ".results": ("Failure", "Result"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [*sorted(_HOME_OF)]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home, __name__), name)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("kamado")
    except PackageNotFoundError:  # imported from a source tree that was never installed
        return "0+unknown"


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
