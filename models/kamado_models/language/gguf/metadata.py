"""Typed access to the key-values of a GGUF file. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kamado.checkpoint.types import Checkpoint
from kamado.errors import UnsupportedCheckpoint

_MISSING: Any = object()
_LARGEST = 1 << 40


class GgufMetadata:
    """Key-values of one file, read with a type. `{arch}` in a key stands for the name of the architecture."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._values: Mapping[str, Any] = checkpoint.metadata
        self._file = checkpoint.root
        architecture = self._values.get("general.architecture")
        if not isinstance(architecture, str) or not architecture:
            raise UnsupportedCheckpoint(f"{self._file} does not say what it is: general.architecture is missing")
        self.architecture = architecture

    def _get(self, key: str, default: Any) -> Any:
        name = key.format(arch=self.architecture)
        value = self._values.get(name, default)
        if value is _MISSING:
            raise UnsupportedCheckpoint(f"{self._file} lacks the value {name}, which this architecture needs")
        return value

    def _wrong(self, key: str, value: Any, wanted: str) -> UnsupportedCheckpoint:
        return UnsupportedCheckpoint(
            f"{self._file}: {key.format(arch=self.architecture)} must be {wanted}, not {value!r:.60}"
        )

    def has(self, key: str) -> bool:
        """Whether the file has a value for `key`."""
        return key.format(arch=self.architecture) in self._values

    def integer(self, key: str, default: int = _MISSING) -> int:
        """A whole number from 0 to 2**40. Raises UnsupportedCheckpoint."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LARGEST:
            raise self._wrong(key, value, "a whole number, not below 0")
        return value

    def optional_integer(self, key: str) -> int | None:
        """A whole number, or None when the file has none."""
        return self.integer(key) if self.has(key) else None

    def number(self, key: str, default: float = _MISSING) -> float:
        """A finite number, rounded to the 7 digits that a float32 holds (1e-5, not 9.99999974e-06)."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self._wrong(key, value, "a finite number")
        return float(f"{value:.7g}")

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def text(self, key: str, default: str = _MISSING) -> str:
        """A text."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a text")
        return value

    def array(self, key: str, default: Sequence[Any] | None = _MISSING) -> list[Any]:
        """A list; long ones are read from the file now."""
        value = self._get(key, default)
        load = getattr(value, "load", None)
        if load is not None:
            value = load()
        if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
            raise self._wrong(key, value, "a list")
        return list(value)

    def length(self, key: str) -> int:
        """Number of elements of a list, 0 when it is missing; a long one is not read where its length is known."""
        value = self._get(key, ())
        try:
            return len(value)
        except TypeError:
            return len(self.array(key))

    def per_layer(self, key: str, default: int = _MISSING) -> int | list[int]:
        """A whole number, or one for each layer where they differ."""
        value = self._get(key, default)
        if isinstance(value, int) and not isinstance(value, bool):
            return self.integer(key, default)
        numbers = self.array(key)
        if not numbers or any(isinstance(n, bool) or not isinstance(n, int) or not 0 <= n <= _LARGEST for n in numbers):
            raise self._wrong(key, numbers, "a whole number or a list of them")
        return numbers[0] if len(set(numbers)) == 1 else numbers
