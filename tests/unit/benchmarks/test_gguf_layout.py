"""Layouts with random weights as GGUF files are what they say, and Kamado reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch

import gguf_files

Program = Callable[[str], ModuleType]


def test_a_layout_is_read_as_it_was_meant(program: Program, tmp_path: Path) -> None:
    written = program("gguf_layout")
    path = written.write_gguf_layout("tiny", tmp_path / "tiny.gguf")
    layout = program("layouts").LAYOUTS["tiny"]
    checkpoint = gguf_files.checkpoint_of(path)
    assert checkpoint.metadata["llama.block_count"] == layout["num_hidden_layers"]
    assert {entry.dtype for entry in checkpoint.tensors.values()} == {"Q8_0", "F32"}
    model = gguf_files.load(checkpoint)
    for name in ("vocab_size", "hidden_size", "num_key_value_heads", "intermediate_size", "max_position_embeddings"):
        assert getattr(model.config, name) == layout[name]
    assert not model.config.tie_word_embeddings
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            assert torch.equal(weight, torch.ones_like(weight)), name
        else:
            assert abs(float(weight.mean())) < 1e-3 and 0.019 < float(weight.std()) < 0.021, name
    with torch.inference_mode():
        logits = model(torch.tensor([[1, 2, 3]])).logits
    assert logits.shape == (1, 3, layout["vocab_size"]) and bool(logits.isfinite().all())


def test_the_same_file_every_time(program: Program, tmp_path: Path) -> None:
    write = program("gguf_layout").write_gguf_layout
    first, second, other = (write("tiny", tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert first.read_bytes() == second.read_bytes() != other.read_bytes()
