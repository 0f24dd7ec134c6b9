"""What loading models of transformers that listen has in common."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, GenerationConfig

from kamado.checkpoint.types import Checkpoint

from ..library.loading import Loader


def library_config(loader: Loader) -> Any:
    """transformers' configuration of the checkpoint. Raises UnsupportedCheckpoint."""
    return loader.folder_call(AutoConfig.from_pretrained, what="configuration")


def stored_generation_config(checkpoint: Checkpoint, loader: Loader, model: Any) -> GenerationConfig:
    """What `generate` goes by: the checkpoint's own settings, or what follows from its configuration."""
    if "generation_config.json" in checkpoint.files:
        # A file that says it was made from the model's configuration would lose what is the model's own.
        found = loader.folder_call(
            GenerationConfig.from_pretrained, what="generation settings", _from_model_config=False
        )
    else:
        found = GenerationConfig.from_model_config(model.config)
    return found  # type: ignore[no-any-return]
