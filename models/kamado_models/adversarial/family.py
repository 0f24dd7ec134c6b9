"""Generators of adversarial networks, and networks that restore pictures. Importing this loads no torch."""

from __future__ import annotations

from ..library.family import LibraryFamily
from .latent_kind import LatentKind
from .restore_kind import RestoreKind
from .translate_kind import TranslateKind

FAMILY = LibraryFamily("adversarial", (LatentKind(), RestoreKind(), TranslateKind()))
