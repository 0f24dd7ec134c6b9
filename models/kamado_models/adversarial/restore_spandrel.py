"""Spandrel, which builds networks that restore pictures from their tensors (ADR 0026)."""

from __future__ import annotations

import builtins
import importlib.util
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType, SimpleNamespace
from typing import Any

from kamado.errors import UnsupportedCheckpoint

_INSTALL = "pip install einops && pip install --no-deps 'spandrel>=0.4.2,<0.5'"
_WANTED = "torchvision.transforms.functional"
_WANTING = ("spandrel.architectures.LaMa.__arch.LaMa", "spandrel.architectures.RestoreFormer")
"""The two modules of spandrel that import torchvision, for three names in all."""
_LOCK = threading.Lock()


def spandrel() -> Any:
    """The library. Raises UnsupportedCheckpoint, which says what to install."""
    with _LOCK:
        missing = [name for name in ("spandrel", "einops") if name not in sys.modules and _is_absent(name)]
        if missing:
            raise UnsupportedCheckpoint(
                f"networks that restore pictures need {' and '.join(missing)}, which is not installed: {_INSTALL}"
            )
        try:
            if "spandrel" in sys.modules or not _is_absent("torchvision"):
                return importlib.import_module("spandrel")
            with _supplied():
                return importlib.import_module("spandrel")
        except ImportError as error:
            raise UnsupportedCheckpoint(f"spandrel cannot be imported ({error}); install it: {_INSTALL}") from error


def _is_absent(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is None
    except (ImportError, ValueError):
        return True


@contextmanager
def _supplied() -> Iterator[None]:
    """While inside, `_WANTING` get what they want of torchvision from here. Nothing else sees it, and there is never a
    module of that name."""
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Finder:
    """Finds the modules of `_WANTING`, and no others."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _WANTING:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    """Runs a module whose import statements find `_WANTED` here."""

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": _import}
        super().exec_module(module)


def _import(name: str, *args: Any, **kwargs: Any) -> Any:
    return _FUNCTIONS if name == _WANTED else builtins.__import__(name, *args, **kwargs)


class _Interpolation(Enum):
    NEAREST = "nearest"
    BILINEAR = "bilinear"


def _normalize(tensor: Any, mean: Sequence[float], std: Sequence[float], inplace: bool = False) -> Any:
    """(..., channels, height, width), less the mean, over the deviation, of each channel."""
    shift, scale = (tensor.new_tensor(values)[:, None, None] for values in (mean, std))
    return tensor.sub_(shift).div_(scale) if inplace else (tensor - shift) / scale


def _rotate(*args: Any, **kwargs: Any) -> Any:
    raise ImportError("this variant of LaMa turns pictures, for which torchvision must be installed")


_FUNCTIONS = SimpleNamespace(normalize=_normalize, rotate=_rotate, InterpolationMode=_Interpolation)
