"""What loading models of transformers that listen has in common."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, GenerationConfig

from kamado.checkpoint.types import Checkpoint
from kamado.errors import InvalidRequest
from kamado.memory.shortage import is_shortage

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


def features_of(extractor: Any, samples: Any, **settings: Any) -> Any:
    """What a model takes of `samples` [samples], in a batch of one. Raises InvalidRequest."""
    try:
        return extractor(
            samples, sampling_rate=extractor.sampling_rate, return_tensors="pt", return_attention_mask=True, **settings
        )
    except Exception as error:  # whatever it makes of settings that are no such
        if is_shortage(error):
            raise
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InvalidRequest(f"the model's feature extractor cannot be used for this recording: {said}") from error
