"""A pipeline written anew, with quantized weights: a folder that loads at once."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from kamado.checkpoint.types import Checkpoint
from kamado.errors import UnsupportedCheckpoint
from kamado.quant import Quant
from kamado.weights.deferred import ShapedTensor
from kamado.weights.quantized.saving import write_quantized_tensors
from kamado.weights.stream import lazy_tensors, renamed

from .components import build_components, diffusers_names
from .original.assemble import ORIGINAL


def write_quantized(checkpoint: Checkpoint, quant: Quant, folder: Path) -> Mapping[str, int]:
    """See Family.write_quantized. `checkpoint`: as `assembled` returns it, with its tokenizers."""
    original = checkpoint.metadata.get(ORIGINAL)
    built = {} if original is None else build_components(checkpoint)
    _write_tools(checkpoint, built, folder)
    kept: Counter[str] = Counter()
    for name, config in checkpoint.metadata["components"].items():
        tensors: Mapping[str, ShapedTensor] = renamed(lazy_tensors(checkpoint.tensors), strip=f"{name}/")
        if not tensors:
            continue
        if config.get("quantization_config"):
            raise UnsupportedCheckpoint(f"{checkpoint.reference}: its {name} is quantized already; take the original")
        if name in (original or ()):
            tensors = diffusers_names(built[name], tensors, f"{checkpoint.reference}: its {name}")
        home = folder / name
        home.mkdir(exist_ok=True)
        is_theirs = str(checkpoint.config[name][0]) == "transformers"
        file = "model.safetensors" if is_theirs else "diffusion_pytorch_model.safetensors"
        written = write_quantized_tensors(home / file, tensors, quant, prefix=f"{name}/")
        kept.update(written.kept)
        told = {} if written.config is None else {"quantization_config": written.config}
        _write_json(home / "config.json", {**config, **told})
    return kept


def _write_tools(checkpoint: Checkpoint, built: Mapping[str, Any], folder: Path) -> None:
    """The index, and what has no weights: copied from a folder, or as it was made for a single file."""
    for name, source in checkpoint.files.items():
        if not name.endswith(".index.json"):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    for name, tool in built.items():
        if not isinstance(tool, nn.Module):
            tool.save_pretrained(str(folder / name))
    if not (index := folder / "model_index.json").exists():
        _write_json(index, dict(checkpoint.config))


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
