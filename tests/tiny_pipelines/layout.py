"""The last touches that make a saved pipeline look like a published one."""

from __future__ import annotations

import json
from pathlib import Path

PUBLISHED = {"T5Tokenizer": "T5TokenizerFast", "CLIPImageProcessorPil": "CLIPImageProcessor"}
"""Classes as model_index.json of published checkpoints names them."""


def tidy(folder: Path) -> None:
    """Give classes their published names.

    CLIP's tokenizers become vocab.json and merges.txt, and the tensors of its text encoders get the prefix that newer
    versions of transformers leave out.
    """
    index_path = folder / "model_index.json"
    index = json.loads(index_path.read_text(encoding="utf-8"))
    for name, entry in index.items():
        if not isinstance(entry, list) or entry[1] is None:
            continue
        entry[1] = PUBLISHED.get(entry[1], entry[1])
        if entry[1] == "CLIPTokenizer":
            _split_tokenizer(folder / name)
        elif entry[1] == "CLIPTextModel":
            _prefix(folder / name / "model.safetensors", "text_model.")
    index_path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _split_tokenizer(folder: Path) -> None:
    whole = folder / "tokenizer.json"
    model = json.loads(whole.read_text(encoding="utf-8"))["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    merges = "".join(f"{left} {right}\n" for left, right in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
    whole.unlink()


def _prefix(path: Path, prefix: str) -> None:
    from safetensors.torch import load_file, save_file

    tensors = {f"{prefix}{name.removeprefix(prefix)}": tensor for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
