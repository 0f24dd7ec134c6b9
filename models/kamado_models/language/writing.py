"""A language model written anew, with quantized weights: a folder that loads at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kamado.checkpoint.types import Checkpoint
from kamado.errors import UnsupportedCheckpoint
from kamado.quant import Quant
from kamado.weights.quantized.saving import write_quantized_tensors
from kamado.weights.quantized.stored.methods import check_architecture
from kamado.weights.stream import ReadableTensor, lazy_tensors

from .config import transformers_classes
from .gguf.tensors import tensors_from_gguf
from .media.sizes import text_quant
from .shape import tied_names
from .tokenizer import load_tokenizer

WEIGHTS = "model.safetensors"


def write_quantized(checkpoint: Checkpoint, quant: Quant, folder: Path) -> Mapping[str, int]:
    """See Family.write_quantized. `checkpoint.config` must be in the form of a `config.json`."""
    if "quantization_config" in checkpoint.config:
        raise UnsupportedCheckpoint(f"{checkpoint.reference} is quantized already; take the original")
    check_architecture(checkpoint.config, checkpoint.reference)
    tensors: Mapping[str, ReadableTensor]
    if checkpoint.layout == "gguf":
        config, _ = transformers_classes(checkpoint)
        tensors = tensors_from_gguf(checkpoint, config, torch.float32)
        _write_tokenizer(checkpoint, folder)
    else:
        stored = lazy_tensors(checkpoint.tensors)
        tied = tied_names(checkpoint)
        tensors = {name: tensor for name, tensor in stored.items() if name not in tied}
        _copy_files(checkpoint, folder)
    written = write_quantized_tensors(folder / WEIGHTS, tensors, text_quant(checkpoint.config, quant) or quant)
    told = {} if written.config is None else {"quantization_config": written.config}
    _write_json(folder / "config.json", {**checkpoint.config, **told})
    return written.kept


def _copy_files(checkpoint: Checkpoint, folder: Path) -> None:
    for name, source in checkpoint.files.items():
        if name == "config.json" or name.endswith(".index.json"):
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _write_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    tokenizer = load_tokenizer(checkpoint)
    tokenizer.backend.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", tokenizer.as_config())
    _write_json(folder / "generation_config.json", {"eos_token_id": sorted(tokenizer.eos_ids)})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
