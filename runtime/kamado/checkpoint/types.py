"""What is known of a checkpoint before a weight is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Layout = Literal["transformers", "diffusers", "component", "safetensors", "gguf", "ncnn"]
Progress = Callable[[int, int], None]
"""Called as `progress(done_bytes, total_bytes)`; the total is 0 while it is not known."""
Detail = Callable[[str], None]
"""Gets one line for those who asked for more (`-v`)."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies."""

    name: str
    dtype: str
    """safetensors name (`F32`, `BF16`, `I64`, ...) or GGML type name (`Q4_1`, `Q6_K`, ...)."""
    shape: tuple[int, ...]
    """As torch has it: outermost dimension first (GGUF stores it the other way round)."""
    file: Path
    offset: int
    """Of the first byte, from the start of the file."""
    nbytes: int

    @property
    def numel(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Header data of one checkpoint: what `inspect` returns and what families judge."""

    reference: str
    """What the person typed."""
    root: Path
    """The folder, or the single file."""
    layout: Layout
    config: Mapping[str, Any]
    """`config.json` or `model_index.json`; empty for a bare file."""
    metadata: Mapping[str, Any]
    """GGUF key-values (long arrays as `GgufArray`), safetensors `__metadata__`, or the `layers` of ncnn's
    graph; otherwise empty."""
    tensors: Mapping[str, TensorEntry] = field(repr=False)
    files: Mapping[str, Path] = field(repr=False)
    """Every other file of the checkpoint that may be read, by name relative to `root`, e.g. `tokenizer.json`."""
    code: Mapping[str, Path] = field(default_factory=dict, repr=False)
    """Its Python files beside `config.json`, by name, where it wants its own code run. Data, until that is allowed."""
    revision: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Generation options that its catalog, or its folder, recommends for it."""
    parts: Mapping[str, Checkpoint | None] = field(default_factory=dict, repr=False)
    """What was asked to take the place of its components, by name: see `parts`. None: nothing does."""
    base: Checkpoint | None = field(default=None, repr=False)
    """The pipeline that was named for what a single file lacks."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(entry.nbytes for entry in self.tensors.values())

    @property
    def parameters(self) -> int:
        return sum(entry.numel for entry in self.tensors.values())
