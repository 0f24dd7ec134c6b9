"""Autoencoders as models of their own. Importing this loads no torch."""

from __future__ import annotations

from ..library.family import LibraryFamily
from .kind import AutoencoderKind

FAMILY = LibraryFamily("autoencoders", (AutoencoderKind(),))
