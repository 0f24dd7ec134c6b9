"""GGUF files as transformers models: configuration, tensor names, tensor layout, vocabulary."""

from __future__ import annotations

from .families import ARCHITECTURES, config_from_gguf

__all__ = ["ARCHITECTURES", "config_from_gguf"]
