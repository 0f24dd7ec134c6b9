"""A pipeline written anew, with quantized weights: a folder that loads at once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from kamado.checkpoint.types import Checkpoint
from kamado.errors import UnsupportedCheckpoint
from kamado.quant import Quant
from kamado.weights.quantized.saving import write_quantized_tensors
from kamado.weights.stream import lazy_tensors, renamed


def write_quantized(checkpoint: Checkpoint, quant: Quant, folder: Path) -> None:
    """See Family.write_quantized."""
    if checkpoint.layout != "diffusers" or checkpoint.parts or not checkpoint.root.is_dir():
        raise UnsupportedCheckpoint(f"{checkpoint.reference}: only pipelines in folders can be written quantized")
    for name, source in checkpoint.files.items():
        if not name.endswith(".index.json"):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    if not (index := folder / "model_index.json").exists():
        index.write_text(json.dumps(dict(checkpoint.config), indent=2) + "\n", encoding="utf-8")
    for name, config in checkpoint.metadata["components"].items():
        tensors = renamed(lazy_tensors(checkpoint.tensors), strip=f"{name}/")
        if not tensors:
            continue
        if config.get("quantization_config"):
            raise UnsupportedCheckpoint(f"{checkpoint.reference}: its {name} is quantized already; take the original")
        home = folder / name
        home.mkdir(exist_ok=True)
        is_theirs = str(checkpoint.config[name][0]) == "transformers"
        file = "model.safetensors" if is_theirs else "diffusion_pytorch_model.safetensors"
        told = write_quantized_tensors(home / file, tensors, quant, prefix=f"{name}/")
        whole = {**config, "quantization_config": told} if told["config_groups"] else dict(config)
        (home / "config.json").write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
