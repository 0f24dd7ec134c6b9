"""Texts into vectors and scores: embeddings, reranking, masked models. Importing this loads no torch."""

from __future__ import annotations

from ..library.family import LibraryFamily
from .classifying import ClassifyingKind, JudgingKind
from .embeddings import EmbeddingKind
from .masked import MaskedKind

FAMILY = LibraryFamily("vectors", (EmbeddingKind(), JudgingKind(), ClassifyingKind(), MaskedKind()))
