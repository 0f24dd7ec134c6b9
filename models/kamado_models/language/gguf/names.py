"""Names of tensors in GGUF files, and which of them can stay packed. No torch."""

from __future__ import annotations

import re
from typing import Any

from kamado.checkpoint.types import Checkpoint, TensorEntry
from kamado.weights.quantized.stored.ggml import kept

from .families import find_architecture
from .source import GgufSource

ROWS_MOVED = frozenset({"unpermute_q", "unpermute_k", "interleave_qkv", "group_qkv"})
"""Transforms that only change the order of rows."""
OLD_EXPERT = re.compile(r"\Ablk\.([0-9]+)\.(ffn_gate|ffn_up|ffn_down)\.([0-9]+)\.weight\Z")
"""Experts in files that do not stack them."""
_LAYER = re.compile(r"\A(blk)\.(0|[1-9][0-9]{0,4})\.")
_SUFFIXES = (".weight", ".bias")


def template(name: str) -> tuple[str, str]:
    """`blk.12.attn_q.weight` -> (`blk.{n}.attn_q.weight`, `12`)."""
    match = _LAYER.match(name)
    return (f"blk.{{n}}.{name[match.end() :]}", match.group(2)) if match else (name, "")


def split(name: str) -> tuple[str, str]:
    """`x.weight` -> (`x`, `.weight`); names with another end have no suffix."""
    for suffix in _SUFFIXES:
        if name.endswith(suffix):
            return name[: -len(suffix)], suffix
    return name, ""


def look_up(table: Any, name: str) -> tuple[Any, str]:
    """What `table` says of a template, and the suffix that the answer still lacks."""
    if name in table:
        return table[name], ""
    stem, suffix = split(name)
    return (table[stem], suffix) if stem in table else (None, "")


def packed_tensors(checkpoint: Checkpoint) -> dict[str, TensorEntry]:
    """The tensors of a GGUF file, with a StoredWeight for each matrix that is loaded as it is but for the order of its
    rows, and for each stack of experts. Raises UnsupportedCheckpoint for an unknown architecture."""
    source = GgufSource(checkpoint)
    architecture = find_architecture(source)
    merged = {name for names, _ in architecture.merged.values() for name in names}

    def stays(entry: TensorEntry) -> TensorEntry:
        name, _ = template(entry.name)
        transform, _ = look_up(architecture.transforms, name)
        named = look_up(architecture.names, name)[0] is not None and len(entry.shape) == 2
        experts = look_up(architecture.experts, name)[0] is not None or OLD_EXPERT.match(entry.name) is not None
        if experts or (named and name not in merged and (transform is None or transform in ROWS_MOVED)):
            return kept(entry) or entry
        return entry

    return {name: stays(entry) for name, entry in source.tensors.items()}
