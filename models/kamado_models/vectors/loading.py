"""Networks, tokenizers and their limits, out of a checkpoint."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from kamado.checkpoint.types import Checkpoint
from kamado.errors import UnsupportedCheckpoint

from ..language.config import cleaned
from ..library.loading import Loader
from .layout import ENCODERS, network_tensors, positions
from .networks import Around
from .tokens import Tokens

Check = Callable[[Mapping[str, Any]], None]
"""`Kind.check` of one checkpoint."""
NETWORK = "network"
"""The lane of the network itself."""


def load_network(loader: Loader, name: str, *, bare: bool = False) -> Any:
    """The class of transformers called `name`, loaded; `bare`: the network without what stands behind it, whichever
    class the checkpoint was saved from. Raises UnsupportedCheckpoint."""
    checkpoint = loader.checkpoint
    config = _config(checkpoint)
    model_class = _bare_class(config, name) if bare else _class_named(checkpoint, name)
    if bare and "add_pooling_layer" in inspect.signature(model_class.__init__).parameters:
        model_class = _WithoutPooler(model_class)
    return loader.pretrained(NETWORK, model_class, config, network_tensors(checkpoint, bare=bare))


def wrapped(network: Any, wrapper: type[Around]) -> Any:
    """The network with what comes behind it; one that was parked has that already."""
    return network if isinstance(network, wrapper) else wrapper(network)


def load_tokens(loader: Loader, max_tokens: int | None = None) -> Tokens:
    """The tokenizer. `max_tokens`: what the checkpoint says besides. Raises UnsupportedCheckpoint."""
    from transformers import AutoTokenizer

    checkpoint = loader.checkpoint
    tokenizer = loader.folder_call(AutoTokenizer.from_pretrained, what="tokenizer", trust_remote_code=False)
    limits = [limit for limit in (positions(checkpoint), max_tokens) if limit is not None]
    pad = checkpoint.config.get("pad_token_id")
    return Tokens(
        tokenizer,
        max_tokens=min(limits, default=None),
        pad_id=pad if isinstance(pad, int) and 0 <= pad < checkpoint.config.get("vocab_size", 0) else None,
        reference=checkpoint.reference,
    )


class _WithoutPooler:
    """A class of transformers without its pooler, which checkpoints often lack."""

    def __init__(self, model_class: Any) -> None:
        self.__name__ = model_class.__name__
        self._model_class = model_class

    def from_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        return self._model_class.from_pretrained(*args, add_pooling_layer=False, **kwargs)


def _config(checkpoint: Checkpoint) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = str(checkpoint.config.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise UnsupportedCheckpoint(
            f"{checkpoint.reference}: the installed transformers has no model type {kind!r}; a newer one may"
        )
    try:
        config = CONFIG_MAPPING[kind].from_dict(cleaned(checkpoint.config))
    except Exception as error:  # whatever a class makes of absurd values
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UnsupportedCheckpoint(f"{checkpoint.reference}: its configuration is not usable: {first}") from error
    if hasattr(config, "use_cache"):
        config.use_cache = False
    return config


def _class_named(checkpoint: Checkpoint, name: str) -> Any:
    import transformers

    found = getattr(transformers, name, None)
    if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
        raise UnsupportedCheckpoint(f"{checkpoint.reference}: the installed transformers has no {name}; a newer may")
    return found


def _bare_class(config: Any, name: str) -> Any:
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    if config.model_type in ENCODERS:
        return getattr(transformers, ENCODERS[config.model_type])
    own = getattr(transformers, name, None)
    if name.endswith("Model") and isinstance(own, type) and issubclass(own, transformers.PreTrainedModel):
        return own
    if type(config) not in MODEL_MAPPING:
        raise UnsupportedCheckpoint(f"transformers has no network for {config.model_type!r}")
    chosen = MODEL_MAPPING[type(config)]
    return chosen[0] if isinstance(chosen, (list, tuple)) else chosen
