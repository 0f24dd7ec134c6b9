"""Loading GGUF files the way the language family does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from kamado.checkpoint.gguf_header import read_gguf_header
from kamado.checkpoint.types import Checkpoint
from kamado_models.language.gguf import config_from_gguf
from kamado_models.language.gguf.tensors import tensors_from_gguf
from kamado_models.language.materialize import materialize

# Importing the modelling code sets an environment variable of torch's compiler: not within a test.
transformers.LlamaForCausalLM  # noqa: B018


def checkpoint_of(file: Path) -> Checkpoint:
    """Header data of one GGUF file."""
    header = read_gguf_header(file)
    return Checkpoint(
        reference=str(file),
        root=file,
        layout="gguf",
        config={},
        metadata=header.metadata,
        tensors=header.tensors,
        files={},
    )


def load(checkpoint: Checkpoint, *, dtype: torch.dtype = torch.float32) -> Any:
    """The model in memory."""
    values = config_from_gguf(checkpoint)
    config = transformers.AutoConfig.for_model(**values)
    model_class = getattr(transformers, values["architectures"][0])
    model, _ = materialize(model_class, config, tensors_from_gguf(checkpoint, config, dtype), dtype=dtype, device="cpu")
    return model
