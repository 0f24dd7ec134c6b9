"""Models that make music and sounds. Importing this loads no torch."""

from __future__ import annotations

from ..library.family import LibraryFamily
from .musicgen import MusicgenKind
from .symbolic import SymbolicKind

FAMILY = LibraryFamily("music", (MusicgenKind(), SymbolicKind()))
